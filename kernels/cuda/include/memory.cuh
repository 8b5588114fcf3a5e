// Loads and stores with cache hints, asynchronous copies to shared memory, dependent launches.
#pragma once
#include "types.cuh"

#ifdef GPU
/// An address in shared memory as instructions take it.
DEV uint32_t smem_u32(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Data that is read once (weights): past L1, in 128-byte sectors of L2. Not for memory that this kernel writes.
DEV uint4 ld_stream(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
DEV uint2 ld_stream(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
DEV uint32_t ld_stream(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
/// A store that nothing reads again soon.
DEV void st_stream(uint4* p, uint4 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
/// Brings the line into L2.
DEV void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/// Copies 16 bytes to shared memory, past L1; zeros when not `valid` (then `s` is not read). Both 16-byte aligned.
DEV void cp_async16(void* d, const void* s, bool valid = true) {
  int n = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem_u32(d)), "l"(s), "r"(n) : "memory");
}
/// 8 or 4 bytes, through L1.
template <int BYTES>
DEV void cp_async_small(void* d, const void* s, bool valid = true) {
  int n = valid ? BYTES : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(smem_u32(d)), "l"(s), "n"(BYTES), "r"(n) : "memory");
}
/// Closes a group of the copies issued since the last.
DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most N of this thread's groups are in flight.
template <int N>
DEV void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/// Waits for the kernel before this one in the stream to end. A dependent launch (`Launch::dependent`) may start before
/// that: until here every thread of it touches only what that kernel doesn't write, and after it reads what that kernel
/// wrote past L1 (not by `__ldg` or `ld_stream`), which may hold older lines. In other launches this is nothing.
DEV void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Lets a dependent launch behind this kernel start before this kernel's end, once all blocks have come here or ended.
DEV void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#else
DEV uint4 ld_stream(const uint4* p) { return *p; }
DEV uint2 ld_stream(const uint2* p) { return *p; }
DEV uint32_t ld_stream(const uint32_t* p) { return *p; }
DEV void st_stream(uint4* p, uint4 v) { *p = v; }
DEV void prefetch_l2(const void*) {}
template <int BYTES>
DEV void cp_async_checked(void* d, const void* s, bool valid) {
  if (((uintptr_t)d | (valid ? (uintptr_t)s : 0)) % BYTES) twin::fail("a cp.async address is misaligned");
  twin::copy_async(d, s, valid ? BYTES : 0, valid ? 0 : BYTES);
}
DEV void cp_async16(void* d, const void* s, bool valid = true) { cp_async_checked<16>(d, s, valid); }
template <int BYTES>
DEV void cp_async_small(void* d, const void* s, bool valid = true) {
  cp_async_checked<BYTES>(d, s, valid);
}
DEV void cp_async_commit() { twin::copy_commit(); }
template <int N>
DEV void cp_async_wait() {
  twin::copy_wait(N);
}
DEV void dependency_wait() { twin::dependency_wait(); }
DEV void launch_dependents() {}
#endif
