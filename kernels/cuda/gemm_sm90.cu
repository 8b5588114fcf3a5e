// C = A Bᵀ (· scales) (+ bias) (+ residual) on Hopper: bf16, or e4m3 with a scale per row of A and of B; f32 sums.
//
// A [M, lda] and B [N, K] through tensor maps (boxes of 128 bytes x 128 rows, and x BN rows; 128-byte swizzle), C [M, ldc]
// bf16 or f32; N and ldc are multiples of 8. Persistent: grid (SMs), 384 threads. Warpgroup 0 keeps a ring of stages (128 bytes of k) full with the
// tensor memory accelerator; warpgroups 1 and 2 multiply 64 rows x BN columns each with wgmma, one group in flight.
// A sum runs over K in order in one accumulator, whatever BN, so bits depend neither on M nor on the tile. (For e4m3 the
// tensor core itself keeps about 14 bits of the sum.)
// Bytes and bound as in gemm_bf16.cu: the tensor cores (bf16 990, e4m3 1979 TFLOP/s on an H100 SXM).
// Targets: sm_90a
// Expect sm_90a gemm_bf16_*: HGMMA UTMALDG
// Expect sm_90a gemm_e4m3_*: QGMMA UTMALDG
#include "gemm.cuh"
#include "gpu90.cuh"

template <bool FP8, int BN, int STAGES> struct HopperGemm {
  static constexpr int BM = 128, STEP = FP8 ? 128 : 64;  // rows; k a stage
  static constexpr int A_BYTES = BM * 128, STAGE = A_BYTES + BN * 128, BARRIERS = STAGES * STAGE;

  static __device__ __forceinline__ void produce(const TensorMap& a, const TensorMap& b, const GemmArgs& g, unsigned char* smem,
                                                 uint64_t* full, uint64_t* empty) {
    int tiles_m = ceil_div(g.m, BM), tiles_n = ceil_div(g.n, BN), steps = ceil_div(g.k, STEP), round = 0, stage = 0;
    for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
      TileAt at = place_tile(tile, tiles_m, tiles_n);
      for (int step = 0; step < steps; step++) {
        mbar_wait(empty + stage, (round & 1) ^ 1);
        mbar_expect_tx(full + stage, STAGE);
        tma_load_2d(smem + stage * STAGE, &a, full + stage, step * STEP, at.m * BM);
        tma_load_2d(smem + stage * STAGE + A_BYTES, &b, full + stage, step * STEP, at.n * BN);
        if (++stage == STAGES) stage = 0, round++;
      }
    }
  }

  static __device__ __forceinline__ void consume(const GemmArgs& g, unsigned char* smem, uint64_t* full, uint64_t* empty) {
    int tiles_m = ceil_div(g.m, BM), tiles_n = ceil_div(g.n, BN), steps = ceil_div(g.k, STEP), round = 0, stage = 0;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, half = threadIdx.x / 128 - 1;
    for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
      TileAt at = place_tile(tile, tiles_m, tiles_n);
      float d[BN / 2];
      int before = 0;
      for (int step = 0; step < steps; step++) {
        mbar_wait(full + stage, round & 1);
        uint64_t da = desc_sw128(smem + stage * STAGE + half * 64 * 128), db = desc_sw128(smem + stage * STAGE + A_BYTES);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++) {  // 32 bytes of k each
          if constexpr (FP8) wgmma_e4m3(d, da + i * 2, db + i * 2, step + i > 0);
          else wgmma_bf16(d, da + i * 2, db + i * 2, step + i > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();  // the stage before is read
        if (step && lane == 0) mbar_arrive(empty + before);
        before = stage;
        if (++stage == STAGES) stage = 0, round++;
      }
      wgmma_wait<0>();
      if (lane == 0) mbar_arrive(empty + before);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int row = at.m * BM + half * 64 + warp * 16 + (lane >> 2) + i * 8;
        float scale = FP8 && row < g.m ? g.a_scale[row] : 1.f;
#pragma unroll
        for (int q = 0; q < BN / 8; q += 4)
          store_quad<false>(g, row, at.n * BN + q * 8, [&](int j, int e) {
            float x = d[(q + j) * 4 + i * 2 + e];
            int n = at.n * BN + (q + j) * 8 + (lane & 3) * 2 + e;
            return FP8 ? x * (scale * (n < g.n ? g.b_scale[n] : 0.f)) : x;
          });
      }
    }
  }

  static __device__ __forceinline__ void run(const TensorMap& a, const TensorMap& b, const GemmArgs& g) {
    DYN_SMEM(unsigned char, smem);
    uint64_t *full = (uint64_t*)(smem + BARRIERS), *empty = full + STAGES;
    if (threadIdx.x == 0) {
      for (int s = 0; s < STAGES; s++) mbar_init(full + s, 1), mbar_init(empty + s, 8);
      mbar_fence_init();
      tma_prefetch_map(&a);
      tma_prefetch_map(&b);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
      fewer_registers<40>();
      if (threadIdx.x == 0) produce(a, b, g, smem, full, empty);
    } else {
      more_registers<232>();
      consume(g, smem, full, empty);
    }
  }
};

// a and b are null: the maps say where they are.
#define HOPPER_GEMM(name, ...)                                                                           \
  KERNEL __launch_bounds__(384, 1) name(TMAP_PARAM a_map, TMAP_PARAM b_map, GEMM_PARAMETERS) {           \
    const GemmArgs args = GEMM_ARGUMENTS;                                                                \
    HopperGemm<__VA_ARGS__>::run(a_map, b_map, args);                                                    \
  }                                                                                                      \
  TWIN_EXPORT(name)
HOPPER_GEMM(gemm_bf16_sm90_128x128, false, 128, 6)
HOPPER_GEMM(gemm_bf16_sm90_128x256, false, 256, 4)
HOPPER_GEMM(gemm_e4m3_sm90_128x128, true, 128, 6)
HOPPER_GEMM(gemm_e4m3_sm90_128x256, true, 256, 4)
