// Natural log-probabilities of the raw logits: of one token, and of the best ones.
//
// logits [rows, tokens] f32, rows `stride` apart (a multiple of 4). asked [n]: row, number of alternatives (at most
// 128). drawn [rows] u32: the token of each row. out [n] f32: its log-probability. top_tokens, top [n, width]: the
// alternatives, best first, equal ones by token; where there are fewer, the token is 0xffffffff. NaN counts as
// impossible; where all tokens are, the normalizer is 0 and there is no alternative.
// Bytes: 4 * tokens, twice; three times with alternatives. Bound: memory. One block an entry.
// Expect sm_80 *: LDG.128
// Expect sm_90 *: LDG.128
#include "select.cuh"

struct Asked {
  uint32_t row, alternatives;
};

// Lists the tokens up to the cut: at most RANKED.
DEV void list_kept(const Row& row, Selection& m, const Cut& cut, bool listed) {
  if (threadIdx.x == 0) m.ranked = 0;
  __syncthreads();
  auto add = [&](uint32_t key, uint32_t token) {
    if (!kept(cut, key, token)) return;
    uint32_t place = atomicAdd(&m.ranked, 1u);
    if (place < RANKED) m.ranked_keys[place] = key, m.ranked_tokens[place] = token;
  };
  if (listed)
    for (uint32_t i = threadIdx.x; i < m.listed; i += SELECT_THREADS) add(m.keys[i], m.tokens[i]);
  else
    for_row<1>(
        row,
        [&](float logit, uint32_t token) {
          if (counts(logit)) add(key_of(logit), token);
        },
        [](uint32_t) {});
  __syncthreads();
}

// Grid (n). Dynamic shared memory: Selection, and 8 bytes per chunk of 512 tokens.
KERNEL __launch_bounds__(SELECT_THREADS, 2)
    logprobs(const float* logits, const Asked* asked, const uint32_t* drawn, float* out, uint32_t* top_tokens,
             float* top, uint32_t rows, uint32_t tokens, uint32_t stride, uint32_t width) {
  DYN_SMEM(Selection, memory);
  Selection& m = *memory;
  uint32_t *sum_low = (uint32_t*)(memory + 1), *sum_high = sum_low + (tokens + CHUNK - 1) / CHUNK;
  Asked a = asked[blockIdx.x];
  if (a.row >= rows) return;
  if (a.alternatives > width) a.alternatives = width;
  Row row = {logits + (uint64_t)a.row * stride, nullptr, tokens, 0.0f, 1.0f};
  uint32_t best = (uint32_t)(best_of(row, m.sums) >> 32);
  row.max = logit_of(best);
  bool any = best != 0 && counts(row.max);
  float normalizer = 0.0f;
  uint32_t ranked = 0;
  if (any) {
    Cut cut = {0, 0xffffffff};
    // The mass of all: at least UNIT, that of the best. ln = log2 * ln 2.
    normalizer = fast_log2((float)fill_bins(row, m, TOKENS, cut) / UNIT) * 0.69314718055994531f;
    if (a.alternatives) {
      Left left = {false, false, 0, 0};
      if (find_cut(row, m, cut, sum_low, sum_high, TOKENS, a.alternatives, left)) cut = {m.cut_key, m.cut_token};
      __syncthreads();
      list_kept(row, m, cut, left.list && cut.key >= left.low);
      ranked = m.ranked < RANKED ? m.ranked : RANKED;
    }
  }
  // (logit - max) first: both may be large, and their difference is what counts.
  auto logprob = [&](float logit) { return any ? logit - row.max - normalizer : logit; };
  if (threadIdx.x == 0) {
    float logit = logit_at(row, drawn[a.row]);
    out[blockIdx.x] = logprob(logit == logit ? logit : -INFINITY);
  }
  uint32_t place = threadIdx.x;
  if (threadIdx.x < ranked) {
    uint32_t key = m.ranked_keys[threadIdx.x], token = m.ranked_tokens[threadIdx.x];
    place = 0;
    for (uint32_t i = 0; i < ranked; i++)
      place += m.ranked_keys[i] > key || (m.ranked_keys[i] == key && m.ranked_tokens[i] < token);
    top_tokens[(uint64_t)blockIdx.x * width + place] = token;
    top[(uint64_t)blockIdx.x * width + place] = logprob(logit_of(key));
  } else if (threadIdx.x < width) {
    top_tokens[(uint64_t)blockIdx.x * width + place] = 0xffffffff;
    top[(uint64_t)blockIdx.x * width + place] = -INFINITY;
  }
}
TWIN_EXPORT(logprobs)
