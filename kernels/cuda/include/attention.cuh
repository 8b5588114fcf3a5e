// Paged attention with mma.sync, prefill and decode alike (sm_80 and up).
//
// One block takes one item (up to R rows of one sequence, one range of its keys) and one KV head. A row is a query
// token and one of the G query heads that share the KV head: row = token * G + g, so keys and values are read once
// per group. Keys are walked in tiles of 64 at absolute multiples of 64. In a tile the four warps first split the
// keys (16 each: S = Q K^T), exchange row maxima and probabilities through shared memory, then split the head's
// dimensions (O += P V).
//
// What a row gets depends on its own keys alone: a tile in which none of its keys lie changes nothing, the sum of
// probabilities is a product with ones (the tensor core's order, whatever R), and arithmetic is the same for every R.
// With `segment` set, sums restart at absolute multiples of it and the parts are folded in order: in this block, or
// in attention_merge where the planner gave the segments to several blocks. The bits are the same either way, so
// decoding, prefill, any chunking and any neighbours agree.
#pragma once
#include "softmax.cuh"

// One block's share, the same for every KV head.
struct AttentionItem {
  int seq;       // sequence
  int row0;      // first row among the sequence's (tokens * G) rows
  int rows;      // rows taken, at most R; 0: nothing to do (a captured graph has a fixed grid)
  int kv_begin;  // keys [kv_begin, kv_end), a multiple of 64; of `segment`, and holding the first key, where slot >= 0
  int kv_end;
  int slot;      // -1: write `out`; else write partials to this slot (and the following ones, a slot per segment)
};

// One sequence's new tokens.
struct AttentionSeq {
  int first;     // row of q and out of its first new token
  int position;  // absolute position of that token
  int table;     // where its pages start in `table`
};

// A kernel's arguments, in this order.
struct AttentionArgs {
  const bf16* q;             // [tokens, q_stride], a head's dims at head * D
  const unsigned char* k;    // [page, kv_head, page_tokens, D], bf16 or e4m3
  const unsigned char* v;
  const int* table;          // page ids, one list per sequence
  const AttentionSeq* seqs;
  const AttentionItem* items;
  const float* scales;       // e4m3: [2, kv_heads], of keys and of values; bf16: null
  bf16* out;                 // [tokens, out_stride]
  float* part_o;             // [slot, kv_head, part_rows, D]
  float* part_ml;            // [slot, kv_head, part_rows, 2]: m, l
  int q_stride, out_stride;
  int group;                 // G
  int part_rows;             // rows that a slot has room for
  int granules;              // page_tokens / 16
  int window;                // keys seen, the row's own included; 0: all
  int segment;               // 0, or a multiple of 64
  float scale;               // of scores, before soft-cap and softmax; positive
  float softcap;             // 0: none
};

#define ATTENTION_PARAMETERS                                                                                              \
  const bf16 *q, const unsigned char *k, const unsigned char *v, const int *table, const AttentionSeq *seqs,              \
      const AttentionItem *items, const float *scales, bf16 *out, float *part_o, float *part_ml, int q_stride,            \
      int out_stride, int group, int part_rows, int granules, int window, int segment, float scale, float softcap
#define ATTENTION_ARGUMENTS                                                                                               \
  {                                                                                                                       \
    q, k, v, table, seqs, items, scales, out, part_o, part_ml, q_stride, out_stride, group, part_rows, granules, window,  \
        segment, scale, softcap                                                                                           \
  }

constexpr int TILE = 64;  // keys a tile
constexpr int WARPS = 4;

// --- e4m3 ---------------------------------------------------------------------------------------------------------

// Two e4m3 of a word (bytes 0 and 2, or 1 and 3) as bf16x2, exactly: the bits moved into place read as x * 2^-120.
DEV uint32_t e4m3_even(uint32_t x) { return fma_bf16x2(((x << 4) & 0x07f007f0u) | ((x << 8) & 0x80008000u), 0x7b807b80u, 0x80008000u); }
DEV uint32_t e4m3_odd(uint32_t x) { return fma_bf16x2(((x >> 4) & 0x07f007f0u) | (x & 0x80008000u), 0x7b807b80u, 0x80008000u); }

// --- shared memory ------------------------------------------------------------------------------------------------

// K stages | V stages | Q | P | row maxima, one list per warp | row sums | room to fold segments in.
template <int D, bool FP8, int R> struct AttentionShape {
  static constexpr int MT = R / 16;                                   // m16 tiles
  static constexpr int BLOCKS = D / 16;                               // 16-wide blocks of dims
  static constexpr int OWN = (BLOCKS + WARPS - 1) / WARPS;            // of those, a warp's at most
  static constexpr int BYTES = FP8 ? D : 2 * D;                       // of a key
  static constexpr int STRIDE = BYTES / 16 % 2 ? BYTES : BYTES + 16;  // odd in 16-byte units: no bank conflicts
  static constexpr int STAGES = BYTES > 256 ? 1 : 2;
  static constexpr int Q_STRIDE = 2 * D + 16, P_STRIDE = 2 * TILE + 16;
  static constexpr int STAGE = TILE * STRIDE;
  static constexpr int V = STAGES * STAGE, Q = 2 * V, P = Q + R * Q_STRIDE, MAX = P + R * P_STRIDE;
  static constexpr int SUM = MAX + WARPS * R * 4, TOTAL = SUM + R * 4;
  static constexpr int TOTAL_WORDS = MT * (OWN * 8 + 4);              // a thread's
};

// --- the block's work ---------------------------------------------------------------------------------------------

#define MEMBER __device__ __forceinline__

template <int D, bool FP8, int R> struct Attention {
  using S = AttentionShape<D, FP8, R>;
  static constexpr int MT = S::MT, THREADS = WARPS * 32;

  const AttentionArgs& a;
  unsigned char* sm;
  AttentionItem item;
  AttentionSeq seq;
  int warp, lane, quad, head;
  int lo, hi;                // keys that any row of the item sees
  int first, last;           // positions of the first and the last row
  float to_log2;             // from a score's units to log2
  float cap_in;              // softcap: score = softcap * tanh(product * cap_in)
  int page;                  // of this lane's granule in the tile to be loaded next
  uint32_t source;           // of this lane's granule in the tile whose V is to be loaded next, in 16 bytes
  float o[MT][S::OWN][2][4];
  float m[MT][2];            // the same in all warps
  float l[4];                // of row tile `warp`
  bool folded;

  MEMBER Attention(const AttentionArgs& args, unsigned char* smem) : a(args), sm(smem) {
    int t = threadIdx.x;
    warp = t >> 5, lane = t & 31, quad = lane & 3, head = blockIdx.y;
    item = a.items[blockIdx.x];
    folded = false;
  }

  MEMBER int position(int row) const {
    int r = row < item.rows ? row : item.rows - 1;
    return seq.position + (item.row0 + r) / a.group;
  }

  MEMBER void reset() {
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
      m[mt][0] = m[mt][1] = neg_inf();
#pragma unroll
      for (int j = 0; j < S::OWN; j++)
#pragma unroll
        for (int i = 0; i < 8; i++) o[mt][j][i >> 2][i & 3] = 0.f;
    }
    l[0] = l[1] = l[2] = l[3] = 0.f;
  }

  MEMBER void run() {
    if (item.rows <= 0) return;
    seq = a.seqs[item.seq];
    first = position(0), last = position(item.rows - 1);
    lo = a.window && first - a.window >= 0 ? first - a.window + 1 : 0;
    lo = lo > item.kv_begin ? lo : item.kv_begin;
    hi = last + 1 < item.kv_end ? last + 1 : item.kv_end;
    float scale = a.scale * (FP8 ? a.scales[head] : 1.f);
    to_log2 = a.softcap > 0.f ? LOG2E : scale * LOG2E;
    cap_in = a.softcap > 0.f ? scale / a.softcap : 0.f;
    reset();

    int begin = lo / TILE, end = (hi + TILE - 1) / TILE;
    look_up(begin);
#pragma unroll
    for (int s = 0; s < S::STAGES; s++) {
      load_keys(begin + s);
      if (s + 1 < S::STAGES) load_values(begin + s);
    }
    load_queries();
    // Copies are committed in the order K0 V0 K1 | V1 K2 | V2 K3 .. (two stages), K0 | V0 K1 | V1 K2 .. (one).
    // A range without keys walks one tile, all of it masked.
    for (int tile = begin; tile == begin || tile < end; tile++) {
      cp_async_wait<2 * (S::STAGES - 1)>();
      __syncthreads();  // K has landed; all warps are done with the previous V and P
      load_values(tile + S::STAGES - 1);
      score(tile);
      cp_async_wait<2 * S::STAGES - 1>();
      __syncthreads();  // V has landed; P is whole
      weigh(tile);
      bool at_end = tile + 1 >= end;
      if (at_end || (a.segment && (tile + 1) * TILE % a.segment == 0)) finish(tile, at_end);
    }
    cp_async_wait<0>();
  }

  // --- loading ------------------------------------------------------------------------------------------------------

  // A tile has four granules of 16 keys; lane i looks up granule i % 4.
  MEMBER void look_up(int tile) {
    int granule = tile * (TILE / 16) + quad;
    page = granule * 16 < hi && granule * 16 + 16 > lo ? a.table[seq.table + granule / a.granules] : 0;
  }

  MEMBER void load_keys(int tile) {
    int granule = tile * (TILE / 16) + quad;
    uint32_t row = ((uint32_t)page * gridDim.y + head) * a.granules + granule % a.granules;
    source = row * S::BYTES;  // 16 rows of BYTES / 16 units
    look_up(tile + 1);
    load(a.k, sm + tile % S::STAGES * S::STAGE, tile);
  }

  MEMBER void load_values(int tile) { load(a.v, sm + S::V + tile % S::STAGES * S::STAGE, tile); }

  // 64 rows; rows that no row of the item sees are zero, and their pages are not touched.
  MEMBER void load(const unsigned char* from, unsigned char* to, int tile) {
    constexpr int UNITS = S::BYTES / 16, N = TILE * UNITS;
#pragma unroll
    for (int i = 0; i < (N + THREADS - 1) / THREADS; i++) {
      int c = threadIdx.x + i * THREADS, r = c / UNITS, u = c % UNITS, key = tile * TILE + r;
      uint32_t at = __shfl_sync(0xffffffffu, source, r >> 4 & 3) + (r & 15) * UNITS + u;
      bool real = key >= lo && key < hi;
      if (N % THREADS == 0 || c < N) cp_async16(to + r * S::STRIDE + u * 16, from + (real ? (uint64_t)at * 16 : 0), real);
    }
    cp_async_commit();
  }

  // The dims of a 16-wide block in the order in which the keys' fragments have them: for e4m3, of dims 4t .. 4t+3 (a
  // thread's word) the even ones stand in the block's first half and the odd ones in the second.
  MEMBER void load_queries() {
    for (int c = threadIdx.x; c < R * (D / 8); c += THREADS) {
      int r = c / (D / 8), d = c % (D / 8) * 8;
      uint4 x = {0, 0, 0, 0};
      if (r < item.rows) {
        int row = item.row0 + r, h = head * a.group + row % a.group;
        x = *(const uint4*)(a.q + (uint64_t)(seq.first + row / a.group) * a.q_stride + h * D + d);
      }
      unsigned char* to = sm + S::Q + r * S::Q_STRIDE;
      if (FP8) {
        to += (d & ~15) * 2 + (d & 8);
        *(uint2*)to = {(x.x & 0xffffu) | x.y << 16, (x.z & 0xffffu) | x.w << 16};
        *(uint2*)(to + 16) = {x.x >> 16 | (x.y & 0xffff0000u), x.z >> 16 | (x.w & 0xffff0000u)};
      } else {
        *(uint4*)(to + d * 2) = x;
      }
    }
  }

  // --- one tile -----------------------------------------------------------------------------------------------------

  MEMBER void load_a(uint32_t (&r)[4], int at, int stride, int mt, int k) {
    ldsm_x4(r, sm + at + (mt * 16 + (lane & 15)) * stride + (k + (lane >> 4) * 8) * 2);
  }

  // S = Q K^T for this warp's 16 keys, over all rows.
  MEMBER void multiply_keys(float (&s)[MT][2][4], int tile) {
    const unsigned char* k = sm + tile % S::STAGES * S::STAGE + warp * 16 * S::STRIDE;
    if (FP8) {
      k += ((lane & 7) + (lane & 8)) * S::STRIDE;
#pragma unroll
      for (int b = 0; b < S::BLOCKS; b += 2) {
        int mine = b + (lane >> 4);  // with an odd number of blocks, the last pair is one block twice
        uint32_t w[4], q[4];
        ldsm_x4(w, k + (mine < S::BLOCKS ? mine : b) * 16);
#pragma unroll
        for (int h = 0; h < 2 && b + h < S::BLOCKS; h++) {
          uint32_t e[2][2] = {{e4m3_even(w[2 * h]), e4m3_odd(w[2 * h])}, {e4m3_even(w[2 * h + 1]), e4m3_odd(w[2 * h + 1])}};
#pragma unroll
          for (int mt = 0; mt < MT; mt++) {
            load_a(q, S::Q, S::Q_STRIDE, mt, (b + h) * 16);
            mma_bf16(s[mt][0], q, e[0][0], e[0][1]);
            mma_bf16(s[mt][1], q, e[1][0], e[1][1]);
          }
        }
      }
    } else {
      k += ((lane & 7) + (lane >> 4) * 8) * S::STRIDE + (lane >> 3 & 1) * 16;
#pragma unroll
      for (int b = 0; b < S::BLOCKS; b++) {
        uint32_t w[4], q[4];
        ldsm_x4(w, k + b * 32);
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
          load_a(q, S::Q, S::Q_STRIDE, mt, b * 16);
          mma_bf16(s[mt][0], q, w[0], w[1]);
          mma_bf16(s[mt][1], q, w[2], w[3]);
        }
      }
    }
  }

  MEMBER void mask(float (&s)[MT][2][4], int tile) {
    int begin = tile * TILE;
    if (begin >= lo && begin + TILE <= hi && begin + TILE <= first + 1 && (!a.window || begin > last - a.window)) return;
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int at = position(mt * 16 + (lane >> 2) + (i >> 1) * 8);
#pragma unroll
        for (int n = 0; n < 2; n++) {
          int key = begin + warp * 16 + n * 8 + quad * 2 + (i & 1);
          if (key < lo || key >= hi || key > at || (a.window && key <= at - a.window)) s[mt][n][i] = neg_inf();
        }
      }
  }

  // Scores of a tile, then probabilities into shared memory; m and o follow the new maximum.
  MEMBER void score(int tile) {
    float s[MT][2][4] = {};
    multiply_keys(s, tile);
    if (a.softcap > 0.f) {
#pragma unroll
      for (int i = 0; i < MT * 8; i++) s[i >> 3][i >> 2 & 1][i & 3] = a.softcap * exact_tanh(s[i >> 3][i >> 2 & 1][i & 3] * cap_in);
    }
    mask(s, tile);
    float* maxima = (float*)(sm + S::MAX);
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float x = fmaxf(fmaxf(s[mt][0][2 * i], s[mt][0][2 * i + 1]), fmaxf(s[mt][1][2 * i], s[mt][1][2 * i + 1]));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
        if (quad == 0) maxima[warp * R + mt * 16 + i * 8 + (lane >> 2)] = x;
      }
    __syncthreads();  // maxima are whole; all warps are done with K
    load_keys(tile + S::STAGES);
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int row = mt * 16 + i * 8 + (lane >> 2);
        float top = m[mt][i];
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, maxima[w * R + row]);
        float base = finite_or_zero(top), keep = fast_exp2((m[mt][i] - base) * to_log2), shift = -base * to_log2;
        m[mt][i] = top;
#pragma unroll
        for (int n = 0; n < 2; n++)
          *(uint32_t*)(sm + S::P + row * S::P_STRIDE + (warp * 16 + n * 8 + quad * 2) * 2) =
              pack_bf16(fast_exp2(fmaf(s[mt][n][2 * i], to_log2, shift)), fast_exp2(fmaf(s[mt][n][2 * i + 1], to_log2, shift)));
        if (mt == warp) l[2 * i] *= keep;
#pragma unroll
        for (int j = 0; j < S::OWN; j++)
#pragma unroll
          for (int h = 0; h < 2; h++) o[mt][j][h][2 * i] *= keep, o[mt][j][h][2 * i + 1] *= keep;
      }
  }

  // O += P V for this warp's blocks of dims (warp, warp + 4, ..), over all keys of the tile; l += P 1.
  MEMBER void weigh(int tile) {
    const unsigned char* v = sm + S::V + tile % S::STAGES * S::STAGE;
    constexpr uint32_t ONES = 0x3f803f80u;
    constexpr int STEP = FP8 ? 2 : 1;  // k16 steps that one ldmatrix of V serves
#pragma unroll
    for (int k = 0; k < TILE / 16; k += STEP) {
      uint32_t p[STEP][MT][4];
#pragma unroll
      for (int h = 0; h < STEP; h++) {
#pragma unroll
        for (int mt = 0; mt < MT; mt++) load_a(p[h][mt], S::P, S::P_STRIDE, mt, (k + h) * 16);
        if (warp < MT) {
          uint32_t own[4];  // read again: choosing among p's tiles at run time would put them into local memory
          load_a(own, S::P, S::P_STRIDE, warp, (k + h) * 16);
          mma_bf16(l, own, ONES, ONES);
        }
      }
#pragma unroll
      for (int j = 0; j < S::OWN; j++) {
        int block = warp + j * WARPS;
        if (S::BLOCKS % WARPS && block >= S::BLOCKS) break;
        uint32_t w[4];
        if (FP8) {
          ldsm_x4_t(w, v + (k * 16 + lane) * S::STRIDE + block * 16);
#pragma unroll
          for (int h = 0; h < STEP; h++) {
            uint32_t e[2] = {e4m3_even(w[2 * h]), e4m3_even(w[2 * h + 1])}, d[2] = {e4m3_odd(w[2 * h]), e4m3_odd(w[2 * h + 1])};
#pragma unroll
            for (int mt = 0; mt < MT; mt++) mma_bf16(o[mt][j][0], p[h][mt], e[0], e[1]), mma_bf16(o[mt][j][1], p[h][mt], d[0], d[1]);
          }
        } else {
          ldsm_x4_t(w, v + (k * 16 + (lane & 15)) * S::STRIDE + (block * 16 + (lane >> 4) * 8) * 2);
#pragma unroll
          for (int mt = 0; mt < MT; mt++) mma_bf16(o[mt][j][0], p[0][mt], w[0], w[1]), mma_bf16(o[mt][j][1], p[0][mt], w[2], w[3]);
        }
      }
    }
  }

  // --- the end of a segment, or of the item ---------------------------------------------------------------------------

  MEMBER void finish(int tile, bool at_end) {
    float* sums = (float*)(sm + S::SUM);
    if (warp < MT && quad == 0) sums[warp * 16 + (lane >> 2)] = l[0], sums[warp * 16 + 8 + (lane >> 2)] = l[2];
    __syncthreads();
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int row = mt * 16 + i * 8 + (lane >> 2);
        float sum = sums[row], top = m[mt][i] * to_log2;
        if (item.slot >= 0) {
          int slot = item.slot + (a.segment ? (tile * TILE - item.kv_begin) / a.segment : 0);
          write_part(mt, i, row, slot, top, sum);
        } else {
          if (folded || !at_end) fold_total(mt, i, top, sum);
          if (at_end) write_out(mt, i, row, sum);
        }
      }
    folded = true;
    reset();
    __syncthreads();  // sums may be overwritten
  }

  // Folds row half i of tile mt into the thread's own total in shared memory; leaves the result in o and `sum`.
  MEMBER void fold_total(int mt, int i, float top, float& sum) {
    float* total = (float*)(sm + S::TOTAL) + (mt * 2 + i) * (S::OWN * 4 + 2) * THREADS + threadIdx.x;
    Fold f = fold_weights(folded ? total[0] : neg_inf(), top);
    sum = fold(f, folded ? total[THREADS] : 0.f, sum);
    total[0] = f.m;
    total[THREADS] = sum;
#pragma unroll
    for (int x = 0; x < S::OWN * 4; x++) {
      float& at = o[mt][x >> 2][x >> 1 & 1][2 * i + (x & 1)];
      float& stored = total[(2 + x) * THREADS];
      stored = at = fold(f, folded ? stored : 0.f, at);
    }
  }

  MEMBER void write_part(int mt, int i, int row, int slot, float top, float sum) {
    if (row >= item.rows) return;
    uint64_t at = ((uint64_t)slot * gridDim.y + head) * a.part_rows + row;
    if (warp == 0 && quad == 0) *(float2*)(a.part_ml + at * 2) = {top, sum};
    each_pair(mt, i, 1.f, [&](int dim, float x, float y, float z, float w) {
      float* to = a.part_o + at * D + dim;
      if (FP8) *(float4*)to = {x, y, z, w};
      else *(float2*)to = {x, y}, *(float2*)(to + 8) = {z, w};
    });
  }

  MEMBER void write_out(int mt, int i, int row, float sum) {
    if (row >= item.rows) return;
    float scale = sum > 0.f ? (FP8 ? a.scales[gridDim.y + head] : 1.f) / sum : 0.f;
    int at = item.row0 + row, h = head * a.group + at % a.group;
    bf16* out = a.out + (uint64_t)(seq.first + at / a.group) * a.out_stride + h * D;
    each_pair(mt, i, scale, [&](int dim, float x, float y, float z, float w) {
      if (FP8) *(uint2*)(out + dim) = {pack_bf16(x, y), pack_bf16(z, w)};
      else *(uint32_t*)(out + dim) = pack_bf16(x, y), *(uint32_t*)(out + dim + 8) = pack_bf16(z, w);
    });
  }

  // This thread's four values of row half i in each of its blocks: e4m3 words hold dims .. .. +3, bf16 fragments
  // .., +1, +8, +9.
  template <class F> MEMBER void each_pair(int mt, int i, float scale, F put) {
#pragma unroll
    for (int j = 0; j < S::OWN; j++) {
      int block = warp + j * WARPS;
      if (S::BLOCKS % WARPS && block >= S::BLOCKS) break;
      float x = o[mt][j][0][2 * i] * scale, y = o[mt][j][0][2 * i + 1] * scale;
      float z = o[mt][j][1][2 * i] * scale, w = o[mt][j][1][2 * i + 1] * scale;
      if (FP8) put(block * 16 + quad * 4, x, z, y, w);
      else put(block * 16 + quad * 2, x, y, z, w);
    }
  }
};
