// Embedding gather: out[row] = scale * table[tokens[row]].
//
// tokens [rows] u32; table [vocabulary, columns] bf16; out [rows, columns] bf16; columns % 8 == 0. A token of 2^31 + i is
// drawn[i] of [draws] u32: the host may not know it yet.
// A token outside the vocabulary gives zeros: a padded row of a captured graph may hold anything.
// Bytes: rows * (4 + 4 * columns). Bound: memory. One block a row, 16 bytes a thread and turn.
// Expect sm_80 *: LDG.128
// Expect sm_90 *: LDG.128
#include "vector.cuh"

KERNEL __launch_bounds__(256)
    embed(const uint32_t* tokens, const uint32_t* drawn, const bf16* table, bf16* out, uint32_t draws,
          uint32_t vocabulary, uint32_t columns, float scale) {
  uint32_t token = tokens[blockIdx.x];
  if (token >> 31 && (token & 0x7fffffff) < draws) token = drawn[token & 0x7fffffff];
  const bf16* from = table + (uint64_t)token * columns;
  bf16* to = out + (uint64_t)blockIdx.x * columns;
  for (uint32_t i = threadIdx.x * 8; i < columns; i += blockDim.x * 8) {
    Eight e = {};
    if (token < vocabulary) e = load8(from + i);
#pragma unroll
    for (int j = 0; j < 8; j++) e.x[j] *= scale;
    store8(to + i, e);
  }
}
TWIN_EXPORT(embed)
