// C[64, 64] = A[64, k] · B[64, k]ᵀ: one warp brings tiles of 64 k by TMA into a ring of two, one warpgroup multiplies.
#include "gpu90.cuh"
#include "variant.cuh"

constexpr int STAGES = 2;

KERNEL VARIANT(bug_tile_)(TMAP_PARAM a, TMAP_PARAM b, float* c, int k) {
  DYN_SMEM(unsigned char, ring);
  uint64_t *full = reinterpret_cast<uint64_t*>(ring + STAGES * 16384), *empty = full + STAGES;
  int t = threadIdx.x, steps = k / 64;
  if (t == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbar_init(full + i, 1);
      mbar_init(empty + i, 128);
    }
    mbar_fence_init();
  }
#if BUG != 5  // an mbarrier used before it is there
  __syncthreads();
#endif
  if (t >= 128) {
    if (t > 128) return;
    for (int i = 0; i < steps; i++) {
      int s = i % STAGES;
#if BUG != 2  // a tile over one that is still read
      if (i >= STAGES) mbar_wait(empty + s, (i / STAGES - 1) & 1);
#endif
#if BUG == 4  // announces fewer bytes than come
      mbar_expect_tx(full + s, 8192);
#else
      mbar_expect_tx(full + s, 16384);
#endif
      tma_load_2d(ring + s * 16384, &a, full + s, i * 64, 0);
      tma_load_2d(ring + s * 16384 + 8192, &b, full + s, i * 64, 0);
    }
    return;
  }
  float d[32] = {};
  for (int i = 0; i < steps; i++) {
    int s = i % STAGES;
#if BUG != 1  // reads without waiting for the tile
    mbar_wait(full + s, i / STAGES & 1);
#endif
    wgmma_fence();
    uint64_t at = desc_sw128(ring + s * 16384), bt = desc_sw128(ring + s * 16384 + 8192);
    for (int j = 0; j < 4; j++) wgmma_bf16(d, at + 2 * j, bt + 2 * j);
    wgmma_commit();
#if BUG == 6  // lets the tile go just before the product that reads it is waited for
    mbar_arrive(empty + s);
#endif
#if BUG != 3  // lets the tile go while the product reads it
    wgmma_wait<0>();
#endif
#if BUG != 6
    mbar_arrive(empty + s);
#endif
  }
#if BUG == 3
  wgmma_wait<0>();
#endif
  for (int i = 0; i < 32; i++)
    c[((t >> 5) * 16 + (t >> 2 & 7) + (i >> 1 & 1) * 8) * 64 + (i >> 2) * 8 + (t & 3) * 2 + (i & 1)] = d[i];
}
EXPORT_VARIANT(VARIANT(bug_tile_))
