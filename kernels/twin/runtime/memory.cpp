// Device memory between guard pages, and what is said of an access outside it.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <mutex>

#include "block.h"

namespace twin {

constexpr size_t PAGE = 4096;
constexpr size_t SLOTS = 1 << 14;

/// [low, low + PAGE) and [high, high + PAGE) are guard pages; the allocation ends just under `high`.
struct Allocation {
  std::atomic<uintptr_t> begin;
  size_t bytes;
  uintptr_t low, high;
};
static Allocation allocations[SLOTS];  // fixed, so that the signal handler can read it
static std::mutex changing;

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

const char* describe_address(uintptr_t address, char* out, size_t bytes) {
  for (const Allocation& a : allocations) {
    uintptr_t begin = a.begin;
    if (!begin || address < a.low || address >= a.high + PAGE) continue;
    if (address < begin) {
      snprintf(out, bytes, "%zu bytes before an allocation of %zu bytes", (size_t)(begin - address), a.bytes);
    } else {
      snprintf(out, bytes, "offset %zu of an allocation of %zu bytes", (size_t)(address - begin), a.bytes);
    }
    return out;
  }
  snprintf(out, bytes, "in no allocation");
  return out;
}

static void on_fault(int signal, siginfo_t* info, void*) {
  if (!self) {  // not a kernel's
    struct sigaction standard = {};
    standard.sa_handler = SIG_DFL;
    sigaction(signal, &standard, nullptr);
    return;
  }
  uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  uintptr_t stack = reinterpret_cast<uintptr_t>(self->stack);
  char where[160], what[160], line[400];
  describe_position(where, sizeof where);
  uintptr_t shared_end = round_up(reinterpret_cast<uintptr_t>(shared) + block->shared_bytes, PAGE);
  if (address >= stack - PAGE && address < stack) {
    snprintf(what, sizeof what, "its stack is full");
  } else if (address >= shared_end && address < shared_end + PAGE) {
    snprintf(what, sizeof what, "past the end of %zu bytes of shared memory", block->shared_bytes);
  } else {
    describe_address(address, what, sizeof what);
  }
  int length = snprintf(line, sizeof line, "twin: %s: bad access at %p: %s\n", where, info->si_addr, what);
  ssize_t written = write(2, line, (size_t)length);
  _exit(written == length ? 86 : 87);
}

void watch_faults() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
  });
  // A fiber's own stack may be the one that is full.
  static thread_local bool ready = false;
  if (ready) return;
  ready = true;
  stack_t current;
  sigaltstack(nullptr, &current);
  if (current.ss_flags & SS_DISABLE) {
    static thread_local char stack[16 << 10];
    stack_t mine = {};
    mine.ss_sp = stack;
    mine.ss_size = sizeof stack;
    sigaltstack(&mine, nullptr);
  }
}

}  // namespace twin

using namespace twin;

/// Null when memory is short. Aligned to 16 bytes (CUDA: 256), so that it ends within 15 bytes of a guard page.
extern "C" void* twin_alloc(size_t bytes) {
  size_t inner = round_up(bytes ? bytes : 1, PAGE);
  void* map = mmap(nullptr, inner + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  uintptr_t low = reinterpret_cast<uintptr_t>(map), high = low + PAGE + inner;
  if (mprotect(reinterpret_cast<void*>(low + PAGE), inner, PROT_READ | PROT_WRITE)) {
    munmap(map, inner + 2 * PAGE);
    return nullptr;
  }
  memset(reinterpret_cast<void*>(low + PAGE), 0xff, inner);
  uintptr_t begin = high - round_up(bytes, 16);
  std::lock_guard<std::mutex> lock(changing);
  for (Allocation& a : allocations) {
    if (a.begin) continue;
    a.bytes = bytes;
    a.low = low;
    a.high = high;
    a.begin = begin;
    return reinterpret_cast<void*>(begin);
  }
  munmap(map, inner + 2 * PAGE);
  return nullptr;
}

/// 0 if all is well, 1 if something wrote beside the allocation, 2 if there is none there.
extern "C" int twin_free(void* address) {
  std::lock_guard<std::mutex> lock(changing);
  for (Allocation& a : allocations) {
    if (a.begin != reinterpret_cast<uintptr_t>(address)) continue;
    int written = 0;
    for (uintptr_t p = a.low + PAGE; p < a.begin; p++) written |= *reinterpret_cast<unsigned char*>(p) != 0xff;
    for (uintptr_t p = a.begin + a.bytes; p < a.high; p++) written |= *reinterpret_cast<unsigned char*>(p) != 0xff;
    a.begin = 0;
    munmap(reinterpret_cast<void*>(a.low), a.high + PAGE - a.low);
    return written;
  }
  return 2;
}
