// RMS norm, with the residual added first: h = bf16(x + residual), out = bf16(h / sqrt(mean(h²) + epsilon) · gain).
//
// x, residual, out: rows of `columns` bf16, `stride` elements apart; gain: [columns] bf16; residual may be null, else h is
// written back to it. out may be x.
// A block takes a row and keeps it in registers; the sum is the same tree whatever the batch, so a row's bits depend on
// that row only. Bytes: x + out, with a residual twice that. Bound: memory; goal 80 % of a device copy.
#include "gpu.cuh"

/// CHUNKS: 16-byte vectors of a thread.
template <int CHUNKS>
DEV_WITH_SMEM void normalize(const bf16* x, bf16* residual, const bf16* gain, bf16* out, int columns, int stride,
                             float epsilon) {
  STATIC_SMEM(float, scratch, 32);
  int64_t row = (int64_t)blockIdx.x * stride;
  int vectors = columns / 8;
  float h[CHUNKS][8];
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    int v = c * blockDim.x + threadIdx.x;
    uint4 data = make_uint4(0, 0, 0, 0), past = make_uint4(0, 0, 0, 0);
    if (v < vectors) {
      data = reinterpret_cast<const uint4*>(x + row)[v];
      if (residual) past = reinterpret_cast<const uint4*>(residual + row)[v];
    }
    uint32_t words[4] = {data.x, data.y, data.z, data.w}, before[4] = {past.x, past.y, past.z, past.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (residual) words[i] = pack_bf16(lo2f(words[i]) + lo2f(before[i]), hi2f(words[i]) + hi2f(before[i]));
      h[c][2 * i] = lo2f(words[i]);
      h[c][2 * i + 1] = hi2f(words[i]);
      sum += h[c][2 * i] * h[c][2 * i] + h[c][2 * i + 1] * h[c][2 * i + 1];
    }
    if (residual && v < vectors)
      reinterpret_cast<uint4*>(residual + row)[v] = make_uint4(words[0], words[1], words[2], words[3]);
  }
  sum = block_sum(sum, scratch);
  float scale = fast_rsqrt(sum / columns + epsilon);
  launch_dependents();
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    int v = c * blockDim.x + threadIdx.x;
    if (v >= vectors) continue;
    uint4 data = __ldg(reinterpret_cast<const uint4*>(gain) + v);
    uint32_t gains[4] = {data.x, data.y, data.z, data.w}, words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      words[i] = pack_bf16(h[c][2 * i] * scale * lo2f(gains[i]), h[c][2 * i + 1] * scale * hi2f(gains[i]));
    reinterpret_cast<uint4*>(out + row)[v] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

#define RMS_NORM(chunks)                                                                                        \
  KERNEL __launch_bounds__(256)                                                                                 \
      rms_norm_##chunks(const bf16* x, bf16* residual, const bf16* gain, bf16* out, int columns, int stride,    \
                        float epsilon) {                                                                        \
    normalize<chunks>(x, residual, gain, out, columns, stride, epsilon);                                        \
  }                                                                                                             \
  TWIN_EXPORT(rms_norm_##chunks)
RMS_NORM(1)
RMS_NORM(2)
RMS_NORM(4)
RMS_NORM(8)
