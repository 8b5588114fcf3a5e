// Hopper's wrappers, each by itself, as wrappers.cu does for the others. Used by the check on a GPU and the twin only.
//
// Targets: sm_90a
// Expect sm_90a wrap_wgmma_*: HGMMA UTMALDG
// Expect sm_90a wrap_e4m3: QGMMA
// Expect sm_90a wrap_copies: UTMALDG UTMASTG UBLKCP STSM
#include "gpu90.cuh"

/// Rows of 128 bytes under the swizzle: where the 16 bytes `chunk` of `row` lie.
DEV const unsigned char* swizzled(const unsigned char* tile, int row, int chunk) {
  return tile + row * 128 + ((chunk ^ (row & 7)) * 16);
}

/// A's fragment for rows 16w… and bytes 32·step….
DEV void load_a(uint32_t (&a)[4], const unsigned char* tile, int step) {
  int l = lane_id();
  ldsm_x4(a, swizzled(tile, warp_id() * 16 + (l & 15), 2 * step + (l >> 4)));
}

template <int N>
DEV void store(float* out, const float (&d)[N / 2]) {
  int w = warp_id(), l = lane_id();
#pragma unroll
  for (int i = 0; i < N / 2; i++)
    out[(w * 16 + (l >> 2) + (i >> 1 & 1) * 8) * N + (i >> 2) * 8 + (l & 3) * 2 + (i & 1)] = d[i];
}

/// out: four times A[64, 64] · B, [64, N] each: both from shared memory, A from registers; B as [N, 64], then as [64, N].
template <int N>
DEV void four_ways(const TensorMap& map_a, const TensorMap& map_b, const TensorMap& map_bt, float* out) {
  DYN_SMEM(unsigned char, tiles);
  constexpr int PANELS = (N + 63) / 64;
  unsigned char *a = tiles, *b = a + 8192, *bt = b + (N * 128 + 1023) / 1024 * 1024;
  uint64_t* arrived = reinterpret_cast<uint64_t*>(bt + PANELS * 8192);
  if (threadIdx.x == 0) {
    mbar_init(arrived, 1);
    mbar_fence_init();
    tma_prefetch_map(&map_a);
    mbar_expect_tx(arrived, 8192 + N * 128 + PANELS * 8192);
    tma_load_2d(a, &map_a, arrived, 0, 0);
    tma_load_2d(b, &map_b, arrived, 0, 0);
    for (int p = 0; p < PANELS; p++) tma_load_2d(bt + p * 8192, &map_bt, arrived, p * 64, 0);
  }
  __syncthreads();
  mbar_wait(arrived, 0);
  uint64_t at = desc_sw128(a), by_k = desc_sw128(b), by_n = desc_sw128_t(bt, 8192);
#pragma unroll 1
  for (int way = 0; way < 4; way++) {
    float d[N / 2];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      uint32_t fragment[4];
      load_a(fragment, a, step);
      if (way == 0) wgmma_bf16(d, at + 2 * step, by_k + 2 * step, step > 0);
      if (way == 1) wgmma_bf16(d, fragment, by_k + 2 * step, step > 0);
      if (way == 2) wgmma_bf16_t(d, at + 2 * step, by_n + 128 * step, step > 0);
      if (way == 3) wgmma_bf16_t(d, fragment, by_n + 128 * step, step > 0);
      wgmma_commit();
      wgmma_wait<0>();
    }
    store<N>(out + way * 64 * N, d);
  }
}

#define WRAP_WGMMA(n)                                                                                             \
  KERNEL __launch_bounds__(128) wrap_wgmma_##n(TMAP_PARAM a, TMAP_PARAM b, TMAP_PARAM bt, float* out) {           \
    four_ways<n>(a, b, bt, out);                                                                                  \
  }                                                                                                               \
  TWIN_EXPORT(wrap_wgmma_##n)
WRAP_WGMMA(8)
WRAP_WGMMA(16)
WRAP_WGMMA(32)
WRAP_WGMMA(64)
WRAP_WGMMA(80)
WRAP_WGMMA(96)
WRAP_WGMMA(128)
WRAP_WGMMA(192)
WRAP_WGMMA(256)

/// A[64, 128] · B[64, 128]ᵀ of e4m3, [64, 64]: A from shared memory, A from registers; then f16 by the same bytes; and
/// by mma.sync the first 16 rows and 8 columns over the first 32 k, [16, 8].
KERNEL __launch_bounds__(128) wrap_e4m3(TMAP_PARAM a_map, TMAP_PARAM b_map, float* out) {
  DYN_SMEM(unsigned char, tiles);
  unsigned char *a = tiles, *b = tiles + 8192;
  uint64_t* arrived = reinterpret_cast<uint64_t*>(tiles + 16384);
  if (threadIdx.x == 0) {
    mbar_init(arrived, 1);
    mbar_fence_init();
    mbar_expect_tx(arrived, 16384);
    tma_load_2d(a, &a_map, arrived, 0, 0);
    tma_load_2d(b, &b_map, arrived, 0, 0);
  }
  __syncthreads();
  mbar_wait(arrived, 0);
  uint64_t at = desc_sw128(a), bt = desc_sw128(b);
#pragma unroll 1
  for (int way = 0; way < 3; way++) {
    float d[32];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      uint32_t fragment[4];
      load_a(fragment, a, step);
      if (way == 0) wgmma_e4m3(d, at + 2 * step, bt + 2 * step, step > 0);
      if (way == 1) wgmma_e4m3(d, fragment, bt + 2 * step, step > 0);
      if (way == 2) wgmma_f16(d, at + 2 * step, bt + 2 * step, step > 0);
      wgmma_commit();
      wgmma_wait<0>();
    }
    store<64>(out + way * 64 * 64, d);
  }
  if (threadIdx.x < 32) {
    int l = lane_id();
    uint32_t fa[4], fb[2];
    load_a(fa, a, 0);
    ldsm_x2(fb, swizzled(b, l & 7, l >> 3 & 1));
    float c[4] = {};
    mma_e4m3(c, fa, fb[0], fb[1]);
    for (int i = 0; i < 4; i++) out[3 * 64 * 64 + ((l >> 2) + (i >> 1) * 8) * 8 + 2 * (l & 3) + (i & 1)] = c[i];
  }
}
TWIN_EXPORT(wrap_e4m3)

/// Copies a box of 16 rows and 64 columns from (8, 4) of a matrix to (0, 4) of another, past its edges; and 512 bytes
/// in bulk, turned around by pairs of 8×8 matrices. One warp.
KERNEL __launch_bounds__(32) wrap_copies(TMAP_PARAM from, TMAP_PARAM to, const uint4* bytes, uint4* turned) {
  DYN_SMEM(unsigned char, smem);
  uint64_t* arrived = reinterpret_cast<uint64_t*>(smem + 4096);
  int l = lane_id();
  if (l == 0) {
    mbar_init(arrived, 1);
    mbar_fence_init();
    mbar_expect_tx(arrived, 2048 + 512);
    tma_load_2d(smem, &from, arrived, 8, 4);
    bulk_load(smem + 2048, bytes, 512, arrived);
  }
  __syncwarp();
  mbar_wait(arrived, 0);
  uint32_t r[4];
  ldsm_x4(r, smem + 2048 + l * 16);
  uint32_t swapped[4] = {r[1], r[0], r[3], r[2]};
  stsm_x4(smem + 2048 + 512 + l * 16, swapped);
  fence_async();
  __syncwarp();
  if (l == 0) {
    tma_store_2d(&to, smem, 0, 4);
    tma_store_commit();
    tma_store_wait<0>();
  }
  turned[l] = reinterpret_cast<uint4*>(smem + 2048 + 512)[l];
}
TWIN_EXPORT(wrap_copies)
