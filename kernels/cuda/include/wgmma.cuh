// wgmma: D (+)= A·B by a warpgroup of four warps, A 64 × 16, B 16 × N bf16 or f16 (e4m3: k 32), D f32 in registers.
//
// D: warp w of the group, lane l: d[i] is row 16w + l / 4 + 8·(i / 2 % 2), column 8·(i / 4) + 2·(l % 4) + i % 2.
// A in registers: the fragment of mma.cuh, warp w holding rows 16w to 16w + 15.
// B, and A in shared memory, by descriptor, in rows of 128 bytes under the 128-byte swizzle:
//   desc_sw128(p)           K-major: rows of 64 k; 8 rows make a group of 1024 bytes. The next 16 k: descriptor + 2.
//   desc_sw128_t(p, bytes)  B with rows along n (V in attention, [k][64 n]): the next 64 n lie `bytes` further; the
//                           next 16 k: descriptor + 128. For wgmma_bf16_t.
// The tile's start is aligned to 1024 bytes.
#pragma once
#include "types.cuh"

#ifdef GPU
/// Before the first wgmma, and whenever D or A registers were written by other instructions.
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most N groups are in flight.
template <int N>
DEV void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
DEV uint64_t smem_tile(const void* p) { return (uint64_t)((smem_u32(p) & 0x3ffff) >> 4); }

// "%0, %1, …" and the operands to go with them.
#define TEN(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define FIRST(t, n) FIRST_##n(t)
#define FIRST_2(t) "%" #t "0,%" #t "1"
#define FIRST_4(t) FIRST_2(t) ",%" #t "2,%" #t "3"
#define FIRST_6(t) FIRST_4(t) ",%" #t "4,%" #t "5"
#define FIRST_8(t) FIRST_6(t) ",%" #t "6,%" #t "7"
#define NAMES_4 FIRST(, 4)
#define NAMES_8 FIRST(, 8)
#define NAMES_16 TEN() "," FIRST(1, 6)
#define NAMES_30 TEN() "," TEN(1) "," TEN(2)
#define NAMES_60 NAMES_30 "," TEN(3) "," TEN(4) "," TEN(5)
#define NAMES_90 NAMES_60 "," TEN(6) "," TEN(7) "," TEN(8)
#define NAMES_32 NAMES_30 "," FIRST(3, 2)
#define NAMES_40 NAMES_30 "," TEN(3)
#define NAMES_48 NAMES_40 "," FIRST(4, 8)
#define NAMES_64 NAMES_60 "," FIRST(6, 4)
#define NAMES_96 NAMES_90 "," FIRST(9, 6)
#define NAMES_128 NAMES_90 "," TEN(9) "," TEN(10) "," TEN(11) "," FIRST(12, 8)
#define D_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D_8(i) D_4(i), D_4(i + 4)
#define D_16(i) D_8(i), D_8(i + 8)
#define D_32(i) D_16(i), D_16(i + 16)
#define D_40(i) D_32(i), D_8(i + 32)
#define D_48(i) D_32(i), D_16(i + 32)
#define D_64(i) D_32(i), D_32(i + 32)
#define D_96(i) D_64(i), D_32(i + 64)
#define D_128(i) D_64(i), D_64(i + 64)

// One N: SIZE = N / 2 registers of D; n0… are the operand numbers after them. B transposed: TRANSPOSE_B = 1.
#define WGMMA_16_BIT(name, type, N, SIZE, n0, n1, n2, n3, n4, n5, n6)                                               \
  template <int TRANSPOSE_B>                                                                                        \
  DEV void name(float (&d)[SIZE], uint64_t a, uint64_t b, int accumulate) {                                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n2 ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" NAMES_##SIZE "}, %" #n0       \
                 ", %" #n1 ", p, 1, 1, 0, %" #n3 ";\n}"                                                             \
                 : D_##SIZE(0)                                                                                      \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(TRANSPOSE_B));                                              \
  }                                                                                                                 \
  template <int TRANSPOSE_B>                                                                                        \
  DEV void name(float (&d)[SIZE], const uint32_t (&a)[4], uint64_t b, int accumulate) {                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n5 ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" NAMES_##SIZE "}, {%" #n0      \
                 ",%" #n1 ",%" #n2 ",%" #n3 "}, %" #n4 ", p, 1, 1, %" #n6 ";\n}"                                    \
                 : D_##SIZE(0)                                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANSPOSE_B));          \
  }
#define WGMMA_8_BIT(name, type, N, SIZE, n0, n1, n2, n3, n4, n5, n6)                                                \
  DEV void name(float (&d)[SIZE], uint64_t a, uint64_t b, int accumulate) {                                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n2 ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." type "." type " {" NAMES_##SIZE "}, %" #n0       \
                 ", %" #n1 ", p, 1, 1;\n}"                                                                          \
                 : D_##SIZE(0)                                                                                      \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                \
  }                                                                                                                 \
  DEV void name(float (&d)[SIZE], const uint32_t (&a)[4], uint64_t b, int accumulate) {                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n5 ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." type "." type " {" NAMES_##SIZE "}, {%" #n0      \
                 ",%" #n1 ",%" #n2 ",%" #n3 "}, %" #n4 ", p, 1, 1;\n}"                                              \
                 : D_##SIZE(0)                                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                            \
  }
#define FOR_EVERY_N(make, name, type)                                \
  make(name, type, 8, 4, 4, 5, 6, 7, 8, 9, 10)                       \
  make(name, type, 16, 8, 8, 9, 10, 11, 12, 13, 14)                  \
  make(name, type, 32, 16, 16, 17, 18, 19, 20, 21, 22)               \
  make(name, type, 64, 32, 32, 33, 34, 35, 36, 37, 38)               \
  make(name, type, 80, 40, 40, 41, 42, 43, 44, 45, 46)               \
  make(name, type, 96, 48, 48, 49, 50, 51, 52, 53, 54)               \
  make(name, type, 128, 64, 64, 65, 66, 67, 68, 69, 70)              \
  make(name, type, 192, 96, 96, 97, 98, 99, 100, 101, 102)           \
  make(name, type, 256, 128, 128, 129, 130, 131, 132, 133, 134)
FOR_EVERY_N(WGMMA_16_BIT, wgmma_any_bf16, "bf16")
FOR_EVERY_N(WGMMA_16_BIT, wgmma_any_f16, "f16")
FOR_EVERY_N(WGMMA_8_BIT, wgmma_any_e4m3, "e4m3")
#else
DEV void wgmma_fence() {}
DEV void wgmma_commit() { twin::wgmma_commit(); }
template <int N>
DEV void wgmma_wait() {
  twin::wgmma_wait(N);
}
DEV uint64_t smem_tile(const void* p) { return (uint64_t)((const unsigned char*)p - twin::shared) >> 4; }

template <int TRANSPOSE_B, int SIZE>
DEV void wgmma_any_bf16(float (&d)[SIZE], uint64_t a, uint64_t b, int accumulate) {
  twin::wgmma(twin::Type::Bf16, d, 2 * SIZE, nullptr, a, b, TRANSPOSE_B, accumulate);
}
template <int TRANSPOSE_B, int SIZE>
DEV void wgmma_any_bf16(float (&d)[SIZE], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  twin::wgmma(twin::Type::Bf16, d, 2 * SIZE, a, 0, b, TRANSPOSE_B, accumulate);
}
template <int TRANSPOSE_B, int SIZE>
DEV void wgmma_any_f16(float (&d)[SIZE], uint64_t a, uint64_t b, int accumulate) {
  twin::wgmma(twin::Type::F16, d, 2 * SIZE, nullptr, a, b, TRANSPOSE_B, accumulate);
}
template <int TRANSPOSE_B, int SIZE>
DEV void wgmma_any_f16(float (&d)[SIZE], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  twin::wgmma(twin::Type::F16, d, 2 * SIZE, a, 0, b, TRANSPOSE_B, accumulate);
}
template <int SIZE>
DEV void wgmma_any_e4m3(float (&d)[SIZE], uint64_t a, uint64_t b, int accumulate) {
  twin::wgmma(twin::Type::E4m3, d, 2 * SIZE, nullptr, a, b, false, accumulate);
}
template <int SIZE>
DEV void wgmma_any_e4m3(float (&d)[SIZE], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  twin::wgmma(twin::Type::E4m3, d, 2 * SIZE, a, 0, b, false, accumulate);
}
#endif

/// A K-major operand at `p` under the 128-byte swizzle.
DEV uint64_t desc_sw128(const void* p) {
  return smem_tile(p) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
/// B with rows of 64 along n at `p`; the next 64 n lie `next` bytes further.
DEV uint64_t desc_sw128_t(const void* p, int next) {
  return smem_tile(p) | (uint64_t)(next >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// D = A·B, or D += A·B with `accumulate`; N is twice the size of d; `a` is a descriptor or four registers.
template <class A, int SIZE>
DEV void wgmma_bf16(float (&d)[SIZE], const A& a, uint64_t b, int accumulate = 1) {
  wgmma_any_bf16<0>(d, a, b, accumulate);
}
template <class A, int SIZE>
DEV void wgmma_bf16_t(float (&d)[SIZE], const A& a, uint64_t b, int accumulate = 1) {
  wgmma_any_bf16<1>(d, a, b, accumulate);
}
template <class A, int SIZE>
DEV void wgmma_f16(float (&d)[SIZE], const A& a, uint64_t b, int accumulate = 1) {
  wgmma_any_f16<0>(d, a, b, accumulate);
}
template <class A, int SIZE>
DEV void wgmma_f16_t(float (&d)[SIZE], const A& a, uint64_t b, int accumulate = 1) {
  wgmma_any_f16<1>(d, a, b, accumulate);
}
/// k 32; both operands K-major (rows of 128 k).
template <class A, int SIZE>
DEV void wgmma_e4m3(float (&d)[SIZE], const A& a, uint64_t b, int accumulate = 1) {
  wgmma_any_e4m3(d, a, b, accumulate);
}
