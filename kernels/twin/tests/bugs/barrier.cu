// Turns an array of 4 · 128 floats around, 128 at a time, through shared memory.
#include "gpu.cuh"
#include "variant.cuh"

KERNEL VARIANT(bug_barrier_)(const float* in, float* out) {
  DYN_SMEM(float, tile);
  int t = threadIdx.x;
  for (int i = 0; i < 4; i++) {
    tile[t] = in[i * 128 + t];
#if BUG != 1  // read before it is written
    __syncthreads();
#endif
    out[511 - i * 128 - (127 - t)] = tile[127 - t];
#if BUG != 2  // overwritten before all have read
    __syncthreads();
#endif
#if BUG == 3  // a barrier that not all reach
    if (t == 77) return;
#endif
  }
}
EXPORT_VARIANT(VARIANT(bug_barrier_))
