// C = A Bᵀ (+ bias) (+ residual), bf16 in, f32 sums, with mma.sync (sm_80 and up).
//
// A [M, lda] bf16, B [N, K] bf16, C [M, ldc] bf16 or f32; K and lda are multiples of 8. grid (tiles), 128 threads.
// A sum runs over K in steps of 16, one accumulator, whatever the tile: every tile gives the same bits, so a row's
// result depends neither on M nor on the rows beside it.
// Bytes: 2 (M K + N K) + M N * (2 or 4), more where a tile's operands leave L2. Bound: the tensor cores from M of
// about 300 (H100: 990 TFLOP/s, 3.35 TB/s); below it reading B.
//   128x128  4 warps, 64 x 64 each                 large M; n and ldc multiples of 8
//    64x64   4 warps, 32 x 32 each                 M of 17 to about 500 where 128 x 128 leaves SMs idle
//    16x32   4 warps, 16 x 8 each, K in steps of 128  M <= 16: many blocks, each reading 32 rows of B
// Expect sm_80 gemm_*: HMMA LDGSTS LDSM
// Expect sm_90 gemm_*: HMMA LDGSTS LDSM
#include "gemm.cuh"

// WM x WN warps; a row of a stage is TK elements in 16-byte units, swizzled so that eight rows of a unit lie in
// different banks.
template <int TM, int TN, int TK, int WM, int WN, int STAGES, bool ANY_N = true> struct GemmTile {
  static constexpr int THREADS = WM * WN * 32, UNITS = TK / 8;
  static constexpr int MI = TM / WM / 16, NI = TN / WN / 8;  // a warp's m16 and n8 tiles
  static constexpr int A_BYTES = TM * TK * 2, STAGE = (TM + TN) * TK * 2;

  static __device__ __forceinline__ int place(int row, int unit) {
    int turn = UNITS >= 8 ? row & 7 : row >> 1 & 3;
    return row * TK * 2 + (unit ^ turn) * 16;
  }

  template <int ROWS>
  static __device__ __forceinline__ void load(unsigned char* to, const bf16* from, int row0, int rows, int stride, int k0, int k) {
    static_assert(ROWS * UNITS % THREADS == 0, "whole passes");
#pragma unroll
    for (int i = 0; i < ROWS * UNITS / THREADS; i++) {
      int c = threadIdx.x + i * THREADS, r = c / UNITS, u = c % UNITS;
      bool real = row0 + r < rows && k0 + u * 8 < k;
      cp_async16(to + place(r, u), from + (real ? (uint64_t)(row0 + r) * stride + k0 + u * 8 : 0), real);
    }
  }

  static __device__ __forceinline__ void multiply(const unsigned char* a, const unsigned char* b, float (&acc)[MI][NI][4]) {
    constexpr int PAIR = NI == 1 ? 2 : 1;  // steps of 16 that one ldmatrix of B serves
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, wm = warp / WN * (MI * 16), wn = warp % WN * (NI * 8);
#pragma unroll
    for (int kk = 0; kk < TK / 16; kk += PAIR) {
      uint32_t fa[PAIR][MI][4];
#pragma unroll
      for (int i = 0; i < MI * PAIR; i++)
        ldsm_x4(fa[i / MI][i % MI], a + place(wm + i % MI * 16 + (lane & 15), (kk + i / MI) * 2 + (lane >> 4)));
      if constexpr (NI == 1) {
        uint32_t fb[4];
        ldsm_x4(fb, b + place(wn + (lane & 7), kk * 2 + (lane >> 3)));
#pragma unroll
        for (int i = 0; i < MI; i++) mma_bf16(acc[i][0], fa[0][i], fb[0], fb[1]), mma_bf16(acc[i][0], fa[1][i], fb[2], fb[3]);
      } else {
#pragma unroll
        for (int j = 0; j < NI; j += 2) {
          uint32_t fb[4];
          ldsm_x4(fb, b + place(wn + j * 8 + (lane & 7) + (lane >> 4) * 8, kk * 2 + (lane >> 3 & 1)));
#pragma unroll
          for (int i = 0; i < MI; i++) mma_bf16(acc[i][j], fa[0][i], fb[0], fb[1]), mma_bf16(acc[i][j + 1], fa[0][i], fb[2], fb[3]);
        }
      }
    }
  }

  static __device__ __forceinline__ void run(const GemmArgs& g) {
    DYN_SMEM(unsigned char, smem);
    TileAt at = place_tile(blockIdx.x, ceil_div(g.m, TM), ceil_div(g.n, TN));
    int m0 = at.m * TM, n0 = at.n * TN, steps = ceil_div(g.k, TK);
    auto fetch = [&](int step) {
      unsigned char* to = smem + step % STAGES * STAGE;
      if (step < steps) {
        load<TM>(to, (const bf16*)g.a, m0, g.m, g.lda, step * TK, g.k);
        load<TN>(to + A_BYTES, (const bf16*)g.b, n0, g.n, g.k, step * TK, g.k);
      }
      cp_async_commit();
    };
    float acc[MI][NI][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fetch(s);
    for (int step = 0; step < steps; step++) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();
      fetch(step + STAGES - 1);
      const unsigned char* stage = smem + step % STAGES * STAGE;
      multiply(stage, stage + A_BYTES, acc);
    }
    cp_async_wait<0>();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int m = m0 + warp / WN * (MI * 16) + (lane >> 2), n = n0 + warp % WN * (NI * 8);
#pragma unroll
    for (int i = 0; i < MI * 2; i++) {
      int row = m + i * 8;
      if constexpr (NI == 1) {
        store_one(g, row, n + (lane & 3) * 2, acc[i / 2][0][i % 2 * 2]);
        store_one(g, row, n + (lane & 3) * 2 + 1, acc[i / 2][0][i % 2 * 2 + 1]);
      } else {
#pragma unroll
        for (int q = 0; q < NI; q += 4) store_quad<ANY_N>(g, row, n + q * 8, [&](int j, int e) { return acc[i / 2][q + j][i % 2 * 2 + e]; });
      }
    }
  }
};

#define GEMM(name, ...)                                     \
  KERNEL __launch_bounds__(128) name(GEMM_PARAMETERS) {     \
    const GemmArgs args = GEMM_ARGUMENTS;                   \
    GemmTile<__VA_ARGS__>::run(args);                       \
  }                                                         \
  TWIN_EXPORT(name)
GEMM(gemm_bf16_128x128, 128, 128, 32, 2, 2, 4, false)
GEMM(gemm_bf16_64x64, 64, 64, 64, 2, 2, 4)
GEMM(gemm_bf16_16x32, 16, 32, 128, 1, 4, 4)
