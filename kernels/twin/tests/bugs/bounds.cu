// Copies 128 floats through 512 bytes of shared memory.
#include "gpu.cuh"
#include "variant.cuh"

KERNEL VARIANT(bug_bounds_)(const float* in, float* out) {
  DYN_SMEM(float, tile);
  int t = threadIdx.x;
#if BUG == 1  // reads past the end of an allocation
  tile[t] = in[t + 1];
#elif BUG == 2  // reads before its start
  tile[t] = in[t - 1024];
#elif BUG == 3  // writes past the end of shared memory, a little
  tile[t + 1] = in[t];
#elif BUG == 4  // … and far
  tile[t * 64] = in[t];
#else
  tile[t] = in[t];
#endif
  __syncthreads();
#if BUG == 5  // writes just before the start
  out[t - 1] = tile[t];
#elif BUG == 6  // a stack that grows without end
  float deep[20000];
  for (int i = 0; i < 20000; i++) const_cast<volatile float*>(deep)[i] = tile[i & 127];
  out[t] = deep[t];
#else
  out[t] = tile[t];
#endif
}
EXPORT_VARIANT(VARIANT(bug_bounds_))
