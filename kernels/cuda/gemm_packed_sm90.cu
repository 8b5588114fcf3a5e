// C = A Wᵀ (+ bias) (+ residual) on Hopper: bf16 activations, weights of 8 or 4 bits as skinny.cuh packs them.
//
// A [M, lda] bf16 through a tensor map (boxes of 64 k x BM rows, 128-byte swizzle); W [N, K] packed, so that decoding and
// prefill read the same bytes; C [M, ldc] bf16 or f32; N and ldc are multiples of 8.
// wgmma takes the weights as its 64 rows, from registers: a warp reads its 16 rows' codes of 64 k, brings them into the
// order of k (a transposition within quads), makes them bf16, and the next codes are made while the tensor cores
// multiply. Scales of rows come last, so those products are exact; group scales come before, and a weight is rounded to
// bf16 once. Persistent: grid (SMs), 384 threads; warpgroup 0 brings activations and codes, 1 and 2 take 64 weight rows
// x BM tokens each.
// Bytes: M K * 2 + N K * (1 or 1/2, and 4 / group) + C. Bound: the tensor cores from M of about 150 (H100: 990 TFLOP/s).
// Targets: sm_90a
// Expect sm_90a gemm_*: HGMMA UTMALDG UBLKCP
#include "gemm.cuh"
#include "gpu90.cuh"

// A kind of weights: CODES bytes hold 16 rows of 64 k. `words` gives a lane's codes of 32 k, two neighbouring k of rows
// g and g + 8 in each; `pair` the two of one of these rows as bf16.
struct Bytes {
  static constexpr int CODES = 1024;
  static constexpr bool OFFSET = false;
  static __device__ __forceinline__ void words(uint32_t (&w)[4], const unsigned char* codes, int j) {
    uint4 v = *(const uint4*)(codes + j * 512);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  }
};
struct Int8 : Bytes {
  // 128 + the low seven bits; then less 128, or 256 if negative.
  static __device__ __forceinline__ uint32_t pair(uint32_t w, int row) {
    uint32_t v = w >> 8 * row;
    return fma_bf16x2((v & 0x007f007fu) | 0x43004300u, 0x3f803f80u, (v & 0x00800080u) | 0xc300c300u);
  }
};
struct E4m3 : Bytes {
  // The bits moved to bf16's fields read as x · 2^-120; NaN is not kept.
  static __device__ __forceinline__ uint32_t pair(uint32_t w, int row) {
    uint32_t v = w >> 8 * row;
    return fma_bf16x2((v & 0x00800080u) << 8 | (v & 0x007f007fu) << 4, 0x7b807b80u, 0x80008000u);
  }
};
struct Int4 {
  static constexpr int CODES = 512;
  static constexpr bool OFFSET = true;  // pairs are 128 + code
  static __device__ __forceinline__ void words(uint32_t (&w)[4], const unsigned char* codes, int j) {
    uint2 v = *(const uint2*)(codes + j * 8);
    w[0] = v.x & 0x00ff00ffu, w[1] = v.x >> 8 & 0x00ff00ffu, w[2] = v.y & 0x00ff00ffu, w[3] = v.y >> 8 & 0x00ff00ffu;
  }
  static __device__ __forceinline__ uint32_t pair(uint32_t w, int row) { return (w >> 4 * row & 0x000f000fu) | 0x43004300u; }
};

// x[j] of lane i of a quad becomes x[i] of its lane j.
DEV void transpose_words(uint32_t (&x)[4]) {
  int lane = threadIdx.x;
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (!(j & bit)) {
        uint32_t got = __shfl_xor_sync(ALL_LANES, lane & bit ? x[j] : x[j | bit], bit);
        if (lane & bit) x[j] = got;
        else x[j | bit] = got;
      }
}

// x[j] of the i-th of the eight lanes that share lane % 4 becomes x[i] of the j-th.
DEV void transpose_eight(float (&x)[8]) {
  int lane = threadIdx.x >> 2;
#pragma unroll
  for (int bit = 1; bit <= 4; bit *= 2)
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (!(j & bit)) {
        float got = __shfl_xor_sync(ALL_LANES, lane & bit ? x[j] : x[j | bit], bit * 4);
        if (lane & bit) x[j] = got;
        else x[j | bit] = got;
      }
}

// Group scales, [N / 16][group / 2][g][group & 1][row g, row g + 8]: pairs of f16, scale and offset.
struct Groups {
  const uint4* scales;
  int log2;  // of a group's k, at least 5
};

template <class W, bool GROUPED, int BM, int STAGES> struct PackedGemm {
  static constexpr int BN = 128, STEP = 64, CODES = W::CODES;  // weight rows; k a stage
  static constexpr int A_BYTES = BM * 128, STAGE = A_BYTES + BN / 16 * CODES, BARRIERS = STAGES * STAGE;

  static __device__ __forceinline__ void produce(const TensorMap& a, const GemmArgs& g, unsigned char* smem, uint64_t* full,
                                                 uint64_t* empty) {
    int tiles_m = ceil_div(g.m, BM), tiles_n = ceil_div(g.n, BN), steps = ceil_div(g.k, STEP), round = 0, stage = 0;
    for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
      TileAt at = place_tile(tile, tiles_m, tiles_n);
      int first = at.n * (BN / 16), rest = ceil_div(g.n, 16) - first, count = rest < BN / 16 ? rest : BN / 16;
      for (int step = 0; step < steps; step++) {
        unsigned char* to = smem + stage * STAGE;
        mbar_wait(empty + stage, (round & 1) ^ 1);
        mbar_expect_tx(full + stage, A_BYTES + count * CODES);
        tma_load_2d(to, &a, full + stage, step * STEP, at.m * BM);
        for (int i = 0; i < count; i++)
          bulk_load(to + A_BYTES + i * CODES, (const unsigned char*)g.b + ((uint64_t)(first + i) * steps + step) * CODES, CODES,
                    full + stage);
        if (++stage == STAGES) stage = 0, round++;
      }
    }
  }

  // Two weights of a row, from their codes.
  static __device__ __forceinline__ uint32_t scaled(uint32_t pair, uint32_t scale) {
    if (!GROUPED) return pair;
    float s = lo_f16(scale), o = hi_f16(scale);
    if (W::OFFSET) o = fmaf(-128.f, s, o);
    return W::OFFSET ? pack_bf16(fmaf(lo2f(pair), s, o), fmaf(hi2f(pair), s, o)) : pack_bf16(lo2f(pair) * s, hi2f(pair) * s);
  }

  // The A fragments of four k16 steps from a lane's codes; word i of lane t is inputs 8t + 2i, 8t + 2i + 1.
  static __device__ __forceinline__ void fragments(uint32_t (&f)[4][4], const unsigned char* codes, uint4 scales, int step, int log2) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      bool odd = GROUPED && (step * STEP + j * 32 >> log2 & 1);
      uint32_t w[4], scale[2] = {odd ? scales.z : scales.x, odd ? scales.w : scales.y};
      W::words(w, codes, j);
      transpose_words(w);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int row = 0; row < 2; row++) f[j * 2 + i / 2][i % 2 * 2 + row] = scaled(W::pair(w[i], row), scale[row]);
    }
  }

  struct Ring {
    unsigned char* smem;
    uint64_t *full, *empty;
    int stage, round, before;
    Groups groups;
    const uint4* row_scales;  // of this lane's rows: a unit has two groups
    uint4 scales;             // of the next step

    __device__ __forceinline__ void load_scales(int step) {
      if (GROUPED) scales = __ldg(row_scales + (step * STEP >> groups.log2) / 2 * 8);
    }

    // One stage: its codes become `f` while the stage before is still being multiplied.
    __device__ __forceinline__ void multiply(float (&d)[BM / 2], uint32_t (&f)[4][4], int step, int steps) {
      int lane = threadIdx.x & 31, tile = (threadIdx.x >> 5) - 4;
      mbar_wait(full + stage, round & 1);
      unsigned char* at = smem + stage * STAGE;
      fragments(f, at + A_BYTES + tile * CODES + lane * 16, scales, step, groups.log2);
      load_scales(step + 1 < steps ? step + 1 : step);
      uint64_t b = desc_sw128(at);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; i++) wgmma_bf16(d, f[i], b + i * 2, step + i > 0);
      wgmma_commit();
      wgmma_wait<1>();  // the stage before is read
      if (step && lane == 0) mbar_arrive(empty + before);
      before = stage;
      if (++stage == STAGES) stage = 0, round++;
    }
  };

  static __device__ __forceinline__ void consume(const GemmArgs& g, Groups groups, unsigned char* smem, uint64_t* full,
                                                 uint64_t* empty) {
    int tiles_m = ceil_div(g.m, BM), tiles_n = ceil_div(g.n, BN), steps = ceil_div(g.k, STEP);
    int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) - 4;
    Ring ring = {smem, full, empty, 0, 0, 0, groups, nullptr, {0, 0, 0, 0}};
    int units = ((steps * STEP + (1 << groups.log2) - 1 >> groups.log2) + 1) / 2;
    for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
      TileAt at = place_tile(tile, tiles_m, tiles_n);
      float d[BM / 2];
      uint32_t even[4][4], odd[4][4];  // one is read by the tensor cores while the other is made
      int step = 0, rows = at.n * (BN / 16) + warp, last = ceil_div(g.n, 16) - 1;
      ring.row_scales = groups.scales + ((int64_t)(rows < last ? rows : last) * units * 8 + (lane >> 2));
      ring.load_scales(0);
      for (; step + 1 < steps; step += 2) ring.multiply(d, even, step, steps), ring.multiply(d, odd, step + 1, steps);
      if (step < steps) ring.multiply(d, even, step, steps);
      wgmma_wait<0>();
      if (lane == 0) mbar_arrive(empty + ring.before);
      int n0 = at.n * BN + warp * 16, n = n0 + (lane >> 2);
      float scales[2] = {n < g.n ? g.b_scale[n] : 0.f, n + 8 < g.n ? g.b_scale[n + 8] : 0.f};
#pragma unroll
      for (int q = 0; q < BM / 8; q += 4)  // eight tokens of a lane: two of each of four n8 tiles
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float x[8];
#pragma unroll
          for (int i = 0; i < 8; i++) x[i] = d[(q + i / 2) * 4 + h * 2 + i % 2] * scales[h];
          transpose_eight(x);
          int i = lane >> 2, token = (q + i / 2) * 8 + (lane & 3) * 2 + i % 2;
          store_eight<false>(g, at.m * BM + token, n0 + h * 8, x);
        }
    }
  }

  static __device__ __forceinline__ void run(const TensorMap& a, const GemmArgs& g, Groups groups) {
    DYN_SMEM(unsigned char, smem);
    uint64_t *full = (uint64_t*)(smem + BARRIERS), *empty = full + STAGES;
    if (threadIdx.x == 0) {
      for (int s = 0; s < STAGES; s++) mbar_init(full + s, 1), mbar_init(empty + s, 8);
      mbar_fence_init();
      tma_prefetch_map(&a);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
      fewer_registers<40>();
      if (threadIdx.x == 0) produce(a, g, smem, full, empty);
    } else {
      more_registers<232>();
      consume(g, groups, smem, full, empty);
    }
  }
};

// a is null: the map says where it is.
#define PACKED_GEMM(name, ...)                                                                                          \
  KERNEL __launch_bounds__(384, 1) name(TMAP_PARAM a_map, GEMM_PARAMETERS, const uint4* group_scales, int group_log2) { \
    const GemmArgs args = GEMM_ARGUMENTS;                                                                               \
    PackedGemm<__VA_ARGS__>::run(a_map, args, {group_scales, group_log2});                                              \
  }                                                                                                                     \
  TWIN_EXPORT(name)
#define BOTH(kind, ...)                                      \
  PACKED_GEMM(gemm_##kind##_sm90_128x128, __VA_ARGS__, 128, 6) \
  PACKED_GEMM(gemm_##kind##_sm90_256x128, __VA_ARGS__, 256, 5)
BOTH(w8, Int8, false)
BOTH(w8_grouped, Int8, true)
BOTH(w4_grouped, Int4, true)
BOTH(fp8, E4m3, false)
