// Penalties, bias and bans, in place on the logits they concern, and the way back; a soft cap of all.
//
// logits [rows, tokens] f32, rows `stride` apart. edits [n]: row, token, what the row's sequence holds of it, bias;
// no token twice in a row; one that isn't there is passed over. penalties [rows]: frequency, presence, repetition, unused. raw [n] f32 receives what the
// logits were, so that `logits_restore` can put it back before log-probabilities are taken of the raw logits.
//
// In this order, as on the CPU: repetition (positive logits divided, others multiplied) for tokens of the history;
// frequency for each time it was generated, presence once; bias; a banned token becomes NaN.
// Bytes: n * (16 + 4 + two accesses of a 32-byte sector each). Bound: latency. One thread an edit.
#include "softmax.cuh"

constexpr uint32_t BANNED = 0x80000000, HISTORY = 0x40000000, GENERATED = 0x3fffffff;

struct alignas(16) Edit {
  uint32_t row, token;
  uint32_t history;  // times generated, HISTORY if it is there at all, BANNED
  float bias;
};

KERNEL __launch_bounds__(128) logits_edit(float* logits, const Edit* edits, const float4* penalties, float* raw,
                                          uint32_t rows, uint32_t tokens, uint32_t stride, uint32_t n) {
  constexpr float LARGEST = 3.4028235e38f;
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  Edit e = edits[i];
  if (e.row >= rows || e.token >= tokens) return;
  float4 p = penalties[e.row];
  float* at = logits + (uint64_t)e.row * stride + e.token;
  float logit = *at;
  raw[i] = logit;
  logit = logit == logit ? fminf(logit, LARGEST) : -INFINITY;
  if (e.history & HISTORY) {
    uint32_t generated = e.history & GENERATED;
    logit = logit > 0.0f ? logit / p.z : logit * p.z;
    logit = logit - p.x * (float)generated - (generated ? p.y : 0.0f);
    logit = fminf(logit, LARGEST);
  }
  logit = fminf(logit + e.bias, LARGEST);
  *at = e.history & BANNED ? __uint_as_float(0x7fffffff) : logit;
}
TWIN_EXPORT(logits_edit)

KERNEL __launch_bounds__(128) logits_restore(float* logits, const Edit* edits, const float* raw, uint32_t rows,
                                             uint32_t tokens, uint32_t stride, uint32_t n) {
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  Edit e = edits[i];
  if (e.row < rows && e.token < tokens) logits[(uint64_t)e.row * stride + e.token] = raw[i];
}
TWIN_EXPORT(logits_restore)

// logit = cap · tanh(logit / cap), of n times four logits. One thread four.
KERNEL __launch_bounds__(128) logits_cap(float4* logits, uint64_t n, float cap) {
  uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float4 x = logits[i];
  float in = 1.0f / cap;
  x.x = cap * exact_tanh(x.x * in), x.y = cap * exact_tanh(x.y * in);
  x.z = cap * exact_tanh(x.z * in), x.w = cap * exact_tanh(x.w * in);
  logits[i] = x;
}
TWIN_EXPORT(logits_cap)
