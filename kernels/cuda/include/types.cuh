// Declaring kernels, device functions and shared memory; storage types of 16 and 8 bits.
#pragma once
#if defined(__CUDACC__)
#include <cstdint>
#define GPU 1
/// An entry point: `KERNEL __launch_bounds__(128) name(...)`, and below it `TWIN_EXPORT(name)`.
#define KERNEL extern "C" __global__ void
#define TWIN_EXPORT(name)
/// Dynamic shared memory from its start, aligned to 1024 bytes: `DYN_SMEM(float, scores);`
#define DYN_SMEM(T, name) T* name = reinterpret_cast<T*>(dynamic_smem)
extern __shared__ __align__(1024) unsigned char dynamic_smem[];
/// A shared array of fixed size.
#define STATIC_SMEM(T, name, n) __shared__ T name[n]
#else
#include "twin.h"
#define KERNEL static void
#define DYN_SMEM(T, name) T* name = reinterpret_cast<T*>(twin::shared)
#define STATIC_SMEM(T, name, n)                  \
  static thread_local twin::Static<T, n> name##_static; \
  T* name = name##_static.get()
#endif

/// A function on the device.
#define DEV static __device__ __forceinline__

/// Brain float: the upper half of an f32.
struct bf16 {
  uint16_t v;
};
/// IEEE half.
struct f16 {
  uint16_t v;
};
/// 8-bit float with 4 bits of exponent, 3 of fraction; 448 is the largest, no infinity.
struct e4m3 {
  uint8_t v;
};
