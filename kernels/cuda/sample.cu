// Drawing a token from each row of logits: grammar mask, temperature, top-k, top-p, min-p, in this order.
//
// logits [rows, tokens] f32, rows `stride` apart (a multiple of 4); draws [rows]; allowed [masks, ceil(tokens / 32)]
// u32, a bit per token; out [rows] u32. Penalties, bias and bans are in the logits already (logits.cu).
//
// The token is the one at which the masses of the kept tokens, summed in token order, pass a uniform number that is
// keyed by (seed, choice, position): the definition of the CPU backend. Greedy: the largest, the lowest among equals.
// Bytes: 4 * rows * tokens, once if greedy, twice without filters, three times with top-k or top-p (largest logit;
// histogram; the cut's bin and the sums beside it); more only when thousands of tokens weigh the same. Bound: memory.
// Expect sm_80 *: LDG.128
// Expect sm_90 *: LDG.128
#include "select.cuh"

struct Draw {
  float temperature, top_p, min_p;
  uint32_t top_k;
  uint64_t seed;
  uint32_t choice, position;
  int32_t given;  // a token to take without drawing, or negative
  int32_t mask;   // row of `allowed`; negative, or not there: all are allowed
};

// 53 random bits of Philox4x32-10.
DEV uint64_t random53(const Draw& d) {
  uint32_t c[4] = {d.position, d.choice, 0, 0}, key[2] = {(uint32_t)d.seed, (uint32_t)(d.seed >> 32)};
#pragma unroll
  for (int i = 0; i < 10; i++) {
    uint32_t a = __umulhi(0xd2511f53u, c[0]), b = __umulhi(0xcd9e8d57u, c[2]);
    uint32_t low_a = 0xd2511f53u * c[0], low_b = 0xcd9e8d57u * c[2];
    c[0] = b ^ c[1] ^ key[0], c[1] = low_b;
    c[2] = a ^ c[3] ^ key[1], c[3] = low_a;
    key[0] += 0x9e3779b9u, key[1] += 0xbb67ae85u;
  }
  return ((uint64_t)c[0] << 32 | c[1]) >> 11;
}

DEV Cut stricter(const Cut& a, const Cut& b) { return a.key > b.key || (a.key == b.key && a.token < b.token) ? a : b; }

DEV uint64_t share(float top_p, uint64_t total) {
  uint64_t target = (uint64_t)ceil((double)top_p * (double)total);
  return target < 1 ? 1 : target;
}

// The cut of all filters. After a top-k whose tokens fit the list, top-p needs no pass over the row.
DEV Cut filter(const Row& row, Selection& m, const Draw& d, uint32_t* sum_low, uint32_t* sum_high, Left& left) {
  Cut cut = {0, 0xffffffff};
  left = {false, false, 0, 0};
#pragma unroll 1
  for (int i = 0; i < 2; i++) {
    Measure measure = i == 0 ? TOKENS : MASS;
    if (measure == TOKENS ? d.top_k == 0 || d.top_k >= row.tokens : d.top_p >= 1.0f) continue;
    uint64_t total = left.list ? list_mass(row, m, cut) : fill_bins(row, m, measure, cut);
    uint64_t target = measure == TOKENS ? d.top_k : share(d.top_p, total);
    if (find_cut(row, m, cut, sum_low, sum_high, measure, target, left)) cut = stricter(cut, {m.cut_key, m.cut_token});
  }
  if (d.min_p > 0.0f) {
    uint32_t key = first_key(key_of(row.max), [&](float logit) { return weight_of(row, logit) >= d.min_p; });
    cut = stricter(cut, {key, 0xffffffff});
  }
  if (cut.key < left.low || cut.key > left.high) left.sums = false;
  if (cut.key < left.low) left.list = false;
  __syncthreads();
  return cut;
}

// The kept mass of each chunk.
DEV void sum_chunks(const Row& row, Selection& m, const Cut& cut, const Left& left, uint32_t* sum_low,
                    uint32_t* sum_high) {
  uint32_t chunks = (row.tokens + CHUNK - 1) / CHUNK;
  if (!left.list && !left.sums) {
    uint64_t sum = 0;
    for_row(
        row,
        [&](float logit, uint32_t token) {
          if (kept(cut, key_of(logit), token)) sum += mass_of(row, logit);
        },
        [&](uint32_t chunk) {
          sum = warp_total(sum);
          if ((threadIdx.x & 31) == 0) sum_low[chunk] = (uint32_t)sum, sum_high[chunk] = (uint32_t)(sum >> 32);
          sum = 0;
        });
  } else {
    for (uint32_t i = threadIdx.x; left.list && i < chunks; i += SELECT_THREADS) sum_low[i] = sum_high[i] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < m.listed; i += SELECT_THREADS)
      if (kept(cut, m.keys[i], m.tokens[i]))
        add_mass(&sum_low[m.tokens[i] / CHUNK], &sum_high[m.tokens[i] / CHUNK], mass_of(row, logit_of(m.keys[i])));
  }
  __syncthreads();
}

// The token at which the kept masses pass `random` / 2^53 of their sum.
DEV uint32_t pass(const Row& row, Selection& m, const Cut& cut, const uint32_t* sum_low, const uint32_t* sum_high,
                  uint64_t random, uint32_t best) {
  uint32_t chunks = (row.tokens + CHUNK - 1) / CHUNK, each = (chunks + SELECT_THREADS - 1) / SELECT_THREADS,
           first = threadIdx.x * each;
  uint64_t mine = 0, total, inner;
  for (uint32_t i = first; i < chunks && i < first + each; i++) mine += mass_at(sum_low, sum_high, i);
  uint64_t before = block_prefix(mine, m.sums, total), target = __umul64hi(random << 11, total);
  if (threadIdx.x == 0) m.token = best;
  for (uint32_t i = first; i < chunks && i < first + each; i++) {
    uint64_t sum = mass_at(sum_low, sum_high, i);
    if (before <= target && target < before + sum) m.bin = i, m.above_mass = before;
    before += sum;
  }
  __syncthreads();
  if (total == 0) return best;
  uint32_t token = m.bin * CHUNK + threadIdx.x;
  float logit = logit_at(row, token);
  uint64_t mass = kept(cut, key_of(logit), token) ? mass_of(row, logit) : 0;
  before = m.above_mass + block_prefix(mass, m.sums, inner);
  if (before <= target && target < before + mass) m.token = token;
  __syncthreads();
  return m.token;
}

// Grid (rows). Dynamic shared memory: Selection, and 8 bytes per chunk of 512 tokens.
KERNEL __launch_bounds__(SELECT_THREADS, 2) sample(const float* logits, const uint32_t* allowed, const Draw* draws,
                                                   uint32_t* out, uint32_t tokens, uint32_t stride, uint32_t masks) {
  DYN_SMEM(Selection, memory);
  Selection& m = *memory;
  uint32_t *sum_low = (uint32_t*)(memory + 1), *sum_high = sum_low + (tokens + CHUNK - 1) / CHUNK;
  const Draw& d = draws[blockIdx.x];
  if (d.given >= 0) {
    if (threadIdx.x == 0) out[blockIdx.x] = d.given;
    return;
  }
  Row row = {logits + (uint64_t)blockIdx.x * stride,
             d.mask < 0 || (uint32_t)d.mask >= masks ? nullptr : allowed + (uint64_t)d.mask * ((tokens + 31) / 32),
             tokens, 0.0f, 0.0f};
  uint64_t most = best_of(row, m.sums);
  uint32_t best = (uint32_t)(most >> 32) ? ~(uint32_t)most : 0, token = best;
  row.max = logit_of((uint32_t)(most >> 32));
  if (counts(row.max) && (uint32_t)(most >> 32) && d.temperature > 0.0f) {
    row.factor = fminf(1.0f / d.temperature, LARGEST);
    Left left;
    Cut cut = filter(row, m, d, sum_low, sum_high, left);
    sum_chunks(row, m, cut, left, sum_low, sum_high);
    token = pass(row, m, cut, sum_low, sum_high, random53(d), best);
  }
  if (threadIdx.x == 0) out[blockIdx.x] = token;
}
TWIN_EXPORT(sample)
