// Block copy: whole KV pages, in every layer.
//
// cache: `layers` layers, `layer_bytes` apart, each `pages` of `page_bytes` (a multiple of 16);
// pairs [n][2] u32: from, to. No page may be the target of one pair and part of another.
// Grid (n, layers). Bytes: 2 * n * layers * page_bytes. Bound: memory.
// Expect sm_80 *: LDG.128
// Expect sm_90 *: LDG.128
#include "vector.cuh"

KERNEL __launch_bounds__(256)
    copy_blocks(uint8_t* cache, const uint32_t* pairs, uint64_t layer_bytes, uint32_t page_bytes, uint32_t pages) {
  if (pairs[2 * blockIdx.x] >= pages || pairs[2 * blockIdx.x + 1] >= pages) return;
  uint8_t* layer = cache + (uint64_t)blockIdx.y * layer_bytes;
  const uint4* from = (const uint4*)(layer + (uint64_t)pairs[2 * blockIdx.x] * page_bytes);
  uint4* to = (uint4*)(layer + (uint64_t)pairs[2 * blockIdx.x + 1] * page_bytes);
  uint32_t n = page_bytes / 16;
  uint32_t i = threadIdx.x;
  for (; i + 3 * blockDim.x < n; i += 4 * blockDim.x) {  // four loads in flight
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = ld_stream(from + i + j * blockDim.x);
#pragma unroll
    for (int j = 0; j < 4; j++) to[i + j * blockDim.x] = v[j];
  }
  for (; i < n; i += blockDim.x) to[i] = ld_stream(from + i);
}
TWIN_EXPORT(copy_blocks)
