// What the GEMM kernels share: arguments, the order of tiles, writing results.
#pragma once
#include "gpu.cuh"

// C = A Bᵀ (· scales) (+ bias) (+ residual).
struct GemmArgs {
  const void* a;         // [m, lda]; unused where a tensor map describes it
  const void* b;         // [n, k]; likewise
  const float* a_scale;  // e4m3: one per row of A; else null
  const float* b_scale;  // e4m3: one per row of B; else null
  const bf16* bias;      // [n] or null
  const void* residual;  // like C, may be C; or null
  void* c;               // [m, ldc], bf16 or f32
  int m, n, k, lda, ldc;
  int c_is_f32;
};
#define GEMM_PARAMETERS                                                                                             \
  const void *a, const void *b, const float *a_scale, const float *b_scale, const bf16 *bias, const void *residual, \
      void *c, int m, int n, int k, int lda, int ldc, int c_is_f32
#define GEMM_ARGUMENTS {a, b, a_scale, b_scale, bias, residual, c, m, n, k, lda, ldc, c_is_f32}

// Row and column of a tile: columns of GROUP tile rows, so that what runs together shares A and B in L2.
struct TileAt {
  int m, n;
};
DEV TileAt place_tile(int tile, int tiles_m, int tiles_n) {
  constexpr int GROUP = 8;
  int first = tile / (GROUP * tiles_n) * GROUP, in = tile % (GROUP * tiles_n);
  int rows = tiles_m - first < GROUP ? tiles_m - first : GROUP;
  return {first + in % rows, in / rows};
}

DEV void store_one(const GemmArgs& g, int m, int n, float x) {
  if (m >= g.m || n >= g.n) return;
  uint64_t at = (uint64_t)m * g.ldc + n;
  if (g.bias) x += bf2f(g.bias[n]);
  if (g.c_is_f32) {
    if (g.residual) x += ((const float*)g.residual)[at];
    ((float*)g.c)[at] = x;
  } else {
    if (g.residual) x += bf2f(((const bf16*)g.residual)[at]);
    ((bf16*)g.c)[at] = f2bf(x);
  }
}

DEV void add_bf16(float (&x)[8], const void* from) {
  uint4 r = *(const uint4*)from;
  x[0] += lo2f(r.x), x[1] += hi2f(r.x), x[2] += lo2f(r.y), x[3] += hi2f(r.y);
  x[4] += lo2f(r.z), x[5] += hi2f(r.z), x[6] += lo2f(r.w), x[7] += hi2f(r.w);
}

// Eight neighbouring elements of row m, from column n (a multiple of 8) on. C, bias and residual start at multiples of
// 16 bytes; n and ldc are multiples of 8 unless ANY.
template <bool ANY> DEV void store_eight(const GemmArgs& g, int m, int n, float (&x)[8]) {
  if (m >= g.m || n >= g.n) return;
  if (ANY && (n + 8 > g.n || g.ldc % 8)) {
#pragma unroll
    for (int i = 0; i < 8; i++) store_one(g, m, n + i, x[i]);
    return;
  }
  uint64_t at = (uint64_t)m * g.ldc + n;
  if (g.bias) add_bf16(x, g.bias + n);
  if (g.c_is_f32) {
    if (g.residual) {
      float4 a = ((const float4*)((const float*)g.residual + at))[0], b = ((const float4*)((const float*)g.residual + at))[1];
      x[0] += a.x, x[1] += a.y, x[2] += a.z, x[3] += a.w, x[4] += b.x, x[5] += b.y, x[6] += b.z, x[7] += b.w;
    }
    float4* c = (float4*)((float*)g.c + at);
    c[0] = {x[0], x[1], x[2], x[3]};
    c[1] = {x[4], x[5], x[6], x[7]};
  } else {
    if (g.residual) add_bf16(x, (const bf16*)g.residual + at);
    *(uint4*)((bf16*)g.c + at) = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])};
  }
}

// x[j] of lane i of a quad becomes x[i] of its lane j.
DEV void transpose_quad(float (&x)[4]) {
  int lane = threadIdx.x;
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (!(j & bit)) {
        float got = __shfl_xor_sync(ALL_LANES, lane & bit ? x[j] : x[j | bit], bit);
        if (lane & bit) x[j] = got;
        else x[j | bit] = got;
      }
}

// Row m of four n8 tiles of accumulators, from column n on: `at(j, i)` is this lane's element i (0, 1) in tile j. Each
// lane of a quad writes one tile's eight.
template <bool ANY, class F> DEV void store_quad(const GemmArgs& g, int m, int n, F at) {
  float x[2][4], row[8];
#pragma unroll
  for (int i = 0; i < 8; i++) x[i & 1][i >> 1] = at(i >> 1, i & 1);
  transpose_quad(x[0]);
  transpose_quad(x[1]);
#pragma unroll
  for (int i = 0; i < 8; i++) row[i] = x[i & 1][i >> 1];
  store_eight<ANY>(g, m, n + (threadIdx.x & 3) * 8, row);
}
