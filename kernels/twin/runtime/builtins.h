// CUDA's built-in types and functions that kernels use, for a host compiler. Included by twin.h.
#pragma once

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// --- Bits and numbers

static inline float __uint_as_float(unsigned u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline unsigned __float_as_uint(float f) {
  unsigned u;
  memcpy(&u, &f, 4);
  return u;
}
static inline float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
static inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }
static inline int __ffs(unsigned v) { return __builtin_ffs((int)v); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
static inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)(((unsigned __int128)a * b) >> 64); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  uint64_t both = (uint64_t)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) {
    unsigned s = selector >> (4 * i) & 15;
    unsigned byte = (unsigned)(both >> (8 * (s & 7))) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;
    out |= byte << (8 * i);
  }
  return out;
}
static inline int __float2int_rn(float f) { return (int)nearbyintf(f); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf(x) expf(x)  /* the C library declares the name, for itself */
#define __logf(x) logf(x)
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define MINMAX(T)                                             \
  static inline T min(T a, T b) { return b < a ? b : a; }     \
  static inline T max(T a, T b) { return a < b ? b : a; }
MINMAX(int)
MINMAX(unsigned)
MINMAX(long)
MINMAX(unsigned long)
#undef MINMAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

// --- Memory

template <class T>
static inline T __ldg(const T* p) {
  return *p;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
// Blocks run one after another and threads change only where they wait: a plain read and write is atomic.
#define ATOMIC(name, expression)           \
  template <class T>                       \
  static inline T name(T* p, T v) {        \
    T old = *p;                            \
    *p = expression;                       \
    return old;                            \
  }
ATOMIC(atomicAdd, (T)(old + v))
ATOMIC(atomicSub, (T)(old - v))
ATOMIC(atomicMax, (old < v ? v : old))
ATOMIC(atomicMin, (v < old ? v : old))
ATOMIC(atomicExch, v)
ATOMIC(atomicOr, (T)(old | v))
ATOMIC(atomicAnd, (T)(old & v))
#undef ATOMIC
static inline unsigned atomicInc(unsigned* p, unsigned limit) {
  unsigned old = *p;
  *p = old >= limit ? 0 : old + 1;
  return old;
}
template <class T>
static inline T atomicCAS(T* p, T expected, T v) {
  T old = *p;
  if (old == expected) *p = v;
  return old;
}

// --- Waiting for one another

static inline void __syncthreads() { twin::barrier(0, 0); }

namespace twin {
enum Kind { Sync = 1, Shuffle, Ballot, ReduceAdd, ReduceMax, ReduceMin, MatchAny };  // the runtime's start at 100

struct Exchange {
  uint64_t bits;
  int from;
};

template <class T>
inline T shuffle(uint32_t mask, T value, int from) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  Exchange mine{0, from};
  memcpy(&mine.bits, &value, sizeof value);
  uint64_t got = 0;
  collective(mask, Shuffle, &mine, &got, [](Thread** lanes, uint32_t mask) {
    for (int i = 0; i < 32; i++) {
      if (!(mask >> i & 1)) continue;
      int from = ((const Exchange*)lanes[i]->argument)->from;
      if (!(mask >> from & 1)) fail("a shuffle reads a lane that takes no part");
      *(uint64_t*)lanes[i]->result = ((const Exchange*)lanes[from]->argument)->bits;
    }
  });
  T out;
  memcpy(&out, &got, sizeof out);
  return out;
}

/// Every lane gets `fold` over all lanes' values.
template <class T, class F>
inline T reduce(uint32_t mask, Kind kind, T value, F) {
  T out;
  collective(mask, kind, &value, &out, [](Thread** lanes, uint32_t mask) {
    bool first = true;
    T all{};
    for (int i = 0; i < 32; i++) {
      if (!(mask >> i & 1)) continue;
      T v = *(const T*)lanes[i]->argument;
      all = first ? v : F::fold(all, v);
      first = false;
    }
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) *(T*)lanes[i]->result = all;
  });
  return out;
}
struct Add {
  template <class T>
  static T fold(T a, T b) { return a + b; }
};
struct Max {
  template <class T>
  static T fold(T a, T b) { return a < b ? b : a; }
};
struct Min {
  template <class T>
  static T fold(T a, T b) { return b < a ? b : a; }
};
}  // namespace twin

static inline void __syncwarp(unsigned mask = ~0u) {
  twin::collective(mask, twin::Sync, nullptr, nullptr, [](twin::Thread**, uint32_t) {});
}
template <class T>
static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  int lane = twin::self->lane;
  return twin::shuffle(mask, v, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T v, int x, int width = 32) {
  int lane = twin::self->lane, from = lane ^ x;
  return twin::shuffle(mask, v, (from & ~(width - 1)) == (lane & ~(width - 1)) ? from : lane);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  int lane = twin::self->lane, from = lane + (int)by;
  return twin::shuffle(mask, v, (from & ~(width - 1)) == (lane & ~(width - 1)) ? from : lane);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  int lane = twin::self->lane, from = lane - (int)by;
  return twin::shuffle(mask, v, from >= (lane & ~(width - 1)) ? from : lane);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned mine = predicate != 0, out = 0;
  twin::collective(mask, twin::Ballot, &mine, &out, [](twin::Thread** lanes, uint32_t mask) {
    unsigned bits = 0;
    for (int i = 0; i < 32; i++)
      if ((mask >> i & 1) && *(const unsigned*)lanes[i]->argument) bits |= 1u << i;
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) *(unsigned*)lanes[i]->result = bits;
  });
  return out;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
static inline int __syncthreads_or(int predicate) = delete;  // reduce through shared memory instead
static inline unsigned __reduce_add_sync(unsigned mask, unsigned v) {
  return twin::reduce(mask, twin::ReduceAdd, v, twin::Add{});
}
static inline int __reduce_add_sync(unsigned mask, int v) { return twin::reduce(mask, twin::ReduceAdd, v, twin::Add{}); }
static inline unsigned __reduce_max_sync(unsigned mask, unsigned v) {
  return twin::reduce(mask, twin::ReduceMax, v, twin::Max{});
}
static inline int __reduce_max_sync(unsigned mask, int v) { return twin::reduce(mask, twin::ReduceMax, v, twin::Max{}); }
static inline unsigned __reduce_min_sync(unsigned mask, unsigned v) {
  return twin::reduce(mask, twin::ReduceMin, v, twin::Min{});
}
static inline int __reduce_min_sync(unsigned mask, int v) { return twin::reduce(mask, twin::ReduceMin, v, twin::Min{}); }
static inline unsigned __match_any_sync(unsigned mask, unsigned v) {
  unsigned out = 0;
  twin::collective(mask, twin::MatchAny, &v, &out, [](twin::Thread** lanes, uint32_t mask) {
    for (int i = 0; i < 32; i++) {
      if (!(mask >> i & 1)) continue;
      unsigned same = 0;
      for (int j = 0; j < 32; j++)
        if ((mask >> j & 1) && *(const unsigned*)lanes[j]->argument == *(const unsigned*)lanes[i]->argument) same |= 1u << j;
      *(unsigned*)lanes[i]->result = same;
    }
  });
  return out;
}
