// C[64, 64] = A[64, 64] · B[64, 64]ᵀ by one warpgroup, A's fragments in registers: [k / 16][thread][4].
#include "gpu90.cuh"
#include "variant.cuh"

KERNEL VARIANT(bug_fragment_)(const uint32_t* a, TMAP_PARAM b, float* c) {
  DYN_SMEM(unsigned char, tile);
  uint64_t* arrived = reinterpret_cast<uint64_t*>(tile + 8192);
  int t = threadIdx.x;
  if (t == 0) {
    mbar_init(arrived, 1);
    mbar_fence_init();
    mbar_expect_tx(arrived, 8192);
    tma_load_2d(tile, &b, arrived, 0, 0);
  }
  __syncthreads();
  mbar_wait(arrived, 0);
  float d[32] = {};
  uint32_t fragment[4];
  for (int j = 0; j < 4; j++) {
    for (int i = 0; i < 4; i++) fragment[i] = a[(j * 128 + t) * 4 + i];
    wgmma_fence();
    wgmma_bf16(d, fragment, desc_sw128(tile) + 2 * j);
    wgmma_commit();
#if BUG == 1  // the next fragment over one that is still read
    wgmma_wait<1>();
#else
    if (BUG != 2 || j < 3) wgmma_wait<0>();
#endif
  }
#if BUG != 2  // sums read before they are whole
  wgmma_wait<0>();
#endif
  for (int i = 0; i < 32; i++)
    c[((t >> 5) * 16 + (t >> 2 & 7) + (i >> 1 & 1) * 8) * 64 + (i >> 2) * 8 + (t & 3) * 2 + (i & 1)] = d[i];
#if BUG == 2
  wgmma_wait<0>();
#endif
}
EXPORT_VARIANT(VARIANT(bug_fragment_))
