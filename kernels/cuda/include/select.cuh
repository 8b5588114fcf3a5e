// Choosing among the tokens of a row of logits without sorting it.
//
// Tokens are ordered by falling logit, equal ones by rising token: all that a filter keeps is a beginning of that
// order, so a filter is a `Cut`. It is found by a histogram over the row, whose bins hold counts and masses; then the
// tokens of the one bin in which the cut lies are gathered in shared memory and narrowed further there.
//
// A token's mass is its weight e^((logit - max) * factor) in units of 2^-40, an integer: sums of masses are exact,
// whatever the order of addition, so atomics don't make results vary. A row is one block of 512 threads; a warp
// takes 512 consecutive tokens (a chunk) at a time, two loads of 16 bytes a lane in flight.
//
// A logit that is NaN can't be drawn: that is how banned tokens are marked. Infinity counts as the largest float.
#pragma once
#include "vector.cuh"

constexpr int SELECT_THREADS = 512, CHUNK = 512, BINS = 1024, LISTED = 2048, RANKED = 128;
constexpr float BINS_PER_OCTAVE = 32.0f, LARGEST = 3.4028235e38f, UNIT = 1099511627776.0f;  // 2^40
constexpr uint32_t LOWEST_KEY = 0x00800000;                                                 // of -LARGEST

// Dynamic shared memory of a row; the chunks' sums follow it.
struct Selection {
  uint32_t count[BINS], low[BINS], high[BINS];  // of a bin: tokens, mass
  uint32_t keys[LISTED], tokens[LISTED];
  uint32_t ranked_keys[RANKED], ranked_tokens[RANKED];
  uint64_t sums[2 * (SELECT_THREADS / 32)];
  uint64_t above_mass;
  uint32_t listed, ranked, found, bin, above, inside, cut_key, cut_token, token;
};

static_assert(sizeof(Selection) == 30000, "as the launchers have it");

// A row of logits, and how its weights come about.
struct Row {
  const float* logits;
  const uint32_t* allowed;  // a bit per token, or null
  uint32_t tokens;
  float max, factor;
};

// The last token that is kept.
struct Cut {
  uint32_t key, token;
};

// What is counted until there is enough.
enum Measure { TOKENS, MASS };

// Keys low..=high, and what there is above and inside: of what is measured by mass, the counts are upper bounds.
struct Interval {
  uint32_t low, high, above, inside;
  uint64_t above_mass;
};

DEV float clean(float logit) { return logit == logit ? fminf(logit + 0.0f, LARGEST) : logit; }

// In the order of logits; 0 for NaN.
DEV uint32_t key_of(float logit) {
  uint32_t bits = __float_as_uint(logit);
  return logit != logit ? 0 : bits & 0x80000000 ? ~bits : bits | 0x80000000;
}
DEV float logit_of(uint32_t key) { return __uint_as_float(key & 0x80000000 ? key & 0x7fffffff : ~key); }

DEV bool counts(float logit) { return logit >= -LARGEST; }  // neither banned nor impossible
DEV bool kept(const Cut& cut, uint32_t key, uint32_t token) {
  return key > cut.key || (key == cut.key && token <= cut.token);
}

// The weight, and its exponent's bin: 32 to a power of two, best first; the last holds all below 2^-32.
DEV float weight_of(const Row& row, float logit) {
  return counts(logit) ? fast_exp2((logit - row.max) * row.factor * 1.4426950408889634f) : 0.0f;
}
DEV uint64_t mass_of(const Row& row, float logit) { return (uint64_t)(weight_of(row, logit) * UNIT); }
DEV uint32_t bin_of(const Row& row, float logit) {
  return (uint32_t)fminf((row.max - logit) * row.factor * (1.4426950408889634f * BINS_PER_OCTAVE), (float)(BINS - 1));
}

// A token's logit as the draw sees it.
DEV float logit_at(const Row& row, uint32_t token) {
  bool may = token < row.tokens && (!row.allowed || row.allowed[token >> 5] >> (token & 31) & 1);
  return may ? clean(row.logits[token]) : __uint_as_float(0x7fffffff);
}

// Calls each(logit, token) for all tokens of a row, and done(chunk) by whole warps after every chunk of 512. DEPTH:
// loads in flight; 1 where a pass is rare, to save code and registers.
template <int DEPTH = 2, class E, class D>
DEV void for_row(const Row& row, E each, D done) {
  uint32_t lane = threadIdx.x & 31;
  for (uint32_t chunk = threadIdx.x >> 5; chunk * CHUNK < row.tokens; chunk += SELECT_THREADS / 32) {
#pragma unroll 1
    for (uint32_t first = chunk * CHUNK + lane * 4, end = first + CHUNK; first < end; first += DEPTH * 128) {
      float4 v[DEPTH];
#pragma unroll
      for (int i = 0; i < DEPTH; i++)
        if (first + i * 128 < row.tokens) v[i] = *(const float4*)(row.logits + first + i * 128);
#pragma unroll
      for (int i = 0; i < DEPTH; i++) {
        uint32_t token = first + i * 128;
        if (token >= row.tokens) break;
        uint32_t may = row.allowed ? row.allowed[token >> 5] >> (token & 31) : 15;
        if (row.tokens - token < 4) may &= (1u << (row.tokens - token)) - 1;
        if (may & 1) each(clean(v[i].x), token);
        if (may & 2) each(clean(v[i].y), token + 1);
        if (may & 4) each(clean(v[i].z), token + 2);
        if (may & 8) each(clean(v[i].w), token + 3);
      }
    }
    done(chunk);
  }
}

DEV uint64_t warp_total(uint64_t x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// The sum of `x` over the threads before this one; `total` of all. `sums`: a number per warp.
DEV uint64_t block_prefix(uint64_t x, uint64_t* sums, uint64_t& total) {
  uint64_t sum = x;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    uint64_t before = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += before;
  }
  __syncthreads();
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  uint64_t before = 0;
  total = 0;
#pragma unroll 1
  for (int i = 0; i < SELECT_THREADS / 32; i++) {
    if (i < warp) before += sums[i];
    total += sums[i];
  }
  return before + sum - x;
}

// The largest logit with the lowest of its tokens, as key << 32 | ~token.
DEV uint64_t best_of(const Row& row, uint64_t* sums) {
  uint64_t best = 0;
  for_row(
      row,
      [&](float logit, uint32_t token) {
        uint64_t mine = (uint64_t)key_of(logit) << 32 | ~token;
        if (mine > best) best = mine;
      },
      [](uint32_t) {});
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    uint64_t other = __shfl_xor_sync(0xffffffffu, best, step);
    if (other > best) best = other;
  }
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = best;
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < SELECT_THREADS / 32; i++)
    if (sums[i] > best) best = sums[i];
  __syncthreads();
  return best;
}

// A 64-bit sum in two halves, as shared memory has no 64-bit addition of its own.
DEV void add_mass(uint32_t* low, uint32_t* high, uint64_t mass) {
  uint32_t part = (uint32_t)mass, carry = (uint32_t)(mass >> 32);
  if (part && atomicAdd(low, part) + part < part) carry++;
  if (carry) atomicAdd(high, carry);
}
DEV uint64_t mass_at(const uint32_t* low, const uint32_t* high, uint32_t i) { return (uint64_t)high[i] << 32 | low[i]; }

DEV void clear_bins(Selection& m) {
  for (int i = threadIdx.x; i < BINS; i += SELECT_THREADS) m.count[i] = m.low[i] = m.high[i] = 0;
  __syncthreads();
}

// The bin's tokens at most, of its mass and the least weight in it. Bins before the last hold no weight below 2^-32.
DEV uint32_t most_tokens(uint32_t bin, uint64_t mass) {
  uint64_t least = (uint64_t)(fast_exp2(-(float)(bin + 1) / BINS_PER_OCTAVE) * (UNIT * 0.9999f)) - 1;
  return mass ? (uint32_t)(mass / least) + 1 : 0;
}

// Fills the bins with the row's tokens up to `cut`, and gives their mass. Bins hold what is measured only, as shared
// memory takes fewer additions than loads arrive; by mass, counts are upper bounds. The last bin is many threads'
// target and is summed apart.
DEV uint64_t fill_bins(const Row& row, Selection& m, Measure measure, const Cut& cut) {
  clear_bins(m);
  uint32_t rest = 0, rest_mass = 0;
  uint64_t sum = 0;
  for_row(
      row,
      [&](float logit, uint32_t token) {
        if (!counts(logit) || !kept(cut, key_of(logit), token)) return;
        uint32_t bin = bin_of(row, logit);
        uint64_t mass = mass_of(row, logit);
        sum += mass;
        if (bin == BINS - 1) {
          rest++;
          rest_mass += (uint32_t)mass;
        } else if (measure == TOKENS) {
          atomicAdd(&m.count[bin], 1u);
        } else {
          add_mass(&m.low[bin], &m.high[bin], mass);
        }
      },
      [](uint32_t) {});
  uint64_t both = warp_total((uint64_t)rest << 40 | rest_mass);  // at most 2^22 tokens of mass below 2^9
  if ((threadIdx.x & 31) == 0 && both) {
    atomicAdd(&m.count[BINS - 1], (uint32_t)(both >> 40));
    add_mass(&m.low[BINS - 1], &m.high[BINS - 1], both & 0xffffffffffull);
  }
  uint64_t total;
  block_prefix(sum, m.sums, total);
  if (measure == MASS)
    for (uint32_t i = threadIdx.x; i < BINS - 1; i += SELECT_THREADS)
      m.count[i] = most_tokens(i, mass_at(m.low, m.high, i));
  __syncthreads();
  return total;
}

// The first bin at which the measure, with what is above `in`, reaches `target`. False if none does; else what is
// above and inside of `in` becomes the bin's.
DEV bool choose_bin(Selection& m, Measure measure, uint64_t target, Interval& in, uint32_t& bin) {
  uint32_t first = 2 * threadIdx.x, count[2];
  uint64_t mass[2], total;
  for (int i = 0; i < 2; i++) count[i] = m.count[first + i], mass[i] = mass_at(m.low, m.high, first + i);
  uint64_t before_count = in.above + block_prefix(count[0] + count[1], m.sums, total);
  uint64_t before_mass = in.above_mass + block_prefix(mass[0] + mass[1], m.sums, total);
  if (threadIdx.x == 0) m.found = 0;
  __syncthreads();
  for (int i = 0; i < 2; i++) {
    uint64_t before = measure == TOKENS ? before_count : before_mass, here = measure == TOKENS ? count[i] : mass[i];
    if (before < target && before + here >= target) {
      m.found = 1, m.bin = first + i;
      m.above = (uint32_t)before_count, m.above_mass = before_mass, m.inside = count[i];
    }
    before_count += count[i];
    before_mass += mass[i];
  }
  __syncthreads();
  bool found = m.found;
  if (found) in.above = m.above, in.above_mass = m.above_mass, in.inside = m.inside, bin = m.bin;
  __syncthreads();
  return found;
}

// The smallest key whose logit fulfils `holds`, which all larger ones up to `last` do.
template <class F>
DEV uint32_t first_key(uint32_t last, F holds) {
  uint32_t low = LOWEST_KEY;
  while (low < last) {
    uint32_t middle = low + (last - low) / 2;
    if (holds(logit_of(middle)))
      last = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Lists the row's tokens with keys from..=to, up to `cut`. With `sums`, also leaves each chunk's mass above `to` there.
DEV void gather(const Row& row, Selection& m, const Cut& cut, uint32_t from, uint32_t to, uint32_t* sum_low,
                uint32_t* sum_high) {
  if (threadIdx.x == 0) m.listed = 0;
  __syncthreads();
  uint64_t sum = 0;
  for_row(
      row,
      [&](float logit, uint32_t token) {
        uint32_t key = key_of(logit);
        if (key > to && sum_low) sum += mass_of(row, logit);
        if (key < from || key > to || !kept(cut, key, token)) return;
        uint32_t place = atomicAdd(&m.listed, 1u);
        if (place < LISTED) m.keys[place] = key, m.tokens[place] = token;
      },
      [&](uint32_t chunk) {
        if (!sum_low) return;
        sum = warp_total(sum);
        if ((threadIdx.x & 31) == 0) sum_low[chunk] = (uint32_t)sum, sum_high[chunk] = (uint32_t)(sum >> 32);
        sum = 0;
      });
  __syncthreads();
}

// Splits an interval of keys into bins, over the list or the row up to `cut`, and chooses the one with the cut.
DEV bool narrow(const Row& row, Selection& m, const Cut& cut, bool listed, Measure measure, uint64_t target,
                Interval& in) {
  clear_bins(m);
  uint32_t shift = 0;
  while ((in.high - in.low) >> shift >= BINS) shift++;
  auto add = [&](uint32_t key) {
    if (key < in.low || key > in.high) return;
    uint32_t bin = (in.high - key) >> shift;
    atomicAdd(&m.count[bin], 1u);
    add_mass(&m.low[bin], &m.high[bin], mass_of(row, logit_of(key)));
  };
  if (listed)
    for (uint32_t i = threadIdx.x; i < m.listed; i += SELECT_THREADS) add(m.keys[i]);
  else
    for_row<1>(
        row,
        [&](float logit, uint32_t token) {
          if (kept(cut, key_of(logit), token)) add(key_of(logit));
        },
        [](uint32_t) {});
  __syncthreads();
  uint32_t bin;
  if (!choose_bin(m, measure, target, in, bin)) return false;
  in.high -= bin << shift;
  uint32_t low = in.high - ((1u << shift) - 1);
  if (low > in.low && low <= in.high) in.low = low;
  return true;
}

// Among at most RANKED listed tokens: the one with which the measure reaches `target`.
DEV void rank_listed(const Row& row, Selection& m, Measure measure, uint64_t target, const Interval& in) {
  if (threadIdx.x == 0) m.ranked = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < m.listed; i += SELECT_THREADS) {
    if (m.keys[i] < in.low || m.keys[i] > in.high) continue;
    uint32_t place = atomicAdd(&m.ranked, 1u);
    m.ranked_keys[place] = m.keys[i];
    m.ranked_tokens[place] = m.tokens[i];
  }
  __syncthreads();
  if (threadIdx.x < m.ranked) {
    uint32_t key = m.ranked_keys[threadIdx.x], token = m.ranked_tokens[threadIdx.x], count = in.above;
    uint64_t mass = in.above_mass, own = mass_of(row, logit_of(key));
    for (uint32_t i = 0; i < m.ranked; i++) {
      uint32_t other = m.ranked_keys[i];
      bool better = other > key || (other == key && m.ranked_tokens[i] < token);
      count += better;
      if (better) mass += mass_of(row, logit_of(other));
    }
    bool last = measure == TOKENS ? count + 1 == target : mass < target && mass + own >= target;
    if (last) m.cut_key = key, m.cut_token = token;
  }
  __syncthreads();
}

// Among equal logits, more than can be ranked: so many of the first as are missing. Overwrites the chunks' sums.
DEV void cut_ties(const Row& row, Selection& m, Measure measure, uint64_t target, const Interval& in,
                  uint32_t* chunks) {
  uint64_t own = mass_of(row, logit_of(in.low)), total;
  uint64_t wanted = measure == TOKENS ? target - in.above : own ? (target - in.above_mass + own - 1) / own : 1;
  uint32_t count = 0, all = (row.tokens + CHUNK - 1) / CHUNK, each = (all + SELECT_THREADS - 1) / SELECT_THREADS;
  for_row<1>(
      row, [&](float logit, uint32_t) { count += key_of(logit) == in.low; },
      [&](uint32_t chunk) {
        uint32_t sum = (uint32_t)warp_total(count);
        if ((threadIdx.x & 31) == 0) chunks[chunk] = sum;
        count = 0;
      });
  __syncthreads();
  uint64_t mine = 0;
  for (uint32_t i = threadIdx.x * each; i < all && i < (threadIdx.x + 1) * each; i++) mine += chunks[i];
  uint64_t before = block_prefix(mine, m.sums, total);
  for (uint32_t i = threadIdx.x * each; i < all && i < (threadIdx.x + 1) * each; i++) {
    if (before < wanted && before + chunks[i] >= wanted) m.bin = i, m.above = (uint32_t)before;
    before += chunks[i];
  }
  __syncthreads();
  uint32_t token = m.bin * CHUNK + threadIdx.x;
  bool tied = key_of(logit_at(row, token)) == in.low;
  before = m.above + block_prefix(tied, m.sums, total);
  if (tied && before + 1 == wanted) m.cut_key = in.low, m.cut_token = token;
  __syncthreads();
}

// What a selection leaves behind: a list of all tokens with keys low..=high, up to the best one; or the sums of the
// chunks above `high`, with the tokens low..=high listed; or nothing.
struct Left {
  bool list, sums;
  uint32_t low, high;
};

// Finds where the measure reaches `target`, before an earlier `cut`: in what was listed for that, else in the row, whose
// histogram is in the bins. False: it would be behind the last token.
DEV bool find_cut(const Row& row, Selection& m, const Cut& cut, uint32_t* sum_low, uint32_t* sum_high, Measure measure,
                  uint64_t target, Left& left) {
  uint32_t bin, top = key_of(row.max);
  Interval in = {left.low, left.high, 0, m.listed, 0};
  bool listed = left.list;
  if (!listed) {
    in = {0, 0, 0, 0, 0};
    if (!choose_bin(m, measure, target, in, bin)) return false;
    in.low = first_key(top, [&](float logit) { return bin_of(row, logit) <= bin; });
    in.high = bin == 0 ? top : first_key(top, [&](float logit) { return bin_of(row, logit) < bin; }) - 1;
    left.sums = false;
  }
#pragma unroll 1
  while (true) {
    if (!listed && in.inside <= LISTED) {
      listed = true;
      left.list = in.above + in.inside <= LISTED;
      left.sums = !left.list;
      left.low = in.low, left.high = left.list ? top : in.high;
      gather(row, m, cut, in.low, left.high, left.sums ? sum_low : nullptr, sum_high);
    }
    if (listed && in.inside <= RANKED) {
      rank_listed(row, m, measure, target, in);
      return true;
    }
    if (in.low == in.high) {
      cut_ties(row, m, measure, target, in, sum_low);
      left.sums = false;
      return true;
    }
    if (!narrow(row, m, cut, listed, measure, target, in)) return false;
  }
}

// The mass of the listed tokens up to a cut.
DEV uint64_t list_mass(const Row& row, Selection& m, const Cut& cut) {
  uint64_t sum = 0, total;
  for (uint32_t i = threadIdx.x; i < m.listed; i += SELECT_THREADS)
    if (kept(cut, m.keys[i], m.tokens[i])) sum += mass_of(row, logit_of(m.keys[i]));
  block_prefix(sum, m.sums, total);
  return total;
}
