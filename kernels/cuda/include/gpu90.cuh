// Hopper (sm_90a): mbarriers, the tensor memory accelerator, register budgets; wgmma stands in wgmma.cuh.
#pragma once
#include "gpu.cuh"

#ifdef GPU
/// A tile's shape, filled by the launcher (cuTensorMapEncodeTiled).
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};
#define TMAP_PARAM const __grid_constant__ TensorMap

/// A barrier in shared memory that `count` arrivals and the bytes they announce complete. One thread, then
/// mbar_fence_init and a block barrier.
DEV void mbar_init(uint64_t* b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(b)), "r"(count));
}
DEV void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/// Arrives, and announces bytes that copies will bring.
DEV void mbar_expect_tx(uint64_t* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(b)), "r"(bytes) : "memory");
}
DEV void mbar_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_u32(b)) : "memory");
}
/// Waits for the end of the phase of this parity (the first is 0).
DEV void mbar_wait(uint64_t* b, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "W%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra W%=;\n}" ::"r"(smem_u32(b)),
      "r"(parity)
      : "memory");
}
/// Brings the map into the accelerator's cache.
DEV void tma_prefetch_map(const TensorMap* m) { asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory"); }
/// Copies the box at (column x, row y) to shared memory; zeros outside. Its bytes complete on `bar`.
DEV void tma_load_2d(void* dst, const TensorMap* m, uint64_t* bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0],[%1,{%3,%4}],[%2];" ::"r"(
          smem_u32(dst)),
      "l"(m), "r"(smem_u32(bar)), "r"(x), "r"(y)
      : "memory");
}
/// Copies a box to global memory; what lies outside is left out. Before it: fence_async and a barrier.
DEV void tma_store_2d(const TensorMap* m, const void* src, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0,{%2,%3}],[%1];" ::"l"(m),
               "r"(smem_u32(src)), "r"(x), "r"(y)
               : "memory");
}
DEV void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until at most N of this thread's store groups still read shared memory.
template <int N>
DEV void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
/// Copies contiguous bytes (a multiple of 16, both ends aligned to 16) to shared memory.
DEV void bulk_load(void* dst, const void* src, int bytes, uint64_t* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   smem_u32(dst)),
               "l"(src), "r"(bytes), "r"(smem_u32(bar))
               : "memory");
}
/// Makes ordinary writes to shared memory visible to wgmma and bulk copies: each writing thread, before the barrier.
DEV void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// A warpgroup's registers per thread from here on: a multiple of 8.
template <int N>
DEV void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
DEV void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
#else
struct alignas(128) TensorMap {
  twin::TileMap map;
  unsigned char unused[128 - sizeof(twin::TileMap)];
};
#define TMAP_PARAM const TensorMap

DEV void mbar_init(uint64_t* b, int count) { twin::mbarrier_init(b, (unsigned)count); }
DEV void mbar_fence_init() {}
DEV void mbar_expect_tx(uint64_t* b, int bytes) { twin::mbarrier_arrive(b, bytes); }
DEV void mbar_arrive(uint64_t* b) { twin::mbarrier_arrive(b, 0); }
DEV void mbar_wait(uint64_t* b, uint32_t parity) { twin::mbarrier_wait(b, parity); }
DEV void tma_prefetch_map(const TensorMap*) {}
DEV void tma_load_2d(void* dst, const TensorMap* m, uint64_t* bar, int x, int y) {
  twin::tile_load(dst, &m->map, bar, x, y);
}
DEV void tma_store_2d(const TensorMap* m, const void* src, int x, int y) { twin::tile_store(&m->map, src, x, y); }
DEV void tma_store_commit() { twin::store_commit(); }
template <int N>
DEV void tma_store_wait() {
  twin::store_wait(N);
}
DEV void bulk_load(void* dst, const void* src, int bytes, uint64_t* bar) { twin::bulk_load(dst, src, bytes, bar); }
DEV void fence_async() {}
template <int N>
DEV void more_registers() {}
template <int N>
DEV void fewer_registers() {}
#endif

#include "wgmma.cuh"
