// What a kernel file includes: everything here works on sm_80 and later, and on the twin.
//
// A kernel uses CUDA's built-ins and these wrappers, never PTX of its own, so that g++ can compile it against the twin
// (kernels/twin/runtime). Each wrapper stands beside what it does there. No CUDA header is included.
//
//   types.cuh    KERNEL, DEV, shared memory, storage types
//   math.cuh     approximate functions, packed bf16 arithmetic, bit tricks
//   convert.cuh  bf16, f16, fp8, int8, int4 to and from f32 and bf16
//   warp.cuh     reductions over a warp and a block, named barriers
//   memory.cuh   streaming loads and stores, cp.async, programmatic dependent launch
//   mma.cuh      ldmatrix, stmatrix, mma.sync
//   gpu90.cuh    Hopper: mbarrier, tensor memory accelerator, wgmma (included by itself)
#pragma once
#include "types.cuh"
#include "math.cuh"
#include "convert.cuh"
#include "warp.cuh"
#include "memory.cuh"
#include "mma.cuh"
