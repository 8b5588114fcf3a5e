// Between storage types and f32. Packed values: the lower half of a word is the element of lower index.
#pragma once
#include "math.cuh"

DEV float bf2f(bf16 x) { return __uint_as_float((uint32_t)x.v << 16); }
/// The lower bf16 of a pair.
DEV float lo2f(uint32_t pair) { return __uint_as_float(pair << 16); }
/// The upper bf16 of a pair.
DEV float hi2f(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

#ifdef GPU
/// Two f32 to bf16, to nearest even.
DEV uint32_t pack_bf16(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
/// Two f32 to f16, to nearest even.
DEV uint32_t pack_f16(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
DEV float f162f(f16 x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.v));
  return r;
}
/// Two f32 to e4m3, to nearest even; beyond ±448 it is ±448. In hardware from sm_89.
DEV uint16_t pack_e4m3(float lo, float hi) {
#if __CUDA_ARCH__ >= 890
  uint16_t r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
  return r;
#else
  uint32_t out = 0;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint32_t bits = __float_as_uint(i ? hi : lo), sign = bits >> 24 & 0x80, u = bits & 0x7fffffff, code;
    if (u > 0x7f800000) {
      code = 0x7f;
    } else if (u < 0x3c800000) {  // below 2^-6: a multiple of 2^-9
      code = (uint32_t)__float2int_rn(__uint_as_float(u) * 512.0f);
    } else {
      u += 0x7ffff + (u >> 20 & 1);
      code = min((u - 0x3c000000) >> 20, 0x7eu);
    }
    out |= (code == 0x7f && u > 0x7f800000 ? code : sign | code) << (8 * i);
  }
  return (uint16_t)out;
#endif
}
#else
DEV uint32_t bf16_bits(float f) {
  uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
DEV uint32_t pack_bf16(float lo, float hi) { return bf16_bits(lo) | bf16_bits(hi) << 16; }
DEV uint32_t pack_f16(float lo, float hi) { return twin::float_to_half(lo) | (uint32_t)twin::float_to_half(hi) << 16; }
DEV float f162f(f16 x) { return twin::half_to_float(x.v); }
DEV uint16_t pack_e4m3(float lo, float hi) {
  return (uint16_t)(twin::float_to_e4m3(lo) | twin::float_to_e4m3(hi) << 8);
}
#endif

DEV bf16 f2bf(float x) { return bf16{(uint16_t)pack_bf16(x, 0.0f)}; }
DEV f16 f2f16(float x) { return f16{(uint16_t)pack_f16(x, 0.0f)}; }
/// The lower and the upper f16 of a pair.
DEV float lo_f16(uint32_t pair) { return f162f(f16{(uint16_t)pair}); }
DEV float hi_f16(uint32_t pair) { return f162f(f16{(uint16_t)(pair >> 16)}); }

/// Two e4m3 to two bf16, exactly; NaN becomes ±480. Moves the bits into place and repairs the exponent by ·2^120.
DEV uint32_t e4m3x2_to_bf16(uint32_t pair) {
  uint32_t wide = (pair & 0xff) | (pair & 0xff00) << 8;
  uint32_t bits = (wide & 0x00800080u) << 8 | (wide & 0x007f007fu) << 4;
  return fma_bf16x2(bits, 0x7b807b80u, 0x80008000u);
}
/// An e4m3 to f32, exactly; NaN becomes ±480.
DEV float e4m32f(e4m3 x) {
  return __uint_as_float((uint32_t)(x.v & 0x80) << 24 | (uint32_t)(x.v & 0x7f) << 20) * 0x1p120f;
}

/// Four int8 to bf16, exactly: `lo` gets bytes 0 and 1, `hi` bytes 2 and 3.
DEV void int8x4_to_bf16(uint32_t bytes, uint32_t& lo, uint32_t& hi) {
  uint32_t biased = bytes ^ 0x80808080u;  // as an unsigned byte b + 128, the last bits of 2^23 + b + 128
  float f[4];
#pragma unroll
  for (int i = 0; i < 4; i++) f[i] = __uint_as_float(prmt(biased, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
  // Integers of 8 bits are exact in bf16: its half of the f32 is the whole of it.
  lo = prmt(__float_as_uint(f[0]), __float_as_uint(f[1]), 0x7632);
  hi = prmt(__float_as_uint(f[2]), __float_as_uint(f[3]), 0x7632);
}
/// Unsigned 4-bit values in bits 0–3 and 16–19 of `word`, minus `zero`, to two bf16. `zero` is the pair -(128 + z).
DEV uint32_t int4x2_to_bf16(uint32_t word, uint32_t minus_zero_128) {
  uint32_t magic = lop3<0xea>(word, 0x000f000fu, 0x43004300u);  // (a & b) | c: 128 + v
  return fma_bf16x2(magic, 0x3f803f80u, minus_zero_128);
}
