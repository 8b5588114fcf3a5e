// Copies that land later: cp.async, mbarriers, the tensor memory accelerator.
//
// Early: everything lands when it is issued, so that reusing a buffer too soon shows. Late: a cp.async lands when its
// thread waits for it, a tile only when every thread of the block is stuck, so that reading without waiting shows.
#include "block.h"

namespace twin {

// --- cp.async

static void land(const Copy& copy) {
  memcpy(copy.to, copy.from, copy.bytes);
  memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
}

void copy_async(void* to, const void* from, int bytes, int zeros) {
  Thread* me = self;
  if (me->copies_issued >= COPIES) fail("too many cp.async copies in flight");
  Copy copy{to, from, (uint32_t)bytes, (uint32_t)zeros};
  if (!block->schedule.copies_late()) {
    land(copy);
    copy.bytes = copy.zeros = 0;
  }
  me->copies[me->copies_issued++] = copy;
}

void copy_commit() {
  Thread* me = self;
  if (me->groups_closed >= 64) fail("too many cp.async groups in flight");
  me->groups[me->groups_closed++] = me->copies_issued;
}

void copy_wait(int keep) {
  Thread* me = self;
  int done = me->groups_closed - keep;
  if (done <= 0) return;
  int landed = me->groups[done - 1];
  for (int i = 0; i < landed; i++) land(me->copies[i]);
  memmove(me->copies, me->copies + landed, sizeof(Copy) * (size_t)(me->copies_issued - landed));
  me->copies_issued -= landed;
  for (int i = done; i < me->groups_closed; i++) me->groups[i - done] = me->groups[i] - landed;
  me->groups_closed = keep;
}

// --- mbarrier: a phase ends when all arrivals and all expected bytes have come

struct Mbarrier {
  uint64_t pending : 12, count : 12, phase : 1, mark : 7;
  int64_t bytes : 32;
};
static_assert(sizeof(Mbarrier) == 8, "an mbarrier is an opaque 8 bytes of shared memory");
constexpr unsigned MARK = 0x5a;

static Mbarrier& open(uint64_t* barrier) {
  Mbarrier& m = *reinterpret_cast<Mbarrier*>(barrier);
  if (m.mark != MARK) fail("an mbarrier is used before its init");
  return m;
}

void mbarrier_init(uint64_t* barrier, unsigned count) {
  if (reinterpret_cast<uintptr_t>(barrier) & 7) fail("an mbarrier lies at a multiple of 8 bytes");
  Mbarrier& m = *reinterpret_cast<Mbarrier*>(barrier);
  m.pending = m.count = count;
  m.phase = 0;
  m.mark = MARK;
  m.bytes = 0;
}

static void advance(uint64_t* barrier) {
  Mbarrier& m = open(barrier);
  if (m.pending || m.bytes) return;
  m.phase ^= 1;
  m.pending = m.count;
  wake_mbarrier(barrier);
}

void mbarrier_arrive(uint64_t* barrier, int64_t expected_bytes) {
  Mbarrier& m = open(barrier);
  if (!m.pending) fail("more arrivals at an mbarrier than its count");
  m.bytes += expected_bytes;
  m.pending--;
  advance(barrier);
}

void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  if (open(barrier).phase != parity) return;
  self->state = State::Waiting;
  block->mbarrier_waits.push_back({barrier, parity, self});
  suspend();
}

void wake_mbarrier(uint64_t* barrier) {
  auto& waits = block->mbarrier_waits;
  for (size_t i = 0; i < waits.size();) {
    if (waits[i].barrier == barrier && open(barrier).phase != waits[i].parity) {
      waits[i].thread->state = State::Ready;
      waits.erase(waits.begin() + (long)i);
    } else {
      i++;
    }
  }
}

// --- Tiles and bulk copies

static size_t swizzled(size_t offset, unsigned bytes) {
  unsigned bits = bytes / 16 - 1;  // 128: three bits, 64: two, 32: one
  return offset ^ ((offset >> 7 & bits) << 4);
}

/// Calls `each(offset in shared memory, address in global memory or null outside)` for every element of the box.
template <class F>
static void walk(const TileMap& map, const void* tile, int x, int y, F each) {
  size_t row_bytes = (size_t)map.box[0] * map.element;
  if (map.swizzle && row_bytes > map.swizzle) fail("a swizzled box is at most as wide as the swizzle");
  size_t base = (size_t)(static_cast<const unsigned char*>(tile) - shared);
  if (base % (map.swizzle ? map.swizzle * 8 : 128)) fail("a tile in shared memory is misaligned for its swizzle");
  if (base + row_bytes * map.box[1] > block->shared_bytes) fail("a tile reaches past the end of shared memory");
  for (uint32_t r = 0; r < map.box[1]; r++) {
    for (uint32_t c = 0; c < map.box[0]; c++) {
      size_t offset = base + r * row_bytes + c * map.element;
      if (map.swizzle) offset = swizzled(offset, map.swizzle);
      int64_t column = (int64_t)x + c, row = (int64_t)y + r;
      bool inside = column >= 0 && row >= 0 && column < (int64_t)map.extent[0] && row < (int64_t)map.extent[1];
      const char* address = static_cast<const char*>(map.base) + row * (int64_t)map.pitch + column * map.element;
      each(offset, inside ? address : nullptr);
    }
  }
}

static void land(const TileCopy& copy) {
  int64_t bytes = copy.bytes;
  if (copy.from) {
    memcpy(copy.to, copy.from, (size_t)bytes);
  } else {
    uint32_t element = copy.map.element;
    walk(copy.map, copy.to, copy.x, copy.y, [&](size_t offset, const char* address) {
      if (address) {
        memcpy(shared + offset, address, element);
      } else {
        memset(shared + offset, 0, element);
      }
    });
    bytes = (int64_t)copy.map.box[0] * copy.map.box[1] * element;
  }
  open(copy.barrier).bytes -= bytes;
  advance(copy.barrier);
}

static void issue(const TileCopy& copy) {
  open(copy.barrier);
  if (block->schedule.copies_late()) {
    block->loads.push_back(copy);
  } else {
    land(copy);
  }
}

void tile_load(void* to, const TileMap* map, uint64_t* barrier, int x, int y) {
  issue({to, *map, nullptr, 0, x, y, barrier});
}

void bulk_load(void* to, const void* from, int bytes, uint64_t* barrier) {
  if (((uintptr_t)to | (uintptr_t)from | (unsigned)bytes) & 15) fail("a bulk copy needs multiples of 16 bytes");
  issue({to, TileMap{}, from, bytes, 0, 0, barrier});
}

bool land_oldest() {
  if (block->loads.empty()) return false;
  // Any order is allowed: the newest first under the shuffled orders.
  bool newest = block->schedule.shuffled();
  TileCopy copy = newest ? block->loads.back() : block->loads.front();
  block->loads.erase(newest ? block->loads.end() - 1 : block->loads.begin());
  land(copy);
  return true;
}

static void land(const TileStore& store) {
  walk(store.map, store.from, store.x, store.y, [&](size_t offset, const char* address) {
    if (address) memcpy(const_cast<char*>(address), shared + offset, store.map.element);
  });
}

void tile_store(const TileMap* map, const void* from, int x, int y) {
  TileStore store{*map, from, x, y, self};
  if (block->schedule.copies_late()) {
    block->stores.push_back(store);
  } else {
    land(store);
  }
}

void store_commit() {
  size_t mine = 0;
  for (const TileStore& store : block->stores) mine += store.owner == self;
  block->store_groups.push_back({self, mine});
}

void store_wait(int keep) {
  auto& groups = block->store_groups;
  std::vector<size_t> ends;
  for (const auto& group : groups)
    if (group.first == self) ends.push_back(group.second);
  int done = (int)ends.size() - keep;
  if (done <= 0) return;
  size_t landed = ends[(size_t)done - 1], seen = 0;
  auto& stores = block->stores;
  for (size_t i = 0; i < stores.size() && seen < landed;) {
    if (stores[i].owner == self) {
      land(stores[i]);
      stores.erase(stores.begin() + (long)i);
      seen++;
    } else {
      i++;
    }
  }
  for (size_t i = 0; i < groups.size();) {
    if (groups[i].first != self) {
      i++;
    } else if (done-- > 0) {
      groups.erase(groups.begin() + (long)i);
    } else {
      groups[i++].second -= seen;
    }
  }
}

void finish_async() {
  if (!block->loads.empty()) fail("the block ended with a tile load that nothing waited for");
  if (!block->stores.empty()) fail("the block ended with a tile store that nothing waited for");
  for (const Warpgroup& group : block->warpgroups)
    if (!group.issued.empty()) fail("the block ended with a wgmma that nothing waited for");
}

}  // namespace twin
