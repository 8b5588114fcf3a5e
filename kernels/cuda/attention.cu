// Attention of new tokens over a paged KV cache, decode and prefill (see include/attention.cuh).
//
// grid (items, kv_heads), 128 threads; shapes and layouts as in AttentionArgs. Rows per block: 16 (decode: the heads
// of a group, or a few tokens) or 64 (prefill, large groups; 32 where a head's 256 dims fill the registers).
// Bytes: 2 * kv_len * kv_heads * D * element size per sequence and row tile, plus q, out and partials.
// Bound: device memory while a row tile has few rows (16 rows: 8 products a byte of KV, a tenth of what the tensor
// cores could do); the tensor cores with 64 full rows.
// Expect sm_80 attention_*: HMMA LDGSTS LDSM
// Expect sm_90 attention_*: HMMA LDGSTS LDSM
#include "attention.cuh"

#define ATTENTION(D, TYPE, FP8, R)                                                         \
  KERNEL __launch_bounds__(128) attention_d##D##_##TYPE##_r##R(ATTENTION_PARAMETERS) {     \
    DYN_SMEM(unsigned char, smem);                                                         \
    const AttentionArgs args = ATTENTION_ARGUMENTS;                                        \
    Attention<D, FP8, R>(args, smem).run();                                                \
  }                                                                                        \
  TWIN_EXPORT(attention_d##D##_##TYPE##_r##R)
#define ATTENTION_EACH(D, LARGE)       \
  ATTENTION(D, bf16, false, 16)        \
  ATTENTION(D, bf16, false, LARGE)     \
  ATTENTION(D, e4m3, true, 16)         \
  ATTENTION(D, e4m3, true, LARGE)

ATTENTION_EACH(64, 64)
ATTENTION_EACH(80, 64)
ATTENTION_EACH(96, 64)
ATTENTION_EACH(128, 64)
ATTENTION_EACH(256, 32)
