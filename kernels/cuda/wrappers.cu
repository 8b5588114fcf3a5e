// The wrappers of include/, each by itself, so that the check on a GPU tells a wrong instruction from a wrong kernel.
// Used by that check only. The twin runs these too, which proves the twin's own half.
#include "gpu.cuh"

/// 256 threads, one for each byte: every code of e4m3, int8 and int4, and 256 values rounded.
KERNEL wrap_convert(const float* values, float* e4m3_f32, float* e4m3_bf16, uint8_t* e4m3_back, float* int8_bf16,
                    float* int4_bf16, bf16* to_bf16, f16* to_f16, float* from_f16, uint8_t* to_e4m3) {
  int t = threadIdx.x;
  e4m3_f32[t] = e4m32f(e4m3{(uint8_t)t});
  // The code, and beside it its negative.
  uint32_t pair = e4m3x2_to_bf16((uint32_t)t | (uint32_t)(t ^ 0x80) << 8);
  e4m3_bf16[2 * t] = lo2f(pair);
  e4m3_bf16[2 * t + 1] = hi2f(pair);
  e4m3_back[t] = (uint8_t)pack_e4m3(e4m32f(e4m3{(uint8_t)t}), 1.0f);
  uint32_t lo, hi;
  int8x4_to_bf16((uint32_t)t | (uint32_t)(255 - t) << 8 | (uint32_t)(t ^ 0x80) << 16 | 0x7f000000u, lo, hi);
  int8_bf16[4 * t] = lo2f(lo);
  int8_bf16[4 * t + 1] = hi2f(lo);
  int8_bf16[4 * t + 2] = lo2f(hi);
  int8_bf16[4 * t + 3] = hi2f(hi);
  uint32_t nibbles = int4x2_to_bf16((uint32_t)(t & 15) | (uint32_t)(t >> 4) << 16 | 0x0fc00fc0u, 0xc308c308u);  // zero: 8
  int4_bf16[2 * t] = lo2f(nibbles);
  int4_bf16[2 * t + 1] = hi2f(nibbles);
  to_bf16[t] = f2bf(values[t]);
  to_f16[t] = f2f16(values[t]);
  from_f16[t] = hi_f16(pack_f16(0.0f, values[t]));
  to_e4m3[t] = (uint8_t)(pack_e4m3(1.0f, values[t]) >> 8);
}
TWIN_EXPORT(wrap_convert)

/// One warp: C[16, 8] = A·Bᵀ, rows of 32 bytes. B_TRANSPOSED: B is [16 k, 8 n] of 16-bit values instead.
template <bool B_TRANSPOSED, class T, class F>
DEV void product(const uint32_t* a, const uint32_t* b, T* out, F mma) {
  STATIC_SMEM(uint32_t, tile_a, 16 * 8);
  STATIC_SMEM(uint32_t, tile_b, 8 * 8);
  int l = lane_id();
  cp_async16(tile_a + 4 * l, a + 4 * l);
  cp_async_small<8>(tile_b + 2 * l, b + 2 * l);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t fa[4], fb[2];
  ldsm_x4(fa, tile_a + (l & 15) * 8 + (l >> 4) * 4);
  if (B_TRANSPOSED) {
    ldsm_x2_t(fb, tile_b + (l & 15) * 4);
  } else {
    ldsm_x2(fb, tile_b + (l & 7) * 8 + (l >> 3 & 1) * 4);
  }
  T c[4] = {};
  mma(c, fa, fb[0], fb[1]);
  for (int i = 0; i < 4; i++) out[((l >> 2) + (i >> 1) * 8) * 8 + 2 * (l & 3) + (i & 1)] = c[i];
}

#define WRAP_MMA(name, transposed, T, mma)                                                 \
  KERNEL __launch_bounds__(32) name(const uint32_t* a, const uint32_t* b, T* out) {        \
    product<transposed>(a, b, out, [](T(&c)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { mma(c, a, b0, b1); }); \
  }                                                                                        \
  TWIN_EXPORT(name)
WRAP_MMA(wrap_mma_bf16, false, float, mma_bf16)
WRAP_MMA(wrap_mma_bf16_t, true, float, mma_bf16)
WRAP_MMA(wrap_mma_f16, false, float, mma_f16)
WRAP_MMA(wrap_mma_s8, false, int, mma_s8)

/// 64 threads: reductions, barriers of part of a block, hinted loads and stores. in, out: 256 words.
KERNEL wrap_memory(const uint4* in, uint4* out, float* sums) {
  STATIC_SMEM(float, scratch, 4);
  int t = threadIdx.x;
  prefetch_l2(in);
  dependency_wait();
  uint4 all = ld_stream(in + t);
  uint2 half = ld_stream(reinterpret_cast<const uint2*>(in) + 2 * t);
  uint32_t one = ld_stream(reinterpret_cast<const uint32_t*>(in) + 4 * t + 3);
  st_stream(out + t, make_uint4(half.x, half.y, prmt(all.z, 0, 0x0123), one));
  launch_dependents();
  float v = (float)t;
  sums[t] = block_sum(v, scratch);
  __syncthreads();
  sums[64 + t] = block_max(-v, scratch);
  sums[128 + t] = warp_sum<8>(v);
  // Warp 0 waits for warp 1's word; warp 1 goes on.
  if (t == 32) scratch[2] = 5.0f;
  if (t >= 32) {
    bar_arrive(1, 64);
  } else {
    bar_sync(1, 64);
  }
  sums[192 + t] = t < 32 ? scratch[2] : 5.0f;
  uint32_t a = 0x3fc0c000u;  // bf16 pair: -2, 1.5
  sums[256 + t] = lo2f(fma_bf16x2(a, a, a)) + hi2f(fma_bf16x2(a, a, a)) + (float)lop3<0x96>(1, 2, 4);
}
TWIN_EXPORT(wrap_memory)
