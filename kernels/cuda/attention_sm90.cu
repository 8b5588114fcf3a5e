// Attention of new tokens over a paged bf16 KV cache on Hopper: prefill, where the tensor cores are the bound.
//
// grid (items, kv_heads), 384 threads; items of up to 128 rows (row = token * G + query head of the group), shapes and
// layouts as in AttentionArgs (k and v through tensor maps [pages * kv_heads * page_tokens, D], boxes of 64 dims x `box`
// tokens, 128-byte swizzle; no segments: bits are not the same as decoding's, see attention.cu for that).
// Warpgroup 0 brings tiles of keys and values page by page with the tensor memory accelerator; warpgroups 1 and 2 take
// 64 rows each: S = Q Kᵀ from shared memory, O += P V with P in registers. The next tile's Q Kᵀ is issued before this
// tile's P V, so that the softmax runs while the tensor cores do.
// Bytes: 4 * kv_len * D per item and KV head, mostly from L2. Bound: 4 * rows * kv_len * D operations (half when causal).
// Targets: sm_90a
// Expect sm_90a attention_*: HGMMA UTMALDG
#include "attention.cuh"
#include "gpu90.cuh"

template <int D> struct HopperAttention {
  static constexpr int T = D > 128 ? 64 : 128;      // keys a tile
  static constexpr int GROUPS = (D + 63) / 64;      // of 64 dims: rows of 128 bytes; dims past D are zero
  static constexpr int STAGES = 2;
  static constexpr int TILE_BYTES = GROUPS * T * 128, Q_HALF = GROUPS * 64 * 128;
  static constexpr int K_AT = 2 * Q_HALF, V_AT = K_AT + STAGES * TILE_BYTES, BARRIERS = V_AT + STAGES * TILE_BYTES;

  const AttentionArgs& a;
  unsigned char* sm;
  uint64_t *k_full, *k_empty, *v_full, *v_empty;
  AttentionItem item;
  AttentionSeq seq;
  int head, first, last, lo, hi, begin, end;

  MEMBER HopperAttention(const AttentionArgs& args, unsigned char* smem) : a(args), sm(smem) {
    k_full = (uint64_t*)(smem + BARRIERS), k_empty = k_full + STAGES, v_full = k_empty + STAGES, v_empty = v_full + STAGES;
    head = blockIdx.y;
    item = a.items[blockIdx.x];
  }

  MEMBER int position(int row) const {
    int r = row < item.rows ? row : item.rows - 1;
    return seq.position + (item.row0 + r) / a.group;
  }

  MEMBER void run(const TensorMap& k, const TensorMap& v, int box) {
    if (item.rows <= 0) return;
    seq = a.seqs[item.seq];
    first = position(0), last = position(item.rows - 1);
    lo = a.window && first - a.window >= 0 ? first - a.window + 1 : 0;
    lo = lo > item.kv_begin ? lo : item.kv_begin;
    hi = last + 1 < item.kv_end ? last + 1 : item.kv_end;
    begin = lo / T, end = (hi + T - 1) / T;
    end = end > begin ? end : begin + 1;  // a range without keys walks one tile, all of it masked
    if (threadIdx.x == 0) {
      for (int s = 0; s < STAGES; s++) {
        mbar_init(k_full + s, 1), mbar_init(v_full + s, 1);
        mbar_init(k_empty + s, 8), mbar_init(v_empty + s, 8);
      }
      mbar_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
      fewer_registers<24>();
      if (threadIdx.x < 32) produce(k, v, box);
    } else {
      more_registers<240>();
      consume();
    }
  }

  // --- warpgroup 0 --------------------------------------------------------------------------------------------------

  // Lane i brings box i of a tile. Boxes without keys lie outside the map: zeros.
  MEMBER void produce(const TensorMap& k, const TensorMap& v, int box) {
    int lane = threadIdx.x, page_tokens = a.granules * 16;
    for (int tile = begin; tile < end; tile++) {
      int n = tile - begin, stage = n % STAGES, key = tile * T + lane * box, row = -1024;
      if (lane * box < T && key < hi && key + box > lo)
        row = (a.table[seq.table + key / page_tokens] * (int)gridDim.y + head) * page_tokens + key % page_tokens;
      fill(k, sm + K_AT + stage * TILE_BYTES, k_full + stage, k_empty + stage, n / STAGES, box, row);
      fill(v, sm + V_AT + stage * TILE_BYTES, v_full + stage, v_empty + stage, n / STAGES, box, row);
    }
  }

  MEMBER void fill(const TensorMap& map, unsigned char* to, uint64_t* full, uint64_t* empty, int round, int box, int row) {
    int lane = threadIdx.x;
    mbar_wait(empty, (round & 1) ^ 1);
    if (lane == 0) mbar_expect_tx(full, TILE_BYTES);
    __syncwarp();
    if (lane * box < T) {
#pragma unroll
      for (int g = 0; g < GROUPS; g++) tma_load_2d(to + (g * T + lane * box) * 128, &map, full, g * 64, row);
    }
  }

  // --- warpgroups 1 and 2 ---------------------------------------------------------------------------------------------

  MEMBER void load_queries(int half) {
    unsigned char* to = sm + half * Q_HALF;
    for (int c = threadIdx.x & 127; c < 64 * GROUPS * 8; c += 128) {
      int r = c / (GROUPS * 8), d = c % (GROUPS * 8) * 8, row = item.row0 + half * 64 + r;
      uint4 x = {0, 0, 0, 0};
      if (half * 64 + r < item.rows && d < D)
        x = *(const uint4*)(a.q + (uint64_t)(seq.first + row / a.group) * a.q_stride + (head * a.group + row % a.group) * D + d);
      *(uint4*)(to + ((d >> 6) * 64 + r) * 128 + ((d >> 3 & 7) ^ (r & 7)) * 16) = x;
    }
    fence_async();
    bar_sync(1 + half, 128);
  }

  // Values of keys that aren't there yet lie in the same box as some that are, and may be anything: 0 · NaN is NaN.
  MEMBER void clear_values(int tile, int stage) {
    unsigned char* v = sm + V_AT + stage * TILE_BYTES;
    int from = hi - tile * T, to = (from + 127) / 128 * 128;
    to = to < T ? to : T;
    for (int c = threadIdx.x - 128; c < (to - from) * GROUPS * 8; c += 256) {
      int r = from + c / (GROUPS * 8), u = c % (GROUPS * 8);
      *(uint4*)(v + ((u >> 3) * T + r) * 128 + (u & 7) * 16) = {0, 0, 0, 0};
    }
    fence_async();
    bar_sync(3, 256);
  }

  MEMBER void multiply_keys(float (&s)[T / 2], int half, int stage) {
    uint64_t q = desc_sw128(sm + half * Q_HALF), k = desc_sw128(sm + K_AT + stage * TILE_BYTES);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++)  // a group is 64 rows of Q, T of K, 128 bytes each: in 16 bytes, 8 a row
      wgmma_bf16(s, q + i / 4 * 64 * 8 + i % 4 * 2, k + i / 4 * T * 8 + i % 4 * 2, i > 0);
    wgmma_commit();
  }

  MEMBER void multiply_values(float (&o)[D / 2], const uint32_t (&p)[T / 16][4], int stage, bool any) {
    uint64_t v = desc_sw128_t(sm + V_AT + stage * TILE_BYTES, T * 128);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < T / 16; i++) wgmma_bf16_t(o, p[i], v + i * 128, any || i > 0);
    wgmma_commit();
  }

  // One row half's state: i = 0 the row lane / 4 of the warp's 16, i = 1 the one 8 below.
  struct Row {
    int at;     // position
    float m, l;  // m in the scores' own units; l this thread's share
    float keep;
  };

  // Scores become probabilities; `keep` is what earlier sums are multiplied by.
  MEMBER void soften(float (&s)[T / 2], Row (&rows)[2], int tile, float to_log2, float cap_in) {
    int lane = threadIdx.x & 31, start = tile * T;
    if (a.softcap > 0.f) {
#pragma unroll
      for (int i = 0; i < T / 2; i++) s[i] = a.softcap * exact_tanh(s[i] * cap_in);
    }
    if (start < lo || start + T > hi || start + T > first + 1 || (a.window && start <= last - a.window)) {
#pragma unroll
      for (int i = 0; i < T / 2; i++) {
        int key = start + i / 4 * 8 + (lane & 3) * 2 + (i & 1), at = rows[i >> 1 & 1].at;
        if (key < lo || key >= hi || key > at || (a.window && key <= at - a.window)) s[i] = neg_inf();
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      Row& row = rows[h];
      float top = row.m;
#pragma unroll
      for (int i = 0; i < T / 8; i++) top = fmaxf(top, fmaxf(s[i * 4 + h * 2], s[i * 4 + h * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
      float base = finite_or_zero(top), shift = -base * to_log2, sum = 0.f;
      row.keep = fast_exp2((row.m - base) * to_log2);
      row.m = top;
#pragma unroll
      for (int i = 0; i < T / 8; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& x = s[i * 4 + h * 2 + e];
          x = fast_exp2(fmaf(x, to_log2, shift));
          sum += x;
        }
      row.l = fmaf(row.l, row.keep, sum);
    }
  }

  MEMBER void pack(const float (&s)[T / 2], uint32_t (&p)[T / 16][4]) {
#pragma unroll
    for (int i = 0; i < T / 4; i++) p[i / 4][i % 4] = pack_bf16(s[i * 2], s[i * 2 + 1]);
  }

  MEMBER void release(uint64_t* empty) {
    if ((threadIdx.x & 31) == 0) mbar_arrive(empty);
  }

  MEMBER void consume() {
    int half = threadIdx.x / 128 - 1, lane = threadIdx.x & 31;
    int row0 = half * 64 + (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);
    float to_log2 = a.softcap > 0.f ? LOG2E : a.scale * LOG2E, cap_in = a.softcap > 0.f ? a.scale / a.softcap : 0.f;
    Row rows[2] = {{position(row0), neg_inf(), 0.f, 0.f}, {position(row0 + 8), neg_inf(), 0.f, 0.f}};
    float o[D / 2], s[T / 2];
    uint32_t p[T / 16][4];
    load_queries(half);
    mbar_wait(k_full, 0);
    multiply_keys(s, half, 0);
    wgmma_wait<0>();
    release(k_empty);
    soften(s, rows, begin, to_log2, cap_in);
    pack(s, p);
    // No branch between issue and wait: ptxas would no longer see which group a register belongs to, and wait at once.
    int tile = begin, stage = 0, turn = 0;
    for (; tile + 1 < end; tile++) {
      int next = stage ^ 1, next_turn = stage ? turn ^ 1 : turn;
      mbar_wait(k_full + next, next_turn);
      mbar_wait(v_full + stage, turn);
      multiply_keys(s, half, next);
      multiply_values(o, p, stage, tile > begin);
      wgmma_wait<1>();
      release(k_empty + next);
      soften(s, rows, tile + 1, to_log2, cap_in);
      wgmma_wait<0>();
      release(v_empty + stage);
#pragma unroll
      for (int i = 0; i < D / 2; i++) o[i] *= rows[i >> 1 & 1].keep;
      pack(s, p);
      stage = next, turn = next_turn;
    }
    mbar_wait(v_full + stage, turn);
    if (hi < end * T) clear_values(tile, stage);
    multiply_values(o, p, stage, tile > begin);
    wgmma_wait<0>();
#pragma unroll
    for (int h = 0; h < 2; h++) {
      rows[h].l += __shfl_xor_sync(ALL_LANES, rows[h].l, 1);
      rows[h].l += __shfl_xor_sync(ALL_LANES, rows[h].l, 2);
      if (row0 + h * 8 < item.rows) write(o, h, row0 + h * 8, rows[h].m * to_log2, rows[h].l);
    }
  }

  MEMBER void write(const float (&o)[D / 2], int h, int row, float top, float sum) {
    int quad = threadIdx.x & 3;
    if (item.slot >= 0) {
      uint64_t at = ((uint64_t)item.slot * gridDim.y + head) * a.part_rows + row;
      if (quad == 0) *(float2*)(a.part_ml + at * 2) = {top, sum};
#pragma unroll
      for (int i = 0; i < D / 8; i++) *(float2*)(a.part_o + at * D + i * 8 + quad * 2) = {o[i * 4 + h * 2], o[i * 4 + h * 2 + 1]};
    } else {
      float scale = sum > 0.f ? 1.f / sum : 0.f;
      int at = item.row0 + row;
      bf16* out = a.out + (uint64_t)(seq.first + at / a.group) * a.out_stride + (head * a.group + at % a.group) * D + quad * 2;
#pragma unroll
      for (int i = 0; i < D / 8; i++) *(uint32_t*)(out + i * 8) = pack_bf16(o[i * 4 + h * 2] * scale, o[i * 4 + h * 2 + 1] * scale);
    }
  }
};

// k and v are null: the maps say where they are.
#define HOPPER_ATTENTION(D)                                                                               \
  KERNEL __launch_bounds__(384, 1)                                                                        \
      attention_sm90_d##D(TMAP_PARAM k_map, TMAP_PARAM v_map, ATTENTION_PARAMETERS, int box) {            \
    const AttentionArgs args = ATTENTION_ARGUMENTS;                                                       \
    DYN_SMEM(unsigned char, smem);                                                                        \
    HopperAttention<D>(args, smem).run(k_map, v_map, box);                                                \
  }                                                                                                       \
  TWIN_EXPORT(attention_sm90_d##D)
HOPPER_ATTENTION(64)
HOPPER_ATTENTION(80)
HOPPER_ATTENTION(96)
HOPPER_ATTENTION(128)
HOPPER_ATTENTION(256)
