// Skinny matrix product with int8 weights, packed as skinny.cuh says: a scale per row, or also one per group.
// Bytes: rows * cols * (1 + 4 / group), and per token 2 * cols + 2 * rows. Bound: memory. cols % 8 == 0.
// Expect sm_80 skinny_*: HMMA LDGSTS
// Expect sm_90 skinny_*: HMMA LDGSTS ACQBULK PREEXIT
#include "skinny.cuh"

using Rows = ByteWeights<false, int8_to_bf16>;
using Groups = ByteWeights<true, int8_to_bf16>;

SKINNY_KERNEL(skinny_w8_8, Rows, 1, 1, 2, 4, 4, 40960)
SKINNY_KERNEL(skinny_w8_16, Rows, 1, 2, 2, 4, 4, 49152)
SKINNY_KERNEL(skinny_w8_32, Rows, 2, 4, 1, 4, 3, 49152)
SKINNY_KERNEL(skinny_w8_grouped_8, Groups, 1, 1, 2, 4, 4, 45056)
SKINNY_KERNEL(skinny_w8_grouped_16, Groups, 1, 2, 2, 4, 4, 53248)
SKINNY_KERNEL(skinny_w8_grouped_32, Groups, 2, 4, 1, 4, 3, 53248)
SKINNY_KERNEL(skinny_w8_64, Rows, 2, 8, 1, 4, 2, 65536)
SKINNY_KERNEL(skinny_w8_grouped_64, Groups, 2, 8, 1, 4, 2, 69632)
