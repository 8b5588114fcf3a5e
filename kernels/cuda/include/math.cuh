// Approximate functions, packed bf16 arithmetic and bit tricks.
#pragma once
#include "types.cuh"

#ifdef GPU
/// 2^x, error 2 ulp; subnormal results are 0.
DEV float fast_exp2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
/// log2 x.
DEV float fast_log2(float x) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
/// 1/x, error 1 ulp.
DEV float fast_rcp(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
/// 1/√x.
DEV float fast_rsqrt(float x) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
/// tanh x, error 2^-11: enough before rounding to bf16.
DEV float fast_tanh(float x) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
/// a·b + c of two bf16 each.
DEV uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
/// a·b + c of two f16 each.
DEV uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
/// Any function of three bits, bitwise: LUT is its value on (0xf0, 0xcc, 0xaa).
template <int LUT>
DEV uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(LUT));
  return r;
}
#else
DEV float fast_exp2(float x) { return exp2f(x); }
DEV float fast_log2(float x) { return log2f(x); }
DEV float fast_rcp(float x) { return 1.0f / x; }
DEV float fast_rsqrt(float x) { return 1.0f / sqrtf(x); }
DEV float fast_tanh(float x) { return tanhf(x); }
DEV uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) { return twin::fma_bf16x2(a, b, c); }
DEV uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) { return twin::fma_f16x2(a, b, c); }
template <int LUT>
DEV uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 8; i++)
    if (LUT >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
#endif

/// Four bytes out of the eight of (b, a), as the nibbles of `selector` say.
DEV uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
/// ⌈a / b⌉.
DEV int ceil_div(int a, int b) { return (a + b - 1) / b; }
