//! Passes over a row of the vocabulary. Rows are padded to whole [`BLOCK`]s with −∞.

use crate::cpu::norm::load;
use crate::cpu::simd::{Kernel, Lanes, WIDTH, exp};

/// Tokens that share a maximum or a sum.
pub(super) const BLOCK: usize = 256;

/// Copies logits, padded: NaN as −∞, +∞ as the largest number, −0 as 0.
pub(super) struct Copy<'a> {
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [f32],
}

/// The largest number of each block; gives the largest of all.
pub(super) struct Largest<'a> {
    pub(super) of: &'a [f32],
    pub(super) blocks: &'a mut [f32],
}

/// `weights = e^((logits − largest) · factor)`, with the sum of each block.
pub(super) struct Weigh<'a> {
    pub(super) logits: &'a [f32],
    pub(super) largest: f32,
    pub(super) factor: f32,
    pub(super) weights: &'a mut [f32],
    pub(super) sums: &'a mut [f32],
}

/// Clears weights where the logit, or the weight itself, is below `bound`; sums each block again.
pub(super) struct Keep<'a> {
    pub(super) logits: Option<&'a [f32]>,
    pub(super) bound: f32,
    pub(super) weights: &'a mut [f32],
    pub(super) sums: &'a mut [f32],
}

/// How many tokens have at least the logit `bound`, and what they weigh.
pub(super) struct Above<'a> {
    pub(super) logits: &'a [f32],
    pub(super) weights: &'a [f32],
    pub(super) bound: f32,
}

/// Tokens, and the sum of their weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mass {
    pub(super) tokens: f64,
    pub(super) weight: f64,
}

impl Kernel for Copy<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { from, to } = self;
        // SAFETY: as the caller promises; chunks of `to` are whole vectors.
        unsafe {
            let (least, most) = (L::splat(f32::NEG_INFINITY), L::splat(f32::MAX));
            for (i, to) in to.chunks_exact_mut(WIDTH).enumerate() {
                let from = &from[(i * WIDTH).min(from.len())..];
                let numbers = load::<L>(from).add(L::splat(0.0)).max(least).min(most);
                numbers.first(from.len().min(WIDTH), least).store(to.as_mut_ptr());
            }
        }
    }
}

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f32 {
        // SAFETY: as the caller promises.
        let least = unsafe { L::splat(f32::NEG_INFINITY) };
        let mut all = least;
        for (numbers, largest) in self.of.chunks_exact(BLOCK).zip(self.blocks) {
            let mut block = least;
            for numbers in numbers.chunks_exact(WIDTH) {
                // SAFETY: a whole vector.
                block = unsafe { L::load(numbers.as_ptr()) }.max(block);
            }
            *largest = block.largest();
            all = all.max(block);
        }
        all.largest()
    }
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { logits, largest, factor, weights, sums } = self;
        // SAFETY: as the caller promises; chunks are whole vectors.
        unsafe {
            let (largest, factor) = (L::splat(largest), L::splat(factor));
            let blocks = logits.chunks_exact(BLOCK).zip(weights.chunks_exact_mut(BLOCK)).zip(sums);
            for ((logits, weights), sum) in blocks {
                let mut lanes = L::splat(0.0);
                for (from, to) in logits.chunks_exact(WIDTH).zip(weights.chunks_exact_mut(WIDTH)) {
                    let weight = exp(L::load(from.as_ptr()).sub(largest).mul(factor));
                    weight.store(to.as_mut_ptr());
                    lanes = lanes.add(weight);
                }
                *sum = lanes.sum();
            }
        }
    }
}

impl Kernel for Keep<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { logits, bound, weights, sums } = self;
        // SAFETY: as the caller promises; chunks are whole vectors.
        unsafe {
            let bound = L::splat(bound);
            for (i, (weights, sum)) in weights.chunks_exact_mut(BLOCK).zip(sums).enumerate() {
                let mut lanes = L::splat(0.0);
                for (j, weights) in weights.chunks_exact_mut(WIDTH).enumerate() {
                    let weight = L::load(weights.as_ptr());
                    let by = match logits {
                        Some(logits) => L::load(logits[i * BLOCK + j * WIDTH..][..WIDTH].as_ptr()),
                        None => weight,
                    };
                    let kept = weight.zero_below(by, bound);
                    kept.store(weights.as_mut_ptr());
                    lanes = lanes.add(kept);
                }
                *sum = lanes.sum();
            }
        }
    }
}

impl Kernel for Above<'_> {
    type Output = Mass;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> Mass {
        let mut mass = Mass::default();
        // SAFETY: as the caller promises; chunks are whole vectors.
        unsafe {
            let (bound, zero, one) = (L::splat(self.bound), L::splat(0.0), L::splat(1.0));
            for (logits, weights) in self.logits.chunks_exact(BLOCK).zip(self.weights.chunks_exact(BLOCK)) {
                let (mut tokens, mut weight) = (zero, zero);
                for (logits, weights) in logits.chunks_exact(WIDTH).zip(weights.chunks_exact(WIDTH)) {
                    let logits = L::load(logits.as_ptr());
                    tokens = tokens.add(one.zero_below(logits, bound));
                    weight = weight.add(L::load(weights.as_ptr()).zero_below(logits, bound));
                }
                mass.tokens += f64::from(tokens.sum());
                mass.weight += f64::from(weight.sum());
            }
        }
        mass
    }
}
