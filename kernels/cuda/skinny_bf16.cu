// Skinny matrix product with bf16 weights [rows, cols] as they lie; see skinny.cuh.
// Bytes: 2 * rows * cols, and per token 2 * cols + 2 * rows. Bound: memory. cols % 8 == 0.
// Expect sm_80 skinny_*: HMMA LDGSTS
// Expect sm_90 skinny_*: HMMA LDGSTS ACQBULK PREEXIT
#include "skinny.cuh"

SKINNY_KERNEL(skinny_bf16_8, Bf16Weights, 1, 1, 1, 4, 4, 36864)
SKINNY_KERNEL(skinny_bf16_16, Bf16Weights, 1, 2, 1, 4, 4, 40960)
SKINNY_KERNEL(skinny_bf16_32, Bf16Weights, 2, 4, 1, 3, 3, 61440)
SKINNY_KERNEL(skinny_bf16_64, Bf16Weights, 2, 8, 1, 3, 2, 73728)
