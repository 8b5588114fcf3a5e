// What stands between a QKV projection and attention, in one pass: bias, RMS norm of each query and key head
// (optional), rotary positions, and the writing of keys and values into their pages.
//
// qkv [rows, (heads + 2 * kv_heads) * dim] bf16, a row being queries, keys, values; bias: such a row, or null.
// Queries go to q [rows, heads * dim] bf16 with a row stride of `q_stride` elements; q may be qkv itself.
// Keys and values go to caches [page, kv_head, page_tokens, dim], bf16 or e4m3 (then divided by k_scale, v_scale).
// slots [rows] i64: page * page_tokens + place in the page; outside the cache: the row (padding) stores nothing.
// positions [rows] u32; frequencies [pairs] f32: radians per position. The first 2 * pairs dimensions turn,
// paired (2i, 2i + 1) or (i, i + pairs), and are multiplied by `magnitude`. q_gain, k_gain [dim] bf16: gains of the head norms, or null.
// dim % 8 == 0 and dim <= 256.
//
// The angle is position * frequency rounded to f32, as checkpoints were trained with and the CPU backend does.
// Bytes: rows * dim * (4 * heads + 4 * kv_heads + 2 * kv_heads * size of a cached number). Bound: memory.
// One block a row: its sines once in shared memory; a group of lanes, 16 bytes each, takes a head at a time.
// Expect sm_80 *: LDG.128
// Expect sm_90 *: LDG.128
#include "vector.cuh"

constexpr int MAX_DIM = 256, QKV_THREADS = 256;

struct Qkv {
  const bf16 *qkv, *bias, *q_gain, *k_gain;
  bf16* q;
  void *k_cache, *v_cache;
  const int64_t* slots;
  const uint32_t* positions;
  const float* frequencies;
  uint32_t heads, kv_heads, dim, pairs, page_tokens, q_stride;
  uint32_t adjacent, pages;
  float epsilon, k_scale, v_scale, magnitude;
};

// Sine and cosine of an angle of any size: reduced to [-pi, pi] in three steps that are exact or nearly so.
DEV void sin_cos(float angle, float& sine, float& cosine) {
  float turns = rintf(angle * 0.15915494309189535f);
  float rest = fmaf(-turns, 6.2831855f, angle);
  rest = fmaf(-turns, -1.7484556e-7f, rest);
  sine = fast_sin(rest);
  cosine = fast_cos(rest);
}

template <class T>
struct Store8;
template <>
struct Store8<bf16> {
  DEV void put(void* base, uint64_t at, const Eight& e, float) { store8((bf16*)base + at, e); }
};
template <>
struct Store8<e4m3> {
  DEV void put(void* base, uint64_t at, const Eight& e, float inverse) {
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (j % 2 == 0) words[j / 4] |= (uint32_t)pack_e4m3(e.x[j] * inverse, e.x[j + 1] * inverse) << (j % 4 * 8);
    uint2 v;
    v.x = words[0];
    v.y = words[1];
    *(uint2*)((e4m3*)base + at) = v;
  }
};

// The lanes of a head: the smallest power of two that covers it.
DEV int head_lanes(uint32_t dim) { return dim <= 64 ? 8 : dim <= 128 ? 16 : 32; }

// Eight floats of shared memory, 16-byte aligned.
DEV void read8(float (&to)[8], const float* from) {
  float4 low = ((const float4*)from)[0], high = ((const float4*)from)[1];
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// Turns dimensions at..at + 8 of a head; `head` holds all of it where pairs are halves apart.
DEV Eight turn(const Qkv& a, const Eight& e, uint32_t at, const float* head, const float* sines, const float* cosines) {
  float s[8], c[8], other[8];
  if (a.adjacent) {
    float4 sine = *(const float4*)(sines + at / 2), cosine = *(const float4*)(cosines + at / 2);
    s[0] = s[1] = sine.x, s[2] = s[3] = sine.y, s[4] = s[5] = sine.z, s[6] = s[7] = sine.w;
    c[0] = c[1] = cosine.x, c[2] = c[3] = cosine.y, c[4] = c[5] = cosine.z, c[6] = c[7] = cosine.w;
#pragma unroll
    for (int j = 0; j < 8; j++) other[j] = e.x[j ^ 1];
  } else if (a.pairs % 8 == 0) {
    uint32_t pair = at < a.pairs ? at : at - a.pairs;
    read8(s, sines + pair);
    read8(c, cosines + pair);
    read8(other, head + (at < a.pairs ? at + a.pairs : pair));
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      uint32_t i = at + j < 2 * a.pairs ? at + j : 0, pair = i < a.pairs ? i : i - a.pairs;
      s[j] = sines[pair];
      c[j] = cosines[pair];
      other[j] = head[i < a.pairs ? i + a.pairs : pair];
    }
  }
  Eight turned = e;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    bool second = a.adjacent ? j & 1 : at + j >= a.pairs;
    if (at + j < 2 * a.pairs) turned.x[j] = fmaf(e.x[j], c[j], other[j] * (second ? s[j] : -s[j]));
  }
  return turned;
}

template <class T>
DEV_WITH_SMEM void qkv_store(const Qkv& a) {
  STATIC_SMEM(float4, tables, MAX_DIM / 4);
  STATIC_SMEM(float4, staged, QKV_THREADS * 2);
  float *sines = (float*)tables, *cosines = sines + MAX_DIM / 2;
  uint64_t row = blockIdx.x;
  for (uint32_t i = threadIdx.x; i < a.pairs; i += QKV_THREADS)
    sin_cos((float)a.positions[row] * a.frequencies[i], sines[i], cosines[i]), sines[i] *= a.magnitude, cosines[i] *= a.magnitude;
  __syncthreads();

  int lanes = head_lanes(a.dim), lane = threadIdx.x & (lanes - 1), group = threadIdx.x / lanes,
      groups = QKV_THREADS / lanes;
  uint32_t all = a.heads + 2 * a.kv_heads, at = lane * 8;
  bool active = at < a.dim;
  float* mine = (float*)staged + group * lanes * 8;
  int64_t slot = a.slots[row];
  if (slot >= (int64_t)a.pages * a.page_tokens) slot = -1;
  uint64_t page = slot < 0 ? 0 : (uint64_t)slot / a.page_tokens, place = slot < 0 ? 0 : (uint64_t)slot % a.page_tokens;
  // Every lane of a warp goes round equally often: the shuffles and warp barriers below are for whole warps.
  for (uint32_t first = 0; first < all; first += groups) {
    uint32_t head = first + group;
    bool present = active && head < all, key = head >= a.heads, value = head >= a.heads + a.kv_heads;
    Eight e = {};
    if (present) {
      uint32_t column = head * a.dim + at;
      e = unpack8(stream8(a.qkv + row * all * a.dim + column));
      if (a.bias) {
        Eight b = load8(a.bias + column);
#pragma unroll
        for (int j = 0; j < 8; j++) e.x[j] += b.x[j];
      }
    }
    if (a.q_gain) {
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < 8; j++) squares += e.x[j] * e.x[j];
      for (int step = lanes / 2; step; step >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, step);
      if (present && !value) {
        float factor = fast_rsqrt(squares / (float)a.dim + a.epsilon);
        Eight gain = load8((key ? a.k_gain : a.q_gain) + at);
#pragma unroll
        for (int j = 0; j < 8; j++) e.x[j] *= factor * gain.x[j];
      }
    }
    if (!a.adjacent) {  // the partner of a dimension is another lane's
      ((float4*)mine)[lane * 2] = make_float4(e.x[0], e.x[1], e.x[2], e.x[3]);
      ((float4*)mine)[lane * 2 + 1] = make_float4(e.x[4], e.x[5], e.x[6], e.x[7]);
      __syncwarp();
    }
    if (present && !value && at < 2 * a.pairs) e = turn(a, e, at, mine, sines, cosines);
    __syncwarp();  // before `mine` is written again
    if (!present) continue;
    if (!key) {
      store8(a.q + row * a.q_stride + head * a.dim + at, e);
    } else if (slot >= 0) {
      uint32_t kv_head = head - a.heads - (value ? a.kv_heads : 0);
      uint64_t to = ((page * a.kv_heads + kv_head) * a.page_tokens + place) * a.dim + at;
      Store8<T>::put(value ? a.v_cache : a.k_cache, to, e, 1.0f / (value ? a.v_scale : a.k_scale));
    }
  }
}

#define QKV_STORE(name, T)                                                                                             \
  KERNEL __launch_bounds__(QKV_THREADS)                                                                                \
      name(const bf16* qkv, const bf16* bias, const bf16* q_gain, const bf16* k_gain, bf16* q, T* k_cache, T* v_cache, \
           const int64_t* slots, const uint32_t* positions, const float* frequencies, uint32_t heads,                  \
           uint32_t kv_heads, uint32_t dim, uint32_t pairs, uint32_t page_tokens, uint32_t q_stride,                   \
           uint32_t adjacent, uint32_t pages, float epsilon, float k_scale, float v_scale, float magnitude) {          \
    qkv_store<T>({qkv,         bias,      q_gain,      k_gain, q,        k_cache, v_cache,                             \
                  slots,       positions, frequencies, heads,  kv_heads, dim,     pairs,                               \
                  page_tokens, q_stride,  adjacent,    pages,  epsilon,  k_scale, v_scale, magnitude});                \
  }                                                                                                                    \
  TWIN_EXPORT(name)

QKV_STORE(qkv_store_bf16, bf16)
QKV_STORE(qkv_store_e4m3, e4m3)
