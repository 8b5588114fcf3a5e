// Vectors of bf16 in memory, and what memory-bound kernels need besides: streaming loads, sums over a block,
// cheap special functions. PTX stands in the GPU half; the CPU half computes the same by definition.
#pragma once
#include "gpu.cuh"

// Eight bf16 of one 16-byte access, as floats.
struct Eight { float x[8]; };

DEV uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

DEV Eight unpack8(const uint4& v) {
  Eight e;
#pragma unroll
  for (int i = 0; i < 4; i++) { e.x[2 * i] = lo2f(word(v, i)); e.x[2 * i + 1] = hi2f(word(v, i)); }
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
DEV void store8(bf16* p, const Eight& e) { *(uint4*)p = pack8(e); }

#ifdef GPU
// Read once, by nobody else: past L1.
DEV uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
// What another block of this grid wrote, after a fence: from L2, never from L1.
DEV float load_l2(const float* p) { float v; asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory"); return v; }
DEV float fast_rcp(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEV float fast_rsqrt(float x) { float r; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEV float fast_log2(float x) { float r; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
// Within [-pi, pi]: absolute error below 2^-20.
DEV float fast_sin(float x) { float r; asm("sin.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEV float fast_cos(float x) { float r; asm("cos.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEV float f16_to_f(uint16_t h) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h)); return r; }
// a * b + c of bf16 pairs, rounded once.
DEV uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) { uint32_t r; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
// Programmatic dependent launch: what stands before may overlap the previous kernel. Nothing without the
// launch attribute, and before Hopper.
DEV void grid_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#else
DEV uint4 load_stream(const void* p) { return *(const uint4*)p; }
DEV float load_l2(const float* p) { return *p; }
DEV float fast_rcp(float x) { return 1.0f / x; }
DEV float fast_rsqrt(float x) { return 1.0f / sqrtf(x); }
DEV float fast_log2(float x) { return log2f(x); }
DEV float fast_sin(float x) { return sinf(x); }
DEV float fast_cos(float x) { return cosf(x); }
DEV float f16_to_f(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  float magnitude = __uint_as_float((rest << 13) + 0x38000000);        // normal: rebias the exponent
  if (rest < 0x400) magnitude = (float)rest * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
  return sign ? -magnitude : magnitude;
}
DEV uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return pack_bf16(fmaf(lo2f(a), lo2f(b), lo2f(c)), fmaf(hi2f(a), hi2f(b), hi2f(c)));
}
DEV void grid_wait() {}
#endif

DEV float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// The sum over a block of whole warps, the same in every thread and in the same order always. `shared`: a float
// per warp, free to use again after the caller's next barrier.
DEV float block_sum(float x, float* shared) {
  x = warp_sum(x);
  int warps = blockDim.x >> 5;
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < warps; i++) sum += shared[i];
  return sum;
}

// e4m3 of a float: round to nearest even, saturating at 448 (NaN stays NaN). In integers, for all GPUs: sm_80
// has no such instruction, and it costs little beside the memory it saves.
DEV uint32_t to_e4m3(float x) {
  uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7f;
  if (magnitude >= 0x43e00000) return sign | 0x7e;  // 448 and above
  if (magnitude < 0x3c800000) {                     // below 2^-6: multiples of 2^-9, rounded by adding 2^14
    uint32_t units = __float_as_uint(__uint_as_float(magnitude) + 16384.0f);
    return sign | (units & 0xf);
  }
  uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
  uint32_t code = (rounded >> 20) - (120 << 3);
  return sign | (code > 0x7e ? 0x7e : code);
}
