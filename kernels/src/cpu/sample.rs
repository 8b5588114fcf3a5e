//! Drawing tokens from logits.
//!
//! Order: log-probabilities are of the raw logits; then repetition, frequency and presence penalties, bias,
//! tokens that are banned or not allowed, temperature; then top-k, top-p, min-p and typical-p, or mirostat in
//! their place. What the first three keep is always a beginning of the tokens in falling order of logits (by token
//! among equals), so each only says where to cut. The token is the one at which the weights, summed in token order,
//! pass one uniform number.

mod passes;
mod surprise;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::sync::OnceLock;

use self::passes::{Above, BLOCK, Copy, Keep, Largest, Mass, Weigh};
use super::isa::Isa;
use super::pool::Pool;
use super::simd::{self, WIDTH};
use super::{rng, scratch};
use crate::{Draw, Drawn, Logprobs};

/// A cut is sought first among the tokens whose weight is at least e^-7 of the best one's.
const DEPTH: f32 = 7.0;
/// Candidates that are few enough to look at one by one.
const FEW: f64 = 512.0;

/// A row of logits and what is computed from it, padded to whole blocks.
struct Row<'a> {
    isa: Isa,
    vocabulary: usize,
    /// As they came, not padded.
    raw: &'a [f32],
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

/// Logits in `low..high`, among which a cut lies.
#[derive(Clone, Copy)]
struct Span {
    low: f32,
    high: f32,
    /// What there is from `high` on.
    above: Mass,
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
            let row = Row { isa, vocabulary, raw: from, logits: row_logits, weights, blocks };
            drawn[i].get_or_init(|| row.draw(&draws[i]));
        });
    });
    drawn.into_iter().filter_map(OnceLock::into_inner).collect()
}

// === impl Row ===

impl Row<'_> {
    fn draw(mut self, draw: &Draw) -> Drawn {
        let raw = draw.logprobs.map(|alternatives| self.logprobs(alternatives as usize));
        let (token, mirostat) = match draw.given {
            Some(token) => (token, None),
            None => self.choose(draw),
        };
        let logprob = |(normalizer, top)| Logprobs { logprob: logprob(self.raw(token), normalizer), top };
        Drawn { token, mirostat, logprobs: raw.map(logprob) }
    }

    /// The logit of a token before anything was done to it.
    fn raw(&self, token: u32) -> f32 {
        let logit = self.raw.get(token as usize).copied();
        logit.filter(|logit| !logit.is_nan()).unwrap_or(f32::NEG_INFINITY).min(f32::MAX)
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
        let low = match self.span(largest, 1.0, Measure::Tokens, wanted as f64) {
            Some(span) => span.low,
            None => f32::MIN,
        };
        let mut best = self.between(low, f32::INFINITY);
        best.sort_unstable_by(Candidate::order);
        best.truncate(wanted);
        (normalizer, best.iter().map(|best| (best.token, logprob(best.logit, normalizer))).collect())
    }

    /// Draws a token; gives mirostat's next bound too.
    fn choose(&mut self, draw: &Draw) -> (u32, Option<f32>) {
        self.shift(draw);
        self.exclude(draw);
        let bound = draw.mirostat.map(|mirostat| mirostat.bound);
        let largest = self.largest();
        if largest == f32::NEG_INFINITY {
            return (self.first_allowed(draw), bound);
        }
        let best = self.first(largest);
        if draw.temperature <= 0.0 || draw.temperature.is_nan() {
            return (best, bound);
        }
        let factor = draw.temperature.recip().min(f32::MAX);
        self.weigh(largest, factor);
        let total = self.total();
        match draw.mirostat {
            // The best weight is 1.
            Some(mirostat) => self.keep(false, (total * (-f64::from(mirostat.bound)).exp2()) as f32),
            None => self.filter(draw, largest, factor),
        }
        let passed = self.pass(rng::uniform(draw.seed, draw.choice, draw.position));
        let weight = passed.map_or(1.0, |token| self.weights[token as usize]);
        let bound = draw.mirostat.map(|mirostat| mirostat.next_bound((total / f64::from(weight)).log2()));
        (passed.unwrap_or(best), bound)
    }

    /// Penalties and bias.
    fn shift(&mut self, draw: &Draw) {
        let logits = &mut self.logits[..self.vocabulary];
        if let Some(penalties) = &draw.penalties {
            for &seen in penalties.history.seen() {
                if let Some(logit) = logits.get_mut(seen.token as usize) {
                    // Never +∞; and 0 for −0.
                    *logit = penalties.apply(*logit, seen).min(f32::MAX) + 0.0;
                }
            }
        }
        for &(token, bias) in &*draw.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = (*logit + bias).min(f32::MAX);
            }
        }
    }

    fn filter(&mut self, draw: &Draw, largest: f32, factor: f32) {
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
        if draw.typical_p < 1.0 {
            self.typical(draw.typical_p);
        }
    }

    /// Takes away what can't be drawn.
    fn exclude(&mut self, draw: &Draw) {
        let logits = &mut self.logits[..self.vocabulary];
        for &token in &draw.banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let Some(allowed) = &draw.allowed else { return };
        let words = allowed.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(u32::BITS as usize).zip(words) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    let excluded = (0..).zip(logits).filter(|(bit, _)| word & (1 << bit) == 0);
                    excluded.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
        }
    }

    /// The first token that can be drawn, where no logit says which to take; 0 if none can.
    fn first_allowed(&self, draw: &Draw) -> u32 {
        let mut allowed = vec![true; self.vocabulary];
        for &token in &draw.banned {
            if let Some(allowed) = allowed.get_mut(token as usize) {
                *allowed = false;
            }
        }
        if let Some(mask) = &draw.allowed {
            for (token, allowed) in allowed.iter_mut().enumerate() {
                *allowed &= mask.get(token / 32).is_some_and(|word| word & (1 << (token % 32)) != 0);
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

    fn mass(&self, bound: f32) -> Mass {
        // SAFETY: the pass asks for nothing.
        unsafe { simd::run(self.isa, Above { logits: self.logits, weights: self.weights, bound }) }
    }

    /// Logits among which the last of the fewest best tokens that measure `target` lies; none if all that
    /// weigh anything measure less.
    fn span(&self, largest: f32, factor: f32, measure: Measure, target: f64) -> Option<Span> {
        let mut span = Span { low: largest, high: f32::INFINITY, above: Mass::default() };
        let mut depth = DEPTH / factor;
        let mut all = loop {
            span.low = (largest - depth).max(f32::MIN);
            let all = self.mass(span.low);
            if measure.of(all) >= target {
                break all;
            }
            // So far from the best, nothing weighs anything (NaN: at an infinite temperature).
            if depth * factor > 100.0 || (depth * factor).is_nan() {
                return None;
            }
            (span.high, span.above) = (span.low, all);
            depth *= 2.0;
        };
        for _ in 0..16 {
            let middle = span.low + (span.high.min(largest) - span.low) / 2.0;
            if all.tokens - span.above.tokens <= FEW || middle <= span.low || middle >= span.high {
                break;
            }
            let mass = self.mass(middle);
            if measure.of(mass) >= target {
                (span.low, all) = (middle, mass);
            } else {
                (span.high, span.above) = (middle, mass);
            }
        }
        Some(span)
    }

    /// The tokens whose logits are in `low..high`, in their order.
    fn between(&self, low: f32, high: f32) -> Vec<Candidate> {
        let mut found = Vec::new();
        for start in (0..self.logits.len()).step_by(WIDTH) {
            let logits = &self.logits[start..start + WIDTH];
            // Without an early end, which would keep this from being one comparison of vectors.
            if !logits.iter().fold(false, |any, &x| any | (low <= x && x < high)) {
                continue;
            }
            for token in (start..start + WIDTH).filter(|&i| low <= self.logits[i] && self.logits[i] < high) {
                let (logit, weight) = (self.logits[token], self.weights[token]);
                found.push(Candidate { logit, weight, token: token as u32 });
            }
        }
        found
    }

    /// Keeps the fewest best tokens that measure at least `target`.
    fn cut(&mut self, largest: f32, factor: f32, measure: Measure, target: f64) {
        let Some(span) = self.span(largest, factor, measure, target) else {
            return;
        };
        let mut candidates = self.between(span.low, span.high);
        candidates.sort_unstable_by(Candidate::order);
        let mut missing = target - measure.of(span.above);
        let last = candidates.iter().position(|candidate| {
            missing -= measure.of(candidate.mass());
            missing <= 0.0
        });
        // Sums in another order may fall short by their rounding: then it is the last one.
        let last = last.unwrap_or(candidates.len().saturating_sub(1));
        let Some(bound) = candidates.get(last).map(|last| last.logit) else {
            return;
        };
        for tied in candidates[last + 1..].iter().take_while(|tied| tied.logit == bound) {
            self.logits[tied.token as usize] = f32::NEG_INFINITY;
        }
        self.keep(true, bound);
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
                // Where rounding left a block's target to the next one, that starts beyond it.
                if within > target && self.weights[token] > 0.0 {
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

    fn mass(&self) -> Mass {
        Mass { tokens: 1.0, weight: f64::from(self.weight) }
    }
}

// === impl Measure ===

impl Measure {
    fn of(self, mass: Mass) -> f64 {
        match self {
            Self::Tokens => mass.tokens,
            Self::Weight => mass.weight,
        }
    }
}

fn logprob(logit: f32, normalizer: f64) -> f32 {
    (f64::from(logit) - normalizer) as f32
}
