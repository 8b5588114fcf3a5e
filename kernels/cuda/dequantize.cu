// Packed weights (skinny.cuh) as bf16 [rows, cols], row-major, for many tokens where no product reads packed ones. Pays
// off from some hundreds of tokens on, when reading weights no longer bounds a product.
//
// Bytes: rows * cols * (bits / 8 + 2) and the scales. Bound: memory. A warp takes a 16-row tile's step; each lane stores
// 16 bytes of rows g and g + 8, four lanes 64 bytes of a row.
// Expect sm_80 *_w8*: LDG.128 STG.128
// Expect sm_90 *_w8*: LDG.128 STG.128
// Expect sm_80 *_fp8: LDG.128 STG.128
// Expect sm_90 *_fp8: LDG.128 STG.128
// Expect sm_80 *_w4: LDG.64 STG.128
// Expect sm_90 *_w4: LDG.64 STG.128
#include "skinny.cuh"

struct Dequantize {
  const unsigned char* weights;
  const uint32_t* group_scales;
  const float* row_scales;
  bf16* out;
  uint32_t rows, cols, group_log2;
};

// Grid (steps / 4 rounded up, row tiles).
template <class W>
DEV void dequantize(const Dequantize& a) {
  uint32_t steps = (a.cols + 63) / 64, step = blockIdx.x * 4 + (threadIdx.x >> 5), tile = blockIdx.y;
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  if (step >= steps) return;
  const unsigned char* weights = a.weights + ((uint64_t)tile * steps + step) * W::BYTES;
  uint32_t units = ((steps * 64 + (1u << a.group_log2) - 1 >> a.group_log2) + 1) / 2;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    uint32_t fragments[2][4], k = step * 64 + j * 32 + t * 8, group = k >> a.group_log2;
    W::fragments(fragments, weights, j, lane);
#pragma unroll
    for (int upper = 0; upper < 2; upper++) {
      uint32_t row = tile * 16 + upper * 8 + g;
      if (row >= a.rows || k >= a.cols) continue;
      float scale = a.row_scales[row], offset = 0.0f;
      if constexpr (W::GROUPED) {
        uint32_t pair = a.group_scales[((uint64_t)tile * units + group / 2) * 32 + g * 4 + (group & 1) * 2 + upper];
        offset = hi_f16(pair) * scale;
        scale *= lo_f16(pair);
        if (W::OFFSET) offset -= 128.0f * scale;
      }
      Eight e;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint32_t two = fragments[i >> 1][(i & 1) * 2 + upper];
        e.x[2 * i] = fmaf(lo2f(two), scale, offset);
        e.x[2 * i + 1] = fmaf(hi2f(two), scale, offset);
      }
      store8(a.out + (uint64_t)row * a.cols + k, e);
    }
  }
}

#define DEQUANTIZE(name, ...)                                                                              \
  KERNEL __launch_bounds__(128)                                                                            \
      name(const unsigned char* weights, const uint32_t* group_scales, const float* row_scales, bf16* out, \
           uint32_t rows, uint32_t cols, uint32_t group_log2) {                                            \
    dequantize<__VA_ARGS__>({weights, group_scales, row_scales, out, rows, cols, group_log2});             \
  }                                                                                                        \
  TWIN_EXPORT(name)

DEQUANTIZE(dequantize_w8, ByteWeights<false, int8_to_bf16>)
DEQUANTIZE(dequantize_w8_grouped, ByteWeights<true, int8_to_bf16>)
DEQUANTIZE(dequantize_w4, Int4Weights)
DEQUANTIZE(dequantize_fp8, ByteWeights<false, e4m3_to_bf16>)
