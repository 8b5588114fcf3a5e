// Tensor cores through registers: ldmatrix, stmatrix and mma.sync of one warp.
//
// Fragments of m16n8k16 (two 16-bit values a register; k32 with four 8-bit values is the same in bytes), lane l,
// g = l / 4, t = l % 4:   A[0]: (row g,     k 2t…)   A[2]: (g,     8 + 2t…)   B[0]: (k 2t…,     column g)
//                         A[1]: (row g + 8, k 2t…)   A[3]: (g + 8, 8 + 2t…)   B[1]: (k 8 + 2t…, column g)
//                         C[0], C[1]: (row g, columns 2t, 2t + 1)   C[2], C[3]: (row g + 8, the same)
#pragma once
#include "memory.cuh"

#ifdef GPU
/// Four 8×8 matrices of 16-bit values: lane 8j + r gives the address of row r of matrix j.
DEV void ldsm_x4(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_u32(p))
               : "memory");
}
/// The same, each matrix transposed.
DEV void ldsm_x4_t(uint32_t (&r)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_u32(p))
               : "memory");
}
/// Two matrices: lanes 0–15 give the addresses (the others' are not used, but must be aligned).
DEV void ldsm_x2(uint32_t (&r)[2], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_u32(p))
               : "memory");
}
DEV void ldsm_x2_t(uint32_t (&r)[2], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_u32(p))
               : "memory");
}
#if __CUDA_ARCH__ >= 900
/// Four 8×8 matrices to shared memory.
DEV void stsm_x4(void* p, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(smem_u32(p)), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}
#endif
#define MMA_16_8(name, shape_types, T, constraint)                                                                 \
  DEV void name(T (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {                                       \
    asm volatile("mma.sync.aligned." shape_types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"            \
                 : constraint(c[0]), constraint(c[1]), constraint(c[2]), constraint(c[3])                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                  \
  }
/// C += A·B, f32 sums of bf16 products.
MMA_16_8(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "+f")
/// … of f16 products.
MMA_16_8(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32", float, "+f")
/// … int32 sums of int8 products, k32.
MMA_16_8(mma_s8, "m16n8k32.row.col.s32.s8.s8.s32", int, "+r")
#if __CUDA_ARCH__ >= 890
/// … f32 sums of e4m3 products, k32. From sm_89.
MMA_16_8(mma_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32", float, "+f")
#endif
#undef MMA_16_8
#else
DEV void ldsm_x4(uint32_t (&r)[4], const void* p) { twin::load_matrices(r, p, 4, false); }
DEV void ldsm_x4_t(uint32_t (&r)[4], const void* p) { twin::load_matrices(r, p, 4, true); }
DEV void ldsm_x2(uint32_t (&r)[2], const void* p) { twin::load_matrices(r, p, 2, false); }
DEV void ldsm_x2_t(uint32_t (&r)[2], const void* p) { twin::load_matrices(r, p, 2, true); }
DEV void stsm_x4(void* p, const uint32_t (&r)[4]) { twin::store_matrices(r, p, 4, false); }
#define MMA_16_8(name, type, T)                                                \
  DEV void name(T (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    uint32_t b[2] = {b0, b1};                                                  \
    twin::mma(twin::Type::type, c, a, b);                                      \
  }
MMA_16_8(mma_bf16, Bf16, float)
MMA_16_8(mma_f16, F16, float)
MMA_16_8(mma_s8, S8, int)
MMA_16_8(mma_e4m3, E4m3, float)
#undef MMA_16_8
#endif
