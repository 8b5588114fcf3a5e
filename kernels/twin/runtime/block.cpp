// A block: its threads take turns, meet in warp operations and at barriers.
#include "block.h"

#include <cstdio>

namespace twin {

__thread Thread* self;
__thread uint3 block_index, block_extent, grid_extent;
__thread unsigned char* shared;
__thread uint64_t generation;
__thread Block* block;
__thread char failure[512];

void fail(const char* message) {
  char where[160];
  describe_position(where, sizeof where);
  snprintf(failure, sizeof failure, "%s: %s", where, message);
  if (!self) throw Failure{};
  block->failed = true;
  twin_switch(&self->stack_pointer, block->scheduler);
  __builtin_unreachable();
}

/// The next lane that can run in the warp's turn, or null at the end of it.
static Thread* next_in_turn(Warp& warp) {
  while (warp.taken < warp.size) {
    int at = warp.taken++;
    int lane = (warp.backward ? warp.size - 1 - at : at) + warp.first;
    Thread* thread = warp.lanes[lane < warp.size ? lane : lane - warp.size];
    if (thread->state == State::Ready) return thread;
  }
  return nullptr;
}

void suspend() {
  Thread *me = self, *next = next_in_turn(*me->warp);
  if (next == me) return;
  if (next) self = next;  // straight on: the way through the scheduler would be a second switch
  twin_switch(&me->stack_pointer, next ? next->stack_pointer : block->scheduler);
}

static void release(Barrier& barrier) {
  for (Thread* thread : barrier.waiting) thread->state = State::Ready;
  barrier.waiting.clear();
  barrier.arrived = barrier.needed = 0;
}

/// Counts an arrival; true when it was the last.
static bool arrive(int id, int count) {
  if (id < 0 || id >= 16) fail("a barrier's number is 0 to 15");
  if (count % 32) fail("a barrier's count is a multiple of 32");
  Barrier& barrier = block->barriers[id];
  int threads = (int)block->threads.size();
  if (count == 0 && block->live != threads) fail("__syncthreads after some threads have returned");
  int needed = count ? count : threads;
  if (barrier.arrived && barrier.needed != needed) fail("threads wait at one barrier with different counts");
  barrier.needed = needed;
  return ++barrier.arrived == needed;
}

void barrier(int id, int count) {
  Barrier& barrier = block->barriers[id & 15];
  if (arrive(id, count)) {
    release(barrier);
    if (block->schedule.shuffled()) suspend();
    return;
  }
  self->state = State::Waiting;
  barrier.waiting.push_back(self);
  suspend();
}

void barrier_arrive(int id, int count) {
  if (arrive(id, count)) release(block->barriers[id]);
}

void collective(uint32_t mask, int kind, const void* argument, void* result, Together together) {
  Thread* me = self;
  Warp* warp = me->warp;
  if (warp->size < 32) mask &= (1u << warp->size) - 1;
  if (!(mask >> me->lane & 1)) fail("a lane is not in the mask of its own warp operation");
  Rendezvous *mine = nullptr, *unused = nullptr;
  for (Rendezvous& open : warp->open) {
    if (!open.arrived) {
      if (!unused) unused = &open;
    } else if (open.mask == mask) {
      mine = &open;
    } else if (open.mask & mask) {
      fail("lanes of a warp wait in operations with overlapping masks");
    }
  }
  if (!mine) {
    if (!unused) fail("too many warp operations at a time");
    mine = unused;
    *mine = {mask, 0, kind};
  }
  if (mine->kind != kind) fail("lanes of a warp are in different warp operations");
  me->argument = argument;
  me->result = result;
  mine->arrived |= 1u << me->lane;
  if (mine->arrived != mask) {
    me->state = State::Waiting;
    suspend();
    return;
  }
  together(warp->lanes, mask);
  mine->arrived = 0;
  for (int i = 0; i < warp->size; i++)
    if (mask >> i & 1) warp->lanes[i]->state = State::Ready;
}

void warpgroup_collective(int kind, const void* argument, void* result, Grouped together) {
  Thread* me = self;
  Warpgroup& group = block->warpgroup_of(me);
  if (group.size != 128) fail("wgmma needs a whole warpgroup of 128 threads");
  if (group.arrived && group.kind != kind) fail("warps of a warpgroup are in different operations");
  group.kind = kind;
  me->argument = argument;
  me->result = result;
  if (++group.arrived < 128) {
    me->state = State::Waiting;
    suspend();
    return;
  }
  group.arrived = 0;
  together(group);
  for (Thread* thread : group.threads) thread->state = State::Ready;
}

void dependency_wait() {
  Before& before = block->before;
  self->waited = true;
  if (!before.run) return;
  auto run = before.run;
  before.run = nullptr;
  if (run(before.argument)) fail("the launch before failed");
}

/// Where each thread begins.
static void enter() {
  Thread* me = self;
  block->kernel->call(block->arguments);
  if (me->copies_issued) fail("a thread returned with cp.async copies that nothing waited for");
  if (block->before.allowed && !me->waited) fail("a thread returned without waiting for the launch before");
  me->state = State::Done;
  block->live--;
  if (block->barriers[0].arrived && block->barriers[0].needed == (int)block->threads.size())
    fail("a thread returned while others wait in __syncthreads");
  suspend();
  __builtin_unreachable();
}

static void resume(Thread* thread) {
  self = thread;
  twin_switch(&block->scheduler, thread->stack_pointer);
  self = nullptr;
  if (block->failed) throw Failure{};
}

/// Gives every ready lane of a warp one turn.
static bool turn(Warp& warp, int first, bool backward) {
  warp.first = first % warp.size;
  warp.backward = backward;
  warp.taken = 0;
  bool any = false;
  while (Thread* thread = next_in_turn(warp)) {
    resume(thread);
    any = true;
  }
  return any;
}

/// Forward and reverse: each warp runs as far as it can before the next one starts, the widest gap between warps.
static bool run_greedily(bool backward) {
  bool any = false;
  for (size_t i = 0; i < block->warps.size(); i++) {
    Warp& warp = block->warps[backward ? block->warps.size() - 1 - i : i];
    while (turn(warp, 0, backward)) any = true;
  }
  return any;
}

/// Shuffled: warps interleave closely, from a random one, lanes from a random one in a random direction.
static bool run_shuffled() {
  bool any = false;
  size_t warps = block->warps.size(), first = block->draw() % warps;
  for (size_t i = 0; i < warps; i++) {
    Warp& warp = block->warps[(first + i) % warps];
    uint32_t random = block->draw();
    if (random % 4 == 0 && i + 1 < warps) continue;  // sometimes one falls behind
    if (turn(warp, random >> 8 & 31, random >> 7 & 1)) any = true;
  }
  return any;
}

static void reset() {
  for (Barrier& barrier : block->barriers) release(barrier);
  for (Warp& warp : block->warps)
    for (Rendezvous& open : warp.open) open = {0, 0, 0};
  for (Warpgroup& group : block->warpgroups) {
    group.arrived = 0;
    group.issued.clear();
    group.groups.clear();
    group.awaited = 0;
  }
  block->loads.clear();
  block->stores.clear();
  block->store_groups.clear();
  block->mbarrier_waits.clear();
  block->live = (int)block->threads.size();
  block->failed = false;
  for (Thread& thread : block->threads) {
    thread.stack_pointer = fresh_stack(thread.stack, STACK_BYTES, enter);
    thread.state = State::Ready;
    thread.copies_issued = thread.groups_closed = 0;
    thread.waited = false;
  }
}

/// Runs the block whose index stands in `block_index`.
void run_block() {
  generation++;
  block->random = (uint32_t)block->schedule.order * 2654435761u + block_index.x * 7919u + 1u;
  reset();
  while (block->live) {
    bool any = block->schedule.shuffled() ? run_shuffled() : run_greedily(block->schedule.order == 1);
    // Nobody can go on: now what was put off has to be done. A shuffled turn may have passed over a warp.
    if (!any && block->schedule.shuffled()) any = run_greedily(false);
    if (!any && !land_oldest() && !do_products()) fail("every thread waits: a barrier, shuffle or mbarrier that not all reach");
  }
  finish_async();
}

}  // namespace twin
