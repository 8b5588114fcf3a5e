// The matrix instructions: ldmatrix, stmatrix, mma.sync and wgmma, with their register and shared-memory layouts.
#include "block.h"

namespace twin {

enum { LoadRows = 100, LoadColumns, StoreRows, StoreColumns, MmaKind, WgmmaKind, WgmmaCommit, WgmmaWait = 200 };

static void whole_warp(uint32_t mask) {
  if (mask != ~0u) fail("a matrix instruction needs all 32 lanes");
}

// --- ldmatrix and stmatrix: lane 8·j + r holds the address of row r of matrix j

template <bool TRANSPOSED>
static void gather(Thread** lanes, uint32_t mask) {
  whole_warp(mask);
  for (int t = 0; t < 32; t++) {
    int count = *(int*)((uint32_t*)lanes[t]->result + 4);
    for (int j = 0; j < count; j++) {
      uint16_t pair[2];
      for (int i = 0; i < 2; i++) {
        int row = TRANSPOSED ? 2 * (t & 3) + i : t >> 2, column = TRANSPOSED ? t >> 2 : 2 * (t & 3) + i;
        pair[i] = static_cast<const uint16_t*>(lanes[8 * j + row]->argument)[column];
      }
      memcpy(static_cast<uint32_t*>(lanes[t]->result) + j, pair, 4);
    }
  }
}

struct Fragments {
  uint32_t rows[4];
  int count;
};

void load_matrices(uint32_t* rows, const void* address, int count, bool transposed) {
  if (reinterpret_cast<uintptr_t>(address) & 15) fail("an ldmatrix row lies at a multiple of 16 bytes");
  Fragments got{{0, 0, 0, 0}, count};
  collective(~0u, transposed ? LoadColumns : LoadRows, address, &got, transposed ? gather<true> : gather<false>);
  memcpy(rows, got.rows, sizeof(uint32_t) * (size_t)count);
}

template <bool TRANSPOSED>
static void scatter(Thread** lanes, uint32_t mask) {
  whole_warp(mask);
  for (int t = 0; t < 32; t++) {
    const Fragments& mine = *static_cast<const Fragments*>(lanes[t]->result);
    for (int j = 0; j < mine.count; j++) {
      uint16_t pair[2];
      memcpy(pair, &mine.rows[j], 4);
      for (int i = 0; i < 2; i++) {
        int row = TRANSPOSED ? 2 * (t & 3) + i : t >> 2, column = TRANSPOSED ? t >> 2 : 2 * (t & 3) + i;
        static_cast<uint16_t*>(const_cast<void*>(lanes[8 * j + row]->argument))[column] = pair[i];
      }
    }
  }
}

void store_matrices(const uint32_t* rows, void* address, int count, bool transposed) {
  if (reinterpret_cast<uintptr_t>(address) & 15) fail("an stmatrix row lies at a multiple of 16 bytes");
  Fragments mine{{0, 0, 0, 0}, count};
  memcpy(mine.rows, rows, sizeof(uint32_t) * (size_t)count);
  collective(~0u, transposed ? StoreColumns : StoreRows, address, &mine, transposed ? scatter<true> : scatter<false>);
}

// --- mma.sync m16n8k(32 bytes)

constexpr bool is_16_bit(Type type) { return type == Type::Bf16 || type == Type::F16; }

/// The elements of one 32-bit register: two or four.
template <Type TYPE>
static inline void unpack(uint32_t bits, float* out) {
  if (TYPE == Type::Bf16) {
    out[0] = __uint_as_float(bits << 16);
    out[1] = __uint_as_float(bits & 0xffff0000u);
  } else if (TYPE == Type::F16) {
    out[0] = half_to_float((uint16_t)bits);
    out[1] = half_to_float((uint16_t)(bits >> 16));
  } else {
    for (int i = 0; i < 4; i++)
      out[i] = TYPE == Type::S8 ? (float)(int8_t)(bits >> (8 * i)) : e4m3_to_float((uint8_t)(bits >> (8 * i)));
  }
}

struct MmaCall {
  uint32_t a[4], b[2];
};

/// Eight neighbours of a row, which the compiler keeps in vector registers.
template <class T>
using Eight __attribute__((vector_size(32))) = T;

/// row += a · b, in the order of k.
template <int K, class T>
static inline void add_products(T* row, const T* a, const T* b, int b_pitch) {
  Eight<T> sum, next;
  memcpy(&sum, row, sizeof sum);
  for (int i = 0; i < K; i++) {
    memcpy(&next, b + i * b_pitch, sizeof next);
    sum += a[i] * next;
  }
  memcpy(row, &sum, sizeof sum);
}

/// T is float or int: the accumulator.
template <Type TYPE, class T>
static void multiply(Thread** lanes, uint32_t mask) {
  whole_warp(mask);
  constexpr int K = is_16_bit(TYPE) ? 16 : 32, PER = K / 8;
  T a[16][K], b[K][8], c[16][8];
  for (int l = 0; l < 32; l++) {
    const MmaCall& call = *static_cast<const MmaCall*>(lanes[l]->argument);
    const T* mine = static_cast<const T*>(lanes[l]->result);
    int g = l >> 2, t = l & 3;
    float out[4];
    for (int i = 0; i < 4; i++) {
      unpack<TYPE>(call.a[i], out);
      for (int e = 0; e < PER; e++) a[g + (i & 1) * 8][t * PER + (i >> 1) * (K / 2) + e] = (T)out[e];
    }
    for (int i = 0; i < 2; i++) {
      unpack<TYPE>(call.b[i], out);
      for (int e = 0; e < PER; e++) b[t * PER + i * (K / 2) + e][g] = (T)out[e];
    }
    for (int i = 0; i < 4; i++) c[g + (i >> 1) * 8][2 * t + (i & 1)] = mine[i];
  }
  for (int r = 0; r < 16; r++) add_products<K>(c[r], a[r], b[0], 8);
  for (int l = 0; l < 32; l++) {
    T* mine = static_cast<T*>(lanes[l]->result);
    for (int i = 0; i < 4; i++) mine[i] = c[(l >> 2) + (i >> 1) * 8][2 * (l & 3) + (i & 1)];
  }
}

void mma(Type type, void* c, const uint32_t* a, const uint32_t* b) {
  static const Together product[] = {multiply<Type::Bf16, float>, multiply<Type::F16, float>, multiply<Type::S8, int>,
                                     multiply<Type::E4m3, float>};
  MmaCall call{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  collective(~0u, MmaKind + 10 * (int)type, &call, c, product[(int)type]);
}

// --- wgmma m64nNk(32 bytes)

/// Where an operand lies in shared memory: the fields of a matrix descriptor.
struct Descriptor {
  size_t start, leading, stride;
  unsigned swizzle;  // bytes

  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4) {
    unsigned code = (unsigned)(bits >> 62);
    if (code == 0) fail("wgmma operands without swizzle are not modelled");
    if (bits >> 49 & 7) fail("wgmma descriptors with a base offset are not modelled");
    swizzle = 256u >> code;
  }

  size_t place(size_t address) const {
    address ^= (address >> 7 & (swizzle / 16 - 1)) << 4;
    if (address + 2 > block->shared_bytes) fail("a wgmma operand reaches past the end of shared memory");
    return address;
  }
  /// Byte `k` of row `r`, rows of `swizzle` bytes, 8 rows to a group, groups `stride` apart.
  size_t k_major(int r, int k) const {
    return place(start + (size_t)(r >> 3) * stride + (size_t)(r & 7) * swizzle + (size_t)k);
  }
  /// 16-bit element (k, n) of an operand whose rows run along n: `swizzle` bytes of n, then `leading`; 8 k, then `stride`.
  size_t n_major(int k, int n) const {
    size_t byte = (size_t)n * 2;
    return place(start + byte % swizzle + byte / swizzle * leading + (size_t)(k & 7) * swizzle +
                 (size_t)(k >> 3) * stride);
  }
};

template <Type TYPE>
static inline float element(size_t offset) {
  if (TYPE == Type::E4m3) return e4m3_to_float(shared[offset]);
  uint16_t bits;
  memcpy(&bits, shared + offset, 2);
  return TYPE == Type::Bf16 ? __uint_as_float((uint32_t)bits << 16) : half_to_float(bits);
}

static float& accumulator(float (*c)[256], int thread, int i) {
  int warp = thread >> 5, lane = thread & 31;
  return c[warp * 16 + (lane >> 2) + (i >> 1 & 1) * 8][(i >> 2) * 8 + (lane & 3) * 2 + (i & 1)];
}

template <Type TYPE>
static void multiply_tile(const Product& p) {
  static thread_local float a[64][32], b[32][256], c[64][256];
  constexpr int BYTES = is_16_bit(TYPE) ? 2 : 1, K = 32 / BYTES, PER = 4 / BYTES;
  Descriptor where_b(p.b);
  if (p.from_registers) {
    for (int t = 0; t < 128; t++) {
      int row = (t >> 5) * 16 + (t >> 2 & 7);
      for (int i = 0; i < 4; i++) {
        float out[4];
        unpack<TYPE>(p.a_registers[t][i], out);
        for (int e = 0; e < PER; e++) a[row + (i & 1) * 8][(t & 3) * PER + (i >> 1) * (K / 2) + e] = out[e];
      }
    }
  } else {
    Descriptor where_a(p.a);
    for (int r = 0; r < 64; r++)
      for (int i = 0; i < K; i++) a[r][i] = element<TYPE>(where_a.k_major(r, i * BYTES));
  }
  for (int n = 0; n < p.n; n++)
    for (int i = 0; i < K; i++)
      b[i][n] = element<TYPE>(p.transpose_b ? where_b.n_major(i, n) : where_b.k_major(n, i * BYTES));
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < p.n / 2; i++) accumulator(c, t, i) = p.accumulate ? p.d[t][i] : 0.0f;
  for (int r = 0; r < 64; r++)
    for (int n = 0; n < p.n; n += 8) add_products<K>(&c[r][n], a[r], &b[0][n], 256);
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < p.n / 2; i++) p.d[t][i] = accumulator(c, t, i);
}

static void multiply(const Product& p) {
  switch (p.type) {
    case Type::Bf16: return multiply_tile<Type::Bf16>(p);
    case Type::F16: return multiply_tile<Type::F16>(p);
    case Type::E4m3: return multiply_tile<Type::E4m3>(p);
    case Type::S8: fail("wgmma of int8 is not modelled");
  }
}

struct WgmmaCall {
  Type type;
  int n;
  const uint32_t* registers;
  uint64_t a, b;
  bool transpose_b, accumulate;
  bool operator==(const WgmmaCall& o) const {
    return type == o.type && n == o.n && !registers == !o.registers && a == o.a && b == o.b &&
           transpose_b == o.transpose_b && accumulate == o.accumulate;
  }
};

static void issue(Warpgroup& group) {
  const WgmmaCall& first = *static_cast<const WgmmaCall*>(group.threads[0]->argument);
  Product p;
  p.type = first.type;
  p.n = first.n;
  p.a = first.a;
  p.b = first.b;
  p.from_registers = first.registers;
  p.transpose_b = first.transpose_b;
  p.accumulate = first.accumulate;
  for (int t = 0; t < 128; t++) {
    const WgmmaCall& call = *static_cast<const WgmmaCall*>(group.threads[t]->argument);
    if (!(call == first)) fail("the threads of a warpgroup call wgmma with different operands");
    p.a_registers[t] = call.registers;
    p.d[t] = static_cast<float*>(group.threads[t]->result);
  }
  if (block->schedule.products_late()) {
    group.issued.push_back(p);
  } else {
    multiply(p);
  }
}

void wgmma(Type type, float* d, int n, const uint32_t* registers, uint64_t a, uint64_t b, bool transpose_b,
           bool accumulate) {
  if (transpose_b && type == Type::E4m3) fail("wgmma of 8-bit types takes B along K only");
  WgmmaCall call{type, n, registers, a, b, transpose_b, accumulate};
  warpgroup_collective(WgmmaKind, &call, d, issue);
}

void wgmma_commit() {
  warpgroup_collective(WgmmaCommit, nullptr, nullptr,
                       [](Warpgroup& group) { group.groups.push_back(group.issued.size()); });
}

void wgmma_wait(int keep) {
  warpgroup_collective(WgmmaWait + keep, nullptr, nullptr, [](Warpgroup& group) {
    if (!block->schedule.products_late()) return group.groups.clear();
    size_t open = group.groups.size(), keep = (size_t)(group.kind - WgmmaWait);
    group.awaited = open > keep ? open - keep : 0;
  });
  if (!block->warpgroup_of(self).awaited) return;
  self->state = State::Waiting;
  suspend();
}

bool do_products() {
  bool any = false;
  for (Warpgroup& group : block->warpgroups) {
    if (!group.awaited) continue;
    any = true;
    size_t done = group.groups[group.awaited - 1];
    for (size_t i = 0; i < done; i++) multiply(group.issued[i]);
    group.issued.erase(group.issued.begin(), group.issued.begin() + (long)done);
    group.groups.erase(group.groups.begin(), group.groups.begin() + (long)group.awaited);
    for (size_t& end : group.groups) end -= done;
    group.awaited = 0;
    for (Thread* thread : group.threads) thread->state = State::Ready;
  }
  return any;
}

}  // namespace twin
