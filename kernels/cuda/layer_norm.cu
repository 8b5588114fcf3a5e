// Layer norm, with the residual added first: h = bf16(x + residual), out = bf16((h - mean) / sqrt(variance + epsilon)
// * gain + bias).
//
// x, residual, out [rows, columns] bf16; gain, bias [columns] bf16. residual may be null, else h is written back to
// it; bias may be null. columns % 8 == 0. The variance is taken of the differences from the mean, so a large mean
// costs no precision. One block a row, which stays in registers; the sums are the same trees whatever the batch.
// Bytes: 4 * rows * columns, with a residual twice that. Bound: memory.
// Expect sm_80 *: LDG.128
// Expect sm_90 *: LDG.128
#include "vector.cuh"

// CHUNKS: 16-byte vectors of a thread.
template <int CHUNKS>
DEV_WITH_SMEM void layer_norm(const bf16* x, bf16* residual, const bf16* gain, const bf16* bias, bf16* out, int columns,
                    float epsilon) {
  STATIC_SMEM(float, scratch, 64);
  uint64_t row = (uint64_t)blockIdx.x * columns;
  Eight h[CHUNKS];
  float sum = 0.0f;
  launch_dependents();
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    int i = (c * blockDim.x + threadIdx.x) * 8;
    h[c] = {};
    if (i >= columns) continue;
    uint4 words = *(const uint4*)(x + row + i);
    h[c] = unpack8(words);
    if (residual) {
      Eight past = unpack8(*(const uint4*)(residual + row + i));
#pragma unroll
      for (int j = 0; j < 8; j++) past.x[j] += h[c].x[j];
      words = pack8(past);
      *(uint4*)(residual + row + i) = words;
      h[c] = unpack8(words);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sum += h[c].x[j];
  }
  float mean = block_sum(sum, scratch) / columns, squares = 0.0f;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    if ((int)(c * blockDim.x + threadIdx.x) * 8 >= columns) continue;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      h[c].x[j] -= mean;
      squares += h[c].x[j] * h[c].x[j];
    }
  }
  float factor = fast_rsqrt(block_sum(squares, scratch + 32) / columns + epsilon);
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    int i = (c * blockDim.x + threadIdx.x) * 8;
    if (i >= columns) continue;
    Eight g = load8(gain + i), b = {};
    if (bias) b = load8(bias + i);
#pragma unroll
    for (int j = 0; j < 8; j++) b.x[j] += h[c].x[j] * factor * g.x[j];
    store8(out + row + i, b);
  }
}

#define LAYER_NORM(chunks)                                                                                             \
  KERNEL __launch_bounds__(256) layer_norm_##chunks(const bf16* x, bf16* residual, const bf16* gain, const bf16* bias, \
                                                    bf16* out, int columns, float epsilon) {                           \
    layer_norm<chunks>(x, residual, gain, bias, out, columns, epsilon);                                                \
  }                                                                                                                    \
  TWIN_EXPORT(layer_norm_##chunks)

LAYER_NORM(1)
LAYER_NORM(2)
LAYER_NORM(4)
LAYER_NORM(8)
