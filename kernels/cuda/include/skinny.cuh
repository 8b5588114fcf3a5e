// Skinny matrix product: out[token][row] = sum over k of x[token][k] * W[row][k], for few tokens (a decode step).
// Bound: the bytes of W, each read once; everything here serves to keep enough of them in flight.
//
// One instruction for all token counts: mma m16n8k16 with weights as m16 and tokens as n8. A block of four warps
// takes 64 * R rows, NT * 8 tokens and one of `splits` runs of the K dimension, through a ring of cp.async stages.
// The partial sums of the runs go to `partial`; the last block of a tile to arrive adds them in the order of K.
// So a number depends on its row, its token and `splits` alone: never on how many tokens stand beside it. With
// `splits` chosen from the matrix's shape the product is batch-invariant, and larger batches are more token tiles.
//
// K goes in steps of 64. Within a step, lane 4g + t of a warp holds the inputs 32j + 8t .. + 8 (j = 0, 1) of rows
// g and g + 8 and of token g: 16 contiguous bytes of a bf16 row, so neither operand needs ldmatrix, and plain
// row-major weights and activations are read as they lie. The mma of (j, h) takes the inputs 32j + 8t + 4h .. + 4.
//
// Packed weights (int8, int4, e4m3) lie in this order: [row / 16][step][lane], a lane's bytes being
//   int8, e4m3: [j][16 bytes]; byte 8h + 4v + b is row g + 8 * (b & 1), input 32j + 8t + 4h + 2v + (b >> 1)
//   int4:       four words, word 2j + h; nibble i + 4p is row g + 8 * (i & 1), input 32j + 8t + 4h + 2 * (i >> 1) + p
// padded with zero codes to whole tiles. Group scales, [row / 16][group / 2][g][group & 1][row / 8 & 1], are pairs
// of f16, scale and offset: weight = row_scale * (scale * code + offset). A group is 32, 64, 128 ... inputs.
#pragma once
#include "vector.cuh"

constexpr int SKINNY_THREADS = 128, SKINNY_WARPS = 4;

struct Skinny {
  const void* weights;
  const uint4* group_scales;  // grouped weights only
  const float* row_scales;    // [rows], or null: 1
  const bf16* x;              // [tokens, cols], rows x_stride apart
  const bf16* bias;           // [rows], or null
  void* out;                  // [tokens, rows], rows out_stride apart: bf16, or f32 if out_f32
  float* partial;             // [splits][tokens][rows]; unused if splits == 1
  uint32_t* arrived;          // a zero per (row tile, token tile), left zero again
  uint32_t rows, cols, tokens, x_stride, out_stride, splits, group_log2, out_f32;
};

constexpr uint32_t BF16_ONES = 0x3f803f80;

// How a kind of weights is stored: BYTES of a 16-row tile's step, and its fragments for the two mma of (tile, j).
struct Bf16Weights {
  static constexpr int BYTES = 2048;
  static constexpr bool PACKED = false, GROUPED = false, OFFSET = false;
  DEV void fragments(uint32_t (&a)[2][4], const unsigned char* tile, int j, int lane) {
    int g = lane >> 2, chunk = (j * 4 + (lane & 3)) ^ (g & 1) << 2;  // as `Ring` swizzles them
    uint4 low = *(const uint4*)(tile + g * 128 + chunk * 16), high = *(const uint4*)(tile + (g + 8) * 128 + chunk * 16);
    a[0][0] = low.x, a[0][1] = high.x, a[0][2] = low.y, a[0][3] = high.y;
    a[1][0] = low.z, a[1][1] = high.z, a[1][2] = low.w, a[1][3] = high.w;
  }
};

// Bytes 0 and 2 of `v` as bf16 values. 0x4300 | low seven bits = 128 + them; then less 128, or 256 if negative.
DEV uint32_t int8_to_bf16(uint32_t v) {
  return fma_bf16x2((v & 0x007f007f) | 0x43004300, BF16_ONES, (v & 0x00800080) | 0xc300c300);
}

// Bytes 0 and 2 of `v`: e4m3 bits moved to bf16's fields are 2^120 too small. Exact; NaN is not kept.
DEV uint32_t e4m3_to_bf16(uint32_t v) {
  return fma_bf16x2((v & 0x00800080) << 8 | (v & 0x007f007f) << 4, 0x7b807b80, 0);
}

template <bool GROUPS, uint32_t (*CONVERT)(uint32_t)>
struct ByteWeights {
  static constexpr int BYTES = 1024;
  static constexpr bool PACKED = true, GROUPED = GROUPS, OFFSET = false;
  DEV void fragments(uint32_t (&a)[2][4], const unsigned char* tile, int j, int lane) {
    uint4 v = *(const uint4*)(tile + j * 512 + lane * 16);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      a[i >> 1][(i & 1) * 2] = CONVERT(word(v, i));
      a[i >> 1][(i & 1) * 2 + 1] = CONVERT(word(v, i) >> 8);
    }
  }
};

// Fragments are 128 + code; the sums of the inputs take the 128 out again, with the group's offset.
struct Int4Weights {
  static constexpr int BYTES = 512;
  static constexpr bool PACKED = true, GROUPED = true, OFFSET = true;
  DEV void fragments(uint32_t (&a)[2][4], const unsigned char* tile, int j, int lane) {
    uint2 v = *(const uint2*)(tile + lane * 16 + j * 8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      a[0][i] = (v.x >> 4 * i & 0x000f000f) | 0x43004300;
      a[1][i] = (v.y >> 4 * i & 0x000f000f) | 0x43004300;
    }
  }
};

// Sizes of a stage: STEPS steps of weights, their group scales, and of x.
template <class W, int R, int NT, int STEPS, int DEPTH>
struct Ring {
  static constexpr int TILES = SKINNY_WARPS * R, ROWS = TILES * 16, TOKENS = NT * 8;
  static constexpr int WEIGHTS = TILES * STEPS * W::BYTES, SCALES = W::GROUPED ? TILES * STEPS * 128 : 0;
  static constexpr int X = STEPS * TOKENS * 128, STAGE = WEIGHTS + SCALES + X;
  static_assert(W::PACKED || STEPS == 1, "row-major weights go step by step");

  // Starts the copies of a stage's weights and group scales: steps from..min(from + STEPS, end).
  DEV void load_weights(unsigned char* stage, const Skinny& a, uint32_t row0, uint32_t from, uint32_t end) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if constexpr (!W::PACKED) {
      if (from >= end) return;
#pragma unroll
      for (int i = 0; i < ROWS / 16; i++) {
        int row = (threadIdx.x >> 3) + i * 16, chunk = threadIdx.x & 7;
        uint32_t k = from * 64 + chunk * 8;
        const bf16* w = (const bf16*)a.weights + (uint64_t)(row0 + row) * a.cols;
        if (row0 + row < a.rows)
          cp_async16(stage + row * 128 + (chunk ^ (row & 1) << 2) * 16, w + (k < a.cols ? k : 0), k < a.cols);
      }
    } else {
      uint32_t steps = (a.cols + 63) / 64, tiles = (a.rows + 15) / 16;
      int chunks = (end - from < STEPS ? end - from : STEPS) * (W::BYTES / 512);
#pragma unroll
      for (int r = 0; r < R; r++) {
        uint32_t tile = row0 / 16 + warp * R + r;
        if (tile >= tiles || from >= end) continue;
        const unsigned char* w = (const unsigned char*)a.weights + ((uint64_t)tile * steps + from) * W::BYTES;
        unsigned char* to = stage + (warp * R + r) * STEPS * W::BYTES;
#pragma unroll
        for (int c = 0; c < STEPS * W::BYTES / 512; c++)
          if (c < chunks) cp_async16(to + c * 512 + lane * 16, w + c * 512 + lane * 16);
      }
      if constexpr (W::GROUPED) {
        uint32_t units = ((steps * 64 + (1u << a.group_log2) - 1 >> a.group_log2) + 1) / 2;
#pragma unroll
        for (int i = lane; i < R * STEPS * 8; i += 32) {
          uint32_t r = i / (STEPS * 8), s = i / 8 % STEPS, tile = row0 / 16 + warp * R + r, step = from + s;
          if (tile >= tiles || step >= end) continue;
          const uint4* unit = a.group_scales + ((uint64_t)tile * units + (step * 64 >> a.group_log2) / 2) * 8;
          cp_async16(stage + WEIGHTS + ((warp * R + r) * STEPS + s) * 128 + (i & 7) * 16, unit + (i & 7));
        }
      }
    }
  }

  // Starts the copies of a stage's activations; inputs past the last are zeros.
  DEV void load_x(unsigned char* stage, const Skinny& a, uint32_t token0, uint32_t from, uint32_t end) {
#pragma unroll
    for (int i = threadIdx.x; i < STEPS * TOKENS * 8; i += SKINNY_THREADS) {
      uint32_t token = i / 8 % TOKENS, step = from + i / (8 * TOKENS), chunk = i & 7, k = step * 64 + chunk * 8;
      if (token0 + token >= a.tokens || step >= end) continue;
      const bf16* x = a.x + (uint64_t)(token0 + token) * a.x_stride;
      cp_async16(stage + WEIGHTS + SCALES + (i >> 3) * 128 + (chunk ^ (token & 1) << 2) * 16, x + (k < a.cols ? k : 0),
                 k < a.cols);
    }
  }
};

// Accumulators of a warp: R row tiles, NT token tiles.
template <int R, int NT>
struct Sums {
  float at[R][NT][4];
};

// One step of one warp: its tiles' weights at `weights`, `tile_bytes` apart, with scales at `scales`.
template <class W, int R, int NT>
DEV void skinny_step(Sums<R, NT>& sums, const unsigned char* weights, int tile_bytes, const unsigned char* scales,
                     int scale_bytes, const unsigned char* x, uint32_t step, uint32_t group_log2) {
  int lane = threadIdx.x & 31, g = lane >> 2;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    uint4 b[NT];
    float inputs[W::OFFSET ? NT : 1][4] = {};  // sums of the 32 inputs, per token
#pragma unroll
    for (int n = 0; n < NT; n++) {
      b[n] = *(const uint4*)(x + (n * 8 + g) * 128 + ((j * 4 + (lane & 3)) ^ (g & 1) << 2) * 16);
      if constexpr (W::OFFSET) {
        const uint32_t ones[4] = {BF16_ONES, BF16_ONES, BF16_ONES, BF16_ONES};
        mma_bf16(inputs[n], ones, b[n].x, b[n].y);
        mma_bf16(inputs[n], ones, b[n].z, b[n].w);
      }
    }
    int odd = (step * 64 + j * 32 >> group_log2) & 1;
#pragma unroll
    for (int r = 0; r < R; r++) {
      uint32_t a[2][4];
      W::fragments(a, weights + r * tile_bytes, j, lane);
      if constexpr (!W::GROUPED) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
          mma_bf16(sums.at[r][n], a[0], b[n].x, b[n].y);
          mma_bf16(sums.at[r][n], a[1], b[n].z, b[n].w);
        }
      } else {
        uint2 pairs = *(const uint2*)(scales + r * scale_bytes + g * 16 + odd * 8);
        float scale[2] = {lo_f16(pairs.x), lo_f16(pairs.y)}, offset[2] = {};
        if constexpr (W::OFFSET) {
          offset[0] = hi_f16(pairs.x) - 128.0f * scale[0];
          offset[1] = hi_f16(pairs.y) - 128.0f * scale[1];
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
          float part[4] = {};
          mma_bf16(part, a[0], b[n].x, b[n].y);
          mma_bf16(part, a[1], b[n].z, b[n].w);
#pragma unroll
          for (int i = 0; i < 4; i++) {
            float sum = fmaf(scale[i >> 1], part[i], sums.at[r][n][i]);
            sums.at[r][n][i] = W::OFFSET ? fmaf(offset[i >> 1], inputs[W::OFFSET ? n : 0][i], sum) : sum;
          }
        }
      }
    }
  }
}

// Writes a tile's sums, given by `sum(token, row)` within the tile: consecutive threads, consecutive rows.
template <int ROWS, class F>
DEV void skinny_write(const Skinny& a, uint32_t row0, uint32_t token0, int tokens, F sum) {
  for (int i = threadIdx.x; i < tokens * ROWS; i += SKINNY_THREADS) {
    uint32_t token = i / ROWS, row = row0 + i % ROWS;
    if (row >= a.rows) continue;
    float value = sum(token, i % ROWS) * (a.row_scales ? a.row_scales[row] : 1.0f);
    if (a.bias) value += bf2f(a.bias[row]);
    uint64_t at = (uint64_t)(token0 + token) * a.out_stride + row;
    if (a.out_f32)
      ((float*)a.out)[at] = value;
    else
      ((bf16*)a.out)[at].v = (uint16_t)pack_bf16(value, 0.0f);
  }
}

// Grid (token tiles, row tiles, splits); dynamic shared memory DEPTH * Ring::STAGE.
template <class W, int R, int NT, int STEPS, int DEPTH>
DEV void skinny(const Skinny& a) {
  using Stage = Ring<W, R, NT, STEPS, DEPTH>;
  constexpr int ROWS = Stage::ROWS, PITCH = ROWS + 4;
  static_assert(Stage::TOKENS * PITCH * 4 <= DEPTH * Stage::STAGE, "the ring holds a tile of sums");
  DYN_SMEM(unsigned char, ring);
  uint32_t token0 = blockIdx.x * Stage::TOKENS, row0 = blockIdx.y * ROWS, steps = (a.cols + 63) / 64;
  uint32_t begin = (uint64_t)steps * blockIdx.z / a.splits, end = (uint64_t)steps * (blockIdx.z + 1) / a.splits;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;

  // Weights don't depend on the kernel before this one: their copies start before it has ended.
#pragma unroll
  for (int i = 0; i < DEPTH - 1; i++) Stage::load_weights(ring + i * Stage::STAGE, a, row0, begin + i * STEPS, end);
  dependency_wait();
#pragma unroll
  for (int i = 0; i < DEPTH - 1; i++) {
    Stage::load_x(ring + i * Stage::STAGE, a, token0, begin + i * STEPS, end);
    cp_async_commit();
  }
  launch_dependents();  // the next product's first weights may be on their way before this one's end

  Sums<R, NT> sums = {};
  uint32_t slot = 0;
  for (uint32_t step = begin; step < end; step += STEPS) {
    cp_async_wait<DEPTH - 2>();
    __syncthreads();
    {  // into the slot that all have just left
      uint32_t next = step + (DEPTH - 1) * STEPS;
      unsigned char* stage = ring + (slot == 0 ? DEPTH - 1 : slot - 1) * Stage::STAGE;
      Stage::load_weights(stage, a, row0, next, end);
      Stage::load_x(stage, a, token0, next, end);
      cp_async_commit();
    }
    const unsigned char* stage = ring + slot * Stage::STAGE;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      if (step + s >= end) break;
      const unsigned char* weights = stage + (warp * R * STEPS + s) * W::BYTES;
      const unsigned char* scales = stage + Stage::WEIGHTS + (warp * R * STEPS + s) * 128;
      const unsigned char* x = stage + Stage::WEIGHTS + Stage::SCALES + s * Stage::TOKENS * 128;
      skinny_step<W, R, NT>(sums, weights, STEPS * W::BYTES, scales, STEPS * 128, x, step + s, a.group_log2);
    }
    slot = slot + 1 == DEPTH ? 0 : slot + 1;
  }
  cp_async_wait<0>();
  __syncthreads();

  float* tile = (float*)ring;  // [token][PITCH]: each bank once per store
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int row = (warp * R + r) * 16 + (lane >> 2) + (i >> 1) * 8, token = n * 8 + (lane & 3) * 2 + (i & 1);
        tile[token * PITCH + row] = sums.at[r][n][i];
      }
  __syncthreads();

  int tokens = a.tokens - token0 < Stage::TOKENS ? a.tokens - token0 : Stage::TOKENS;
  if (a.splits == 1) {
    skinny_write<ROWS>(a, row0, token0, tokens, [&](int token, int row) { return tile[token * PITCH + row]; });
    return;
  }
  auto place = [&](uint32_t split, int token, int row) {
    return ((uint64_t)split * a.tokens + token0 + token) * a.rows + row0 + row;
  };
  for (int i = threadIdx.x; i < tokens * ROWS; i += SKINNY_THREADS)
    if (row0 + i % ROWS < a.rows) a.partial[place(blockIdx.z, i / ROWS, i % ROWS)] = tile[i / ROWS * PITCH + i % ROWS];
  bool* last = (bool*)ring;
  uint32_t* arrived = a.arrived + blockIdx.y * gridDim.x + blockIdx.x;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *last = atomicAdd(arrived, 1u) == a.splits - 1;
  __syncthreads();
  if (!*last) return;
  __threadfence();
  skinny_write<ROWS>(a, row0, token0, tokens, [&](int token, int row) {
    float sum = 0.0f;
    for (uint32_t split = 0; split < a.splits; split++) sum += ld_l2(a.partial + place(split, token, row));
    return sum;
  });
  if (threadIdx.x == 0) *arrived = 0;
}

// An instance: a block takes 64 * R rows and 8 * NT tokens; a stage is STEPS steps, and there are DEPTH of them, in
// SHARED bytes; BLOCKS of them should share a multiprocessor.
#define SKINNY_KERNEL(name, W, R, NT, STEPS, DEPTH, BLOCKS, SHARED)                                                  \
  static_assert(DEPTH * Ring<W, R, NT, STEPS, DEPTH>::STAGE == SHARED, "as the launcher has it");                    \
  KERNEL __launch_bounds__(SKINNY_THREADS, BLOCKS)                                                                   \
      name(const void* weights, const uint4* group_scales, const float* row_scales, const bf16* x, const bf16* bias, \
           void* out, float* partial, uint32_t* arrived, uint32_t rows, uint32_t cols, uint32_t tokens,              \
           uint32_t x_stride, uint32_t out_stride, uint32_t splits, uint32_t group_log2, uint32_t out_f32) {         \
    skinny<W, R, NT, STEPS, DEPTH>({weights, group_scales, row_scales, x, bias, out, partial, arrived, rows, cols,   \
                                    tokens, x_stride, out_stride, splits, group_log2, out_f32});                     \
  }                                                                                                                  \
  TWIN_EXPORT(name)
