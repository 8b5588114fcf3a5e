// Skinny matrix product with e4m3 weights, packed as skinny.cuh says, with a scale per row. Converted in
// registers to bf16, which holds them exactly: it needs no fp8 instructions, and activations stay bf16.
// Bytes: rows * cols, and per token 2 * cols + 2 * rows. Bound: memory. cols % 8 == 0.
// Expect sm_80 skinny_*: HMMA LDGSTS
// Expect sm_90 skinny_*: HMMA LDGSTS ACQBULK PREEXIT
#include "skinny.cuh"

using Fp8 = ByteWeights<false, e4m3_to_bf16>;

SKINNY_KERNEL(skinny_fp8_8, Fp8, 1, 1, 2, 4, 4, 40960)
SKINNY_KERNEL(skinny_fp8_16, Fp8, 1, 2, 2, 4, 4, 49152)
SKINNY_KERNEL(skinny_fp8_32, Fp8, 2, 4, 1, 4, 3, 49152)
SKINNY_KERNEL(skinny_fp8_64, Fp8, 2, 8, 1, 4, 2, 65536)
