// Inside the runtime: a block in flight. Included after twin.h, which names the built-ins as macros.
#pragma once
#include <vector>

#include "twin.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace twin {

/// Thrown on the scheduler's own stack; the message stands in `failure`.
struct Failure {};

/// Which thread runs next, and when asynchronous work is done. Copies and matrix products go opposite ways: a copy that
/// lands at once shows a buffer let go before the product that reads it, which is then done at the last moment; a copy
/// that lands at the last moment shows a product, then done at once, that was issued without waiting for it.
struct Schedule {
  int order;       // 0 forward, 1 reverse, 2 and more: shuffled, keyed by the number
  int early;       // copies land when they are issued, and products are done when nothing else can go on
  bool shuffled() const { return order >= 2; }
  bool copies_late() const { return !early; }
  bool products_late() const { return early; }
};

struct Rendezvous {
  uint32_t mask, arrived;
  int kind;
};

struct Warp {
  Thread* lanes[32];
  int size;
  Rendezvous open[8];
  // The turn that it has: lanes from `first` on (or back), of which `taken` have had theirs.
  int first, taken;
  bool backward;
};

struct Barrier {
  int arrived, needed;
  std::vector<Thread*> waiting;
};

struct TileCopy {
  void* to;
  TileMap map;        // of a tile
  const void* from;   // of a bulk copy; null for a tile
  int bytes, x, y;
  uint64_t* barrier;
};

struct TileStore {
  TileMap map;
  const void* from;
  int x, y;
  Thread* owner;
};

struct Product {
  Type type;
  float* d[128];
  const uint32_t* a_registers[128];  // read when the product is done, as the tensor cores may
  bool from_registers, transpose_b, accumulate;
  int n;
  uint64_t a, b;
};

struct Warpgroup {
  Thread* threads[128];
  int size, arrived, kind;
  std::vector<Product> issued;
  std::vector<size_t> groups;
  size_t awaited;  // groups that all its threads wait for
};

/// The launch before this one in the stream, where this one is allowed to start first.
struct Before {
  bool allowed;
  int (*run)(void* argument);  // null once it has run; gives 0, or 1 if it failed
  void* argument;
};

struct MbarrierWait {
  uint64_t* barrier;
  unsigned parity;
  Thread* thread;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  Barrier barriers[16];
  std::vector<TileCopy> loads;
  std::vector<TileStore> stores;
  std::vector<std::pair<Thread*, size_t>> store_groups;
  std::vector<MbarrierWait> mbarrier_waits;
  int live;
  void* scheduler;  // its stack pointer while a thread runs
  const Entry* kernel;
  void** arguments;
  size_t shared_bytes;
  Schedule schedule;
  Before before;
  uint32_t random;
  bool failed;

  uint32_t draw() {
    random ^= random << 13;
    random ^= random >> 17;
    return random ^= random << 5;
  }
  Warpgroup& warpgroup_of(const Thread* thread) { return warpgroups[thread->rank >> 7]; }
};

extern __thread Block* block;  // the one that runs on this CPU thread

void suspend();                // the current thread gives way: to the next lane of its warp's turn, or the scheduler
void wake_mbarrier(uint64_t* barrier);
bool land_oldest();            // lets one pending copy land; false if there is none
bool do_products();            // does the products that some warpgroup waits for; false if none does
void finish_async();           // fails if something asynchronous was never waited for
using Grouped = void (*)(Warpgroup&);
void warpgroup_collective(int kind, const void* argument, void* result, Grouped together);

/// A thread's stack that starts in `entry`.
void* fresh_stack(char* stack, size_t bytes, void (*entry)());
extern "C" void twin_switch(void** save, void* to);

void watch_faults();           // bad memory accesses end the process with a message that names the thread
void describe_position(char* out, size_t bytes);
const char* describe_address(uintptr_t address, char* out, size_t bytes);

constexpr size_t STACK_BYTES = 64 << 10;
constexpr int COPIES = 512;    // cp.async in flight per thread
constexpr size_t SHARED_BYTES = 227 << 10;

}  // namespace twin
