// What a kernel file sees of the twin: CUDA's built-in variables, types and functions, for a host compiler.
//
// A kernel runs here from its own source. Each CUDA thread is a fiber; the threads of a block take turns on one CPU
// thread and change at the points where CUDA threads can wait for one another. Which thread runs next, and whether
// asynchronous copies and products are done at once or at the last moment allowed, is a `Schedule`: a kernel that
// forgets a barrier or a wait gives a wrong result under some of them. Shared memory starts as NaN, device memory lies between guard pages.
//
// Not modelled: races that no tried order shows, memory order between blocks, proxies (fence.proxy.async does
// nothing), clusters, bank conflicts, register limits, the rounding inside tensor cores. No block may spin on another.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};

namespace twin {

struct Warp;
struct Block;

/// One copy in flight between global and shared memory (cp.async).
struct Copy {
  void* to;
  const void* from;
  uint32_t bytes, zeros;
};

enum class State : uint8_t { Ready, Waiting, Done };

/// A CUDA thread.
struct Thread {
  uint3 index;
  int lane;
  int rank;  // in the block
  Warp* warp;
  State state;
  void* stack_pointer;
  char* stack;
  const void* argument;  // of the collective that it is in
  void* result;
  Copy* copies;  // cp.async: issued and not yet landed
  int copies_issued, groups_closed;
  int groups[64];
  bool waited;  // for the launch before
};

/// A tile of a matrix in global memory, as cuTensorMapEncodeTiled describes it.
struct TileMap {
  const void* base;
  uint32_t element;    // bytes
  uint32_t swizzle;    // bytes: 0, 32, 64, 128
  uint64_t extent[2];  // elements: columns, rows
  uint64_t pitch;      // bytes between rows
  uint32_t box[2];     // elements: columns, rows
};

extern __thread Thread* self;
extern __thread uint3 block_index, block_extent, grid_extent;
extern __thread unsigned char* shared;  // dynamic shared memory, aligned to 1024
extern __thread uint64_t generation;    // counts blocks: static shared memory is poisoned when it changes

/// Ends the launch with an error that names the thread.
[[noreturn]] void fail(const char* message);

/// Waits at barrier `id` until `count` threads have arrived (0: the whole block).
void barrier(int id, int count);
/// Arrives at barrier `id` without waiting.
void barrier_arrive(int id, int count);

/// Every lane of `mask` comes here with the same `kind`; the last one runs `together` over all of them.
using Together = void (*)(Thread** lanes, uint32_t mask);
void collective(uint32_t mask, int kind, const void* argument, void* result, Together together);

void copy_async(void* to, const void* from, int bytes, int zeros);
void copy_commit();
void copy_wait(int keep);

void mbarrier_init(uint64_t* barrier, unsigned count);
void mbarrier_arrive(uint64_t* barrier, int64_t expected_bytes);
void mbarrier_wait(uint64_t* barrier, unsigned parity);
void tile_load(void* to, const TileMap* map, uint64_t* barrier, int x, int y);
void tile_store(const TileMap* map, const void* from, int x, int y);
void bulk_load(void* to, const void* from, int bytes, uint64_t* barrier);
void store_commit();
void store_wait(int keep);

/// Runs the launch before this one in the stream, if that was put off until here.
void dependency_wait();

void load_matrices(uint32_t* rows, const void* address, int count, bool transposed);
void store_matrices(const uint32_t* rows, void* address, int count, bool transposed);
enum class Type { Bf16, F16, S8, E4m3 };
/// D += A·B of m16n8k(32 bytes): `c` is 4 floats, or 4 ints for S8.
void mma(Type type, void* c, const uint32_t* a, const uint32_t* b);
/// D = A·B (+ D) of m64nNk(32 bytes). `registers` holds A's fragment, or is null and `a` describes it.
void wgmma(Type type, float* d, int n, const uint32_t* registers, uint64_t a, uint64_t b, bool transpose_b,
           bool accumulate);
void wgmma_commit();
void wgmma_wait(int keep);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float e4m3_to_float(uint8_t bits);
uint8_t float_to_e4m3(float value);
uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);
uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c);

/// Static shared memory: NaN at the start of each block.
template <class T, int N>
struct Static {
  alignas(128) unsigned char bytes[sizeof(T) * N];
  uint64_t seen;
  T* get() {
    if (seen != generation) {
      std::memset(bytes, 0xff, sizeof bytes);
      seen = generation;
    }
    return reinterpret_cast<T*>(bytes);
  }
};

// --- Entries: a kernel by name, its arguments as cuLaunchKernel takes them

template <class T>
constexpr char code() {
  if (std::is_pointer<T>::value) return 'p';
  if (std::is_same<T, float>::value) return 'f';
  if (std::is_integral<T>::value) return sizeof(T) == 4 ? 'i' : sizeof(T) == 8 ? 'l' : '?';
  return sizeof(T) == 128 ? 't' : 's';
}

template <class... A>
struct Signature {
  static const char* text() {
    static const char codes[] = {code<A>()..., 0};
    return codes;
  }
};

struct Entry {
  const char* name;
  const char* signature;
  void (*call)(void** arguments);
  Entry* next;
  Entry* itself;
  Entry(const char* name, const char* signature, void (*call)(void**));
};

template <class F>
struct Caller;
template <class... A>
struct Caller<void (*)(A...)> {
  template <void (*K)(A...), size_t... I>
  static void apply(void** arguments, std::index_sequence<I...>) {
    K(*static_cast<A*>(arguments[I])...);
  }
  template <void (*K)(A...)>
  static void call(void** arguments) {
    apply<K>(arguments, std::index_sequence_for<A...>{});
  }
  static const char* signature() { return Signature<A...>::text(); }
};

}  // namespace twin

#define TWIN_EXPORT(k) \
  static twin::Entry twin_entry_##k(#k, twin::Caller<decltype(&k)>::signature(), twin::Caller<decltype(&k)>::call<&k>);

#define threadIdx (twin::self->index)
#define blockIdx (twin::block_index)
#define blockDim (twin::block_extent)
#define gridDim (twin::grid_extent)

#include "builtins.h"
