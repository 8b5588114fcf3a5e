//! Drawing tokens from logits.
//!
//! Order: log-probabilities are of the raw logits; then banned tokens, temperature, top-k, top-p, min-p. What
//! the filters keep is always a beginning of the tokens in falling order of logits (by token among equals),
//! so each filter only says where to cut. The token is the one at which the weights, summed in token order,
//! pass one uniform number.

mod passes;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::sync::OnceLock;

use self::passes::{BLOCK, Copy, Keep, Largest, Weigh};
use super::isa::Isa;
use super::pool::Pool;
use super::simd::{self, WIDTH};
use super::{rng, scratch};
use crate::{Draw, Drawn, Logprobs};

/// Candidates for a cut are sought above these shares of the best token's weight, until there are enough.
const LIKELY: [f32; 2] = [1e-3, 1e-6];

/// A row of logits and what is computed from it, padded to whole blocks.
struct Row<'a> {
    isa: Isa,
    vocabulary: usize,
    logits: &'a mut [f32],
    weights: &'a mut [f32],
    /// A number per block: the largest logit, or the sum of the weights.
    blocks: &'a mut [f32],
}

/// A token that a filter may keep.
#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    weight: f32,
    token: u32,
}

/// What a filter counts until it has enough.
#[derive(Clone, Copy)]
enum Measure {
    Tokens,
    Weight,
}

/// Draws from row `i` of `logits`, `[draws][vocabulary]`, as `draws[i]` says.
///
/// # Panics
/// If there are fewer logits than that, or no vocabulary.
pub(crate) fn draw(pool: &Pool, isa: Isa, logits: &[f32], vocabulary: usize, draws: &[Draw]) -> Vec<Drawn> {
    assert!(vocabulary > 0 && logits.len() / vocabulary >= draws.len(), "fewer logits than draws");
    let drawn: Vec<OnceLock<Drawn>> = draws.iter().map(|_| OnceLock::new()).collect();
    let padded = vocabulary.next_multiple_of(BLOCK);
    pool.run(draws.len(), &|i| {
        scratch::with(2 * padded + padded / BLOCK, |memory| {
            let (row_logits, rest) = memory.split_at_mut(padded);
            let (weights, rest) = rest.split_at_mut(padded);
            let blocks = &mut rest[..padded / BLOCK];
            let from = &logits[i * vocabulary..][..vocabulary];
            // SAFETY: copying asks for nothing.
            unsafe { simd::run(isa, Copy { from, to: row_logits }) };
            let row = Row { isa, vocabulary, logits: row_logits, weights, blocks };
            drawn[i].get_or_init(|| row.draw(&draws[i]));
        });
    });
    drawn.into_iter().filter_map(OnceLock::into_inner).collect()
}

// === impl Row ===

impl Row<'_> {
    fn draw(mut self, draw: &Draw) -> Drawn {
        let raw = draw.logprobs.map(|alternatives| self.logprobs(alternatives as usize));
        // A banned token's own log-probability is wanted where it is given.
        let given = draw.given.map(|token| (token, self.logit(token)));
        let (token, logit) = given.unwrap_or_else(|| self.choose(draw));
        let logprobs = raw.map(|(normalizer, top)| Logprobs { logprob: logprob(logit, normalizer), top });
        Drawn { token, logprobs }
    }

    /// The raw logit of a token.
    fn logit(&self, token: u32) -> f32 {
        self.logits[..self.vocabulary].get(token as usize).copied().unwrap_or(f32::NEG_INFINITY)
    }

    /// What to subtract from a logit for its log-probability, and the best tokens.
    fn logprobs(&mut self, alternatives: usize) -> (f64, Vec<(u32, f32)>) {
        let largest = self.largest();
        if largest == f32::NEG_INFINITY {
            return (0.0, Vec::new());
        }
        self.weigh(largest, 1.0);
        let normalizer = f64::from(largest) + self.total().ln();
        let wanted = alternatives.min(self.vocabulary);
        let mut best = self.candidates(largest, 1.0, |best| best.len() >= wanted);
        if wanted > 0 && best.len() > wanted {
            best.select_nth_unstable_by(wanted - 1, Candidate::order);
        }
        best.truncate(wanted);
        best.sort_unstable_by(Candidate::order);
        (normalizer, best.iter().map(|best| (best.token, logprob(best.logit, normalizer))).collect())
    }

    /// Draws a token; gives its logit too.
    fn choose(&mut self, draw: &Draw) -> (u32, f32) {
        for &token in &draw.banned {
            if let Some(logit) = self.logits[..self.vocabulary].get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let largest = self.largest();
        if largest == f32::NEG_INFINITY {
            return (self.first_allowed(&draw.banned), largest);
        }
        let best = self.first(largest);
        if draw.temperature <= 0.0 || draw.temperature.is_nan() {
            return (best, largest);
        }
        let factor = draw.temperature.recip().min(f32::MAX);
        self.weigh(largest, factor);
        if draw.top_k > 0 && (draw.top_k as usize) < self.vocabulary {
            self.cut(largest, factor, Measure::Tokens, f64::from(draw.top_k));
        }
        if draw.top_p < 1.0 {
            let enough = f64::from(draw.top_p) * self.total();
            self.cut(largest, factor, Measure::Weight, enough);
        }
        if draw.min_p > 0.0 {
            // The best weight is 1.
            self.keep(false, draw.min_p);
        }
        let token = self.pass(rng::uniform(draw.seed, draw.choice, draw.position)).unwrap_or(best);
        (token, self.logits[token as usize])
    }

    /// The first token that isn't banned, where no logit says which to take; 0 if all are.
    fn first_allowed(&self, banned: &[u32]) -> u32 {
        let mut allowed = vec![true; self.vocabulary];
        for &token in banned {
            if let Some(allowed) = allowed.get_mut(token as usize) {
                *allowed = false;
            }
        }
        allowed.iter().position(|&allowed| allowed).unwrap_or(0) as u32
    }

    fn largest(&mut self) -> f32 {
        // SAFETY: the pass asks for nothing.
        unsafe { simd::run(self.isa, Largest { of: self.logits, blocks: self.blocks }) }
    }

    fn weigh(&mut self, largest: f32, factor: f32) {
        let Self { isa, ref logits, ref mut weights, ref mut blocks, .. } = *self;
        // SAFETY: the pass asks for nothing.
        unsafe { simd::run(isa, Weigh { logits, largest, factor, weights, sums: blocks }) }
    }

    fn keep(&mut self, by_logit: bool, bound: f32) {
        let Self { isa, ref logits, ref mut weights, ref mut blocks, .. } = *self;
        let logits = by_logit.then_some(&**logits);
        // SAFETY: the pass asks for nothing.
        unsafe { simd::run(isa, Keep { logits, bound, weights, sums: blocks }) }
    }

    /// Sum of all weights.
    fn total(&self) -> f64 {
        self.blocks.iter().map(|&sum| f64::from(sum)).sum()
    }

    /// The first token with the largest logit, after [`largest`](Self::largest).
    fn first(&self, largest: f32) -> u32 {
        let block = self.blocks.iter().position(|&block| block == largest).unwrap_or(0);
        let tokens = &self.logits[block * BLOCK..][..BLOCK];
        (block * BLOCK + tokens.iter().position(|&logit| logit == largest).unwrap_or(0)) as u32
    }

    /// The likely tokens if they are enough, else all, in token order.
    fn candidates(&self, largest: f32, factor: f32, enough: impl Fn(&[Candidate]) -> bool) -> Vec<Candidate> {
        for share in LIKELY {
            let likely = self.above(largest + share.ln() / factor, share / 2.0);
            if enough(&likely) {
                return likely;
            }
        }
        self.above(f32::NEG_INFINITY, 0.0)
    }

    /// Tokens whose logits are at least `logit`, in blocks whose weights sum to at least `sum`.
    fn above(&self, logit: f32, sum: f32) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (block, _) in self.blocks.iter().enumerate().filter(|&(_, &block)| block >= sum) {
            for start in (block * BLOCK..(block + 1) * BLOCK).step_by(WIDTH) {
                let logits = &self.logits[start..start + WIDTH];
                // Without an early end, which would keep this from being one comparison of vectors.
                if !logits.iter().fold(false, |any, &x| any | (x >= logit)) {
                    continue;
                }
                for token in (start..start + WIDTH).filter(|&token| self.logits[token] >= logit) {
                    let (logit, weight) = (self.logits[token], self.weights[token]);
                    found.push(Candidate { logit, weight, token: token as u32 });
                }
            }
        }
        // Padding is last.
        while found.last().is_some_and(|last| last.token as usize >= self.vocabulary) {
            found.pop();
        }
        found
    }

    /// Keeps the fewest best tokens that measure at least `target`.
    fn cut(&mut self, largest: f32, factor: f32, measure: Measure, target: f64) {
        let enough = |found: &[Candidate]| found.iter().map(|c| measure.of(c)).sum::<f64>() >= target;
        let mut candidates = self.candidates(largest, factor, enough);
        let Some(last) = last_kept(&mut candidates, measure, target) else {
            return;
        };
        for tied in candidates.iter().filter(|c| c.logit == last.logit && c.token > last.token) {
            self.logits[tied.token as usize] = f32::NEG_INFINITY;
        }
        self.keep(true, last.logit);
    }

    /// The token at which the weights, summed in token order, pass `share` of their total.
    fn pass(&self, share: f64) -> Option<u32> {
        let target = share * self.total();
        let mut sum = 0.0;
        let mut last = None;
        for (block, &block_sum) in self.blocks.iter().enumerate().filter(|&(_, &sum)| sum > 0.0) {
            let tokens = block * BLOCK..(block + 1) * BLOCK;
            let mut within = sum;
            for token in tokens.filter(|_| sum + f64::from(block_sum) > target) {
                within += f64::from(self.weights[token]);
                if within > target {
                    return Some(token as u32);
                }
            }
            sum += f64::from(block_sum);
            last = Some(block);
        }
        // Rounding: the sums of the last block's weights, one by one and by lanes, differ a little.
        let block = last?;
        (block * BLOCK..(block + 1) * BLOCK)
            .rfind(|&token| self.weights[token] > 0.0)
            .map(|token| token as u32)
    }
}

// === impl Candidate ===

impl Candidate {
    /// Best first, equal ones by token.
    fn order(a: &Self, b: &Self) -> Ordering {
        b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
    }
}

// === impl Measure ===

impl Measure {
    fn of(self, candidate: &Candidate) -> f64 {
        match self {
            Self::Tokens => 1.0,
            Self::Weight => f64::from(candidate.weight),
        }
    }
}

/// The last of the fewest best candidates that measure at least `target`; none if all measure less.
///
/// Quickselect: the half that the target falls into is searched further, so nothing is sorted as a whole.
fn last_kept(candidates: &mut [Candidate], measure: Measure, mut target: f64) -> Option<Candidate> {
    let mut rest = candidates;
    while rest.len() > 32 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, Candidate::order);
        let (better, worse) = rest.split_at_mut(middle);
        let sum: f64 = better.iter().map(|c| measure.of(c)).sum();
        if sum >= target {
            rest = better;
        } else {
            target -= sum;
            rest = worse;
        }
    }
    rest.sort_unstable_by(Candidate::order);
    rest.iter().copied().find(|candidate| {
        target -= measure.of(candidate);
        target <= 0.0
    })
}

fn logprob(logit: f32, normalizer: f64) -> f32 {
    (f64::from(logit) - normalizer) as f32
}
