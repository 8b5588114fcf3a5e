// Kernels by name, and running a grid of blocks one after another on the calling thread.
#include <sys/mman.h>

#include <cstdio>

#include "block.h"

namespace twin {

void run_block();
extern __thread char failure[512];
Entry* first_entry;

Entry::Entry(const char* name, const char* signature, void (*call)(void**))
    : name(name), signature(signature), call(call), next(first_entry), itself(this) {
  first_entry = this;
}

void describe_position(char* out, size_t bytes) {
  int length = snprintf(out, bytes, "kernel %s, block (%u, %u, %u)", block->kernel->name, block_index.x, block_index.y,
                        block_index.z);
  if (!self || length < 0 || (size_t)length >= bytes) return;
  snprintf(out + length, bytes - (size_t)length, ", thread (%u, %u, %u)", self->index.x, self->index.y, self->index.z);
}

constexpr size_t PAGE = 4096, SHARED_MAP = 256 << 10;

static char* map_pages(size_t bytes) {
  void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) fail("no memory for the threads of a block");
  return static_cast<char*>(map);
}

/// What a CPU thread keeps from launch to launch: stacks over guard pages, queues, shared memory under a guard page.
struct Arena {
  Block current;
  char *stacks = nullptr, *copies = nullptr, *shared_map = nullptr;
  size_t capacity = 0;

  void reserve(size_t threads) {
    if (!shared_map) {
      shared_map = map_pages(SHARED_MAP + PAGE);
      mprotect(shared_map + SHARED_MAP, PAGE, PROT_NONE);
    }
    if (threads <= capacity) return;
    release_stacks();
    stacks = map_pages(threads * (STACK_BYTES + PAGE));
    copies = map_pages(threads * COPIES * sizeof(Copy));
    capacity = threads;
    for (size_t i = 0; i < threads; i++) mprotect(stacks + i * (STACK_BYTES + PAGE), PAGE, PROT_NONE);
  }
  void release_stacks() {
    if (capacity) {
      munmap(stacks, capacity * (STACK_BYTES + PAGE));
      munmap(copies, capacity * COPIES * sizeof(Copy));
    }
  }
  ~Arena() {
    release_stacks();
    if (shared_map) munmap(shared_map, SHARED_MAP + PAGE);
  }
};

static void arrange(Arena& arena, uint3 extent) {
  Block& b = arena.current;
  size_t threads = (size_t)extent.x * extent.y * extent.z;
  arena.reserve(threads);
  b.threads.resize(threads);
  b.warps.assign((threads + 31) / 32, Warp{});
  b.warpgroups.resize((threads + 127) / 128);
  for (Warpgroup& group : b.warpgroups) group.size = 0;
  for (size_t i = 0; i < threads; i++) {
    unsigned rank = (unsigned)i;
    Thread& t = b.threads[i];
    t.index = {rank % extent.x, rank / extent.x % extent.y, rank / (extent.x * extent.y)};
    t.rank = (int)rank;
    t.lane = (int)(rank & 31);
    t.warp = &b.warps[i >> 5];
    t.warp->lanes[t.warp->size++] = &t;
    Warpgroup& group = b.warpgroups[i >> 7];
    group.threads[group.size++] = &t;
    t.stack = arena.stacks + i * (STACK_BYTES + PAGE) + PAGE;
    t.copies = reinterpret_cast<Copy*>(arena.copies) + i * COPIES;
  }
}

/// The blocks' order is as free as the threads'.
static size_t pick(size_t i, size_t blocks, int order) {
  if (order == 0) return i;
  if (order == 1) return blocks - 1 - i;
  size_t start = (size_t)order * 7919u % blocks;
  return order % 2 ? (start + i) % blocks : (start + blocks - 1 - i) % blocks;
}

static void launch(Arena& arena, uint3 grid, uint3 extent, size_t bytes) {
  Block& b = arena.current;
  self = nullptr;
  block = &b;
  block_index = {0, 0, 0};
  size_t threads = (size_t)extent.x * extent.y * extent.z, blocks = (size_t)grid.x * grid.y * grid.z;
  if (!threads || threads > 1024 || !blocks) fail("a grid has blocks, a block has 1 to 1024 threads");
  if (grid.y > 65535 || grid.z > 65535) fail("a grid's y and z are at most 65535");
  if (bytes > SHARED_BYTES) fail("more dynamic shared memory than 227 KiB");
  arrange(arena, extent);
  b.shared_bytes = bytes;
  unsigned char* end = reinterpret_cast<unsigned char*>(arena.shared_map) + SHARED_MAP;
  shared = end - (bytes + 1023) / 1024 * 1024;
  block_extent = extent;
  grid_extent = grid;
  for (size_t i = 0; i < blocks; i++) {
    size_t at = pick(i, blocks, b.schedule.order);
    block_index = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y), (unsigned)(at / grid.x / grid.y)};
    memset(shared, 0xff, (size_t)(end - shared));
    run_block();
    for (unsigned char* p = shared + bytes; p < end; p++)
      if (*p != 0xff) fail("something was written past the end of shared memory");
  }
}

}  // namespace twin

using namespace twin;

/// 0, or 1 with a message in `error`. A `dependent` launch has to wait for the one before it, which `before` runs where
/// that is still to be done.
extern "C" int twin_launch(const Entry* kernel, const uint32_t* grid, const uint32_t* extent, size_t shared_bytes,
                           void** arguments, int order, int early, int dependent, int (*before)(void*),
                           void* before_argument, char* error, size_t error_bytes) {
  static thread_local Arena arena;
  watch_faults();
  arena.current.kernel = kernel;
  arena.current.arguments = arguments;
  arena.current.schedule = {order, early};
  arena.current.before = {dependent != 0, before, before_argument};
  try {
    launch(arena, {grid[0], grid[1], grid[2]}, {extent[0], extent[1], extent[2]}, shared_bytes);
    return 0;
  } catch (Failure&) {
    self = nullptr;
    snprintf(error, error_bytes, "%s", failure);
    return 1;
  }
}
