// Reductions over a warp and a block, and barriers of part of a block.
#pragma once
#include "types.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;

DEV int lane_id() { return threadIdx.x & 31; }
DEV int warp_id() { return threadIdx.x >> 5; }

/// Sum over groups of WIDTH neighbouring lanes; every lane gets it. The same tree for every warp.
template <int WIDTH = 32>
DEV float warp_sum(float v) {
#pragma unroll
  for (int x = WIDTH / 2; x; x >>= 1) v += __shfl_xor_sync(ALL_LANES, v, x);
  return v;
}
template <int WIDTH = 32>
DEV float warp_max(float v) {
#pragma unroll
  for (int x = WIDTH / 2; x; x >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, x));
  return v;
}
template <int WIDTH = 32>
DEV int warp_sum(int v) {
#pragma unroll
  for (int x = WIDTH / 2; x; x >>= 1) v += __shfl_xor_sync(ALL_LANES, v, x);
  return v;
}

/// Sum over a block (x only, a multiple of 32 threads); every thread gets it. `scratch`: a float of shared memory for
/// each warp, free for other uses after the next barrier.
DEV float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  if (lane_id() == 0) scratch[warp_id()] = v;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < (int)blockDim.x / 32; i++) sum += scratch[i];
  return sum;
}
DEV float block_max(float v, float* scratch) {
  v = warp_max(v);
  if (lane_id() == 0) scratch[warp_id()] = v;
  __syncthreads();
  float most = scratch[0];
  for (int i = 1; i < (int)blockDim.x / 32; i++) most = fmaxf(most, scratch[i]);
  return most;
}

#ifdef GPU
/// Barrier `id` (1–15) among `threads` of the block, a multiple of 32.
DEV void bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
/// Arrives there without waiting.
DEV void bar_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
#else
DEV void bar_sync(int id, int threads) { twin::barrier(id, threads); }
DEV void bar_arrive(int id, int threads) { twin::barrier_arrive(id, threads); }
#endif
