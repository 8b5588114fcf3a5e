// Adds 1 to 128 floats, turned around. Launched twice, from x to y and back, the second time dependent on the first.
#include "gpu.cuh"
#include "variant.cuh"

KERNEL VARIANT(bug_dependent_)(const float* in, float* out) {
  int t = threadIdx.x;
#if BUG == 1  // reads what the launch before has yet to write
  float x = in[127 - t];
#endif
#if BUG == 2  // overwrites what the launch before has yet to read
  out[t] = 0.0f;
#endif
#if BUG == 3  // doesn't wait, not in every thread
  if (t < 64)
#endif
    dependency_wait();
#if BUG != 1
  float x = in[127 - t];
#endif
  out[t] = x + 1.0f;
}
EXPORT_VARIANT(VARIANT(bug_dependent_))
