// 16- and 8-bit floating point, as the GPU's cvt.rn and cvt.rn.satfinite convert.
#include "block.h"

namespace twin {

float half_to_float(uint16_t bits) {
  float sign = bits & 0x8000 ? -1.0f : 1.0f;
  int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * ldexpf((float)fraction, -24);
  return sign * ldexpf((float)(fraction | 0x400), exponent - 25);
}

uint16_t float_to_half(float value) {
  uint32_t u = __float_as_uint(value);
  uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) return 0x7fff;
  if (u >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536 or more
  if (u < 0x38800000) return sign | (uint16_t)nearbyintf(ldexpf(__uint_as_float(u), 24));
  u += 0xfff + (u >> 13 & 1);
  return sign | (uint16_t)((u - 0x38000000) >> 13);
}

static float decode_e4m3(uint8_t bits) {
  float sign = bits & 0x80 ? -1.0f : 1.0f;
  int exponent = bits >> 3 & 15, fraction = bits & 7;
  if ((bits & 0x7f) == 0x7f) return NAN;
  if (exponent == 0) return sign * ldexpf((float)fraction, -9);
  return sign * ldexpf((float)(fraction | 8), exponent - 10);
}

float e4m3_to_float(uint8_t bits) {
  static const struct Table {
    float value[256];
    Table() {
      for (int i = 0; i < 256; i++) value[i] = decode_e4m3((uint8_t)i);
    }
  } table;
  return table.value[bits];
}

uint8_t float_to_e4m3(float value) {
  uint32_t u = __float_as_uint(value);
  uint8_t sign = (uint8_t)(u >> 24 & 0x80);
  u &= 0x7fffffff;
  if (u > 0x7f800000) return 0x7f;
  if (u < 0x3c800000) return sign | (uint8_t)nearbyintf(ldexpf(__uint_as_float(u), 9));  // below 2^-6
  u += 0x7ffff + (u >> 20 & 1);
  uint32_t code = (u - 0x3c000000) >> 20;
  return sign | (uint8_t)(code > 0x7e ? 0x7e : code);  // 448 is the largest
}

static uint32_t float_to_bf16(float value) {
  uint32_t u = __float_as_uint(value);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

// In double: the product of two halves is exact there, and the one rounding that counts is the last.
uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out = 0;
  for (int i = 0; i < 2; i++) {
    auto half = [i](uint32_t pair) { return (double)__uint_as_float(pair >> (16 * i) << 16); };
    out |= float_to_bf16((float)(half(a) * half(b) + half(c))) << (16 * i);
  }
  return out;
}

uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out = 0;
  for (int i = 0; i < 2; i++) {
    auto half = [i](uint32_t pair) { return (double)half_to_float((uint16_t)(pair >> (16 * i))); };
    out |= (uint32_t)float_to_half((float)(half(a) * half(b) + half(c))) << (16 * i);
  }
  return out;
}

}  // namespace twin
