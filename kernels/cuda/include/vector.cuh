// Vectors of eight bf16, a 16-byte access each, and what only memory-bound kernels need besides.
#pragma once
#include "gpu.cuh"

/// Eight bf16 of one 16-byte access, as floats.
struct Eight {
  float x[8];
};

DEV uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

DEV Eight unpack8(const uint4& v) {
  Eight e;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    e.x[2 * i] = lo2f(word(v, i));
    e.x[2 * i + 1] = hi2f(word(v, i));
  }
  return e;
}

DEV uint4 pack8(const Eight& e) {
  uint4 v;
  v.x = pack_bf16(e.x[0], e.x[1]);
  v.y = pack_bf16(e.x[2], e.x[3]);
  v.z = pack_bf16(e.x[4], e.x[5]);
  v.w = pack_bf16(e.x[6], e.x[7]);
  return v;
}

DEV Eight load8(const bf16* p) { return unpack8(__ldg((const uint4*)p)); }
/// Read once, by nobody else.
DEV uint4 stream8(const bf16* p) { return ld_stream((const uint4*)p); }
DEV void store8(bf16* p, const Eight& e) { *(uint4*)p = pack8(e); }

#ifdef GPU
/// What another block of this grid wrote before a fence: from L2, never from L1.
DEV float ld_l2(const float* p) {
  float v;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
  return v;
}
/// Within [-pi, pi]: absolute error below 2^-20.
DEV float fast_sin(float x) {
  float r;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEV float fast_cos(float x) {
  float r;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
#else
DEV float ld_l2(const float* p) { return *p; }
DEV float fast_sin(float x) { return sinf(x); }
DEV float fast_cos(float x) { return cosf(x); }
#endif
