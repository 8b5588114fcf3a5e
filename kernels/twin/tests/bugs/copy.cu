// Sums 8 stages of 128 floats each, copied two ahead by cp.async into three buffers.
#include "gpu.cuh"
#include "variant.cuh"

KERNEL VARIANT(bug_copy_)(const float* in, float* out) {
  DYN_SMEM(float, ring);
  int t = threadIdx.x;
  auto load = [&](int i) {
    if (i < 8 && t < 32) cp_async16(ring + i % 3 * 128 + t * 4, in + i * 128 + t * 4);
    cp_async_commit();
  };
  load(0);
  load(1);
  float sum = 0.0f;
  for (int i = 0; i < 8; i++) {
#if BUG == 1  // waits for one group too few
    cp_async_wait<2>();
#elif BUG != 4  // … for none
    cp_async_wait<1>();
#endif
#if BUG != 2  // waits for its own copies, not for the others'
    __syncthreads();
#endif
#if BUG == 3  // copies over the buffer that is read
    load(i + 3);
#else
    load(i + 2);
#endif
    sum += ring[i % 3 * 128 + 127 - t];
  }
  cp_async_wait<0>();
  out[t] = sum;
}
EXPORT_VARIANT(VARIANT(bug_copy_))
