// Skinny matrix product with 4-bit weights, packed as skinny.cuh says, a scale and an offset per group: GGUF's
// Q4_0, Q4_1 and Q4_K, GPTQ's and AWQ's formats all come to this.
// Bytes: rows * cols * (1/2 + 4 / group), and per token 2 * cols + 2 * rows. Bound: memory. cols % 8 == 0.
// Expect sm_80 skinny_*: HMMA LDGSTS
// Expect sm_90 skinny_*: HMMA LDGSTS ACQBULK PREEXIT
#include "skinny.cuh"

SKINNY_KERNEL(skinny_w4_8, Int4Weights, 2, 1, 2, 4, 4, 49152)
SKINNY_KERNEL(skinny_w4_16, Int4Weights, 2, 2, 2, 4, 4, 57344)
SKINNY_KERNEL(skinny_w4_32, Int4Weights, 2, 4, 1, 6, 3, 55296)
SKINNY_KERNEL(skinny_w4_64, Int4Weights, 2, 8, 1, 4, 2, 53248)
