// Each warp turns its 32 floats around twice: through shared memory, then by shuffles.
#include "gpu.cuh"
#include "variant.cuh"

KERNEL VARIANT(bug_warp_)(const float* in, float* out) {
  STATIC_SMEM(float, tile, 128);
  int t = threadIdx.x, lane = t & 31;
#if BUG == 4  // shared memory that nothing wrote
  if (t < 127)
#endif
    tile[t] = in[t];
#if BUG != 1  // lanes of a warp do wait for one another only where told
  __syncwarp();
#endif
  float turned = tile[t ^ 31];
#if BUG == 2  // a shuffle that half of the mask's lanes don't reach
  if (lane < 16) turned = __shfl_sync(ALL_LANES, turned, 31 - lane);
#elif BUG == 3  // a shuffle out of a lane that takes no part
  if (lane < 16) turned = __shfl_sync(0xffffu, turned, 31 - lane);
#else
  turned = __shfl_sync(ALL_LANES, turned, 31 - lane);
#endif
  out[t] = turned;
}
EXPORT_VARIANT(VARIANT(bug_warp_))
