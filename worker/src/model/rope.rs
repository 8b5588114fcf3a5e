//! Rotation frequencies and their scalings.
//!
//! A model turns by the same frequencies from a stream's first token to its last: where there are two sets of them, for
//! short and for long texts, the model's context chooses, not the text's length. Else a stream's early keys would be of
//! another set than its late ones, and its tokens would depend on when it was moved.

use std::f64::consts::TAU;

/// How frequencies are stretched for a longer context than the model was first trained for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scaling {
    None,
    /// All by one factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths by the factor, short ones not, a blend between
    /// (Grattafiori et al., "The Llama 3 Herd of Models", and its reference code).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_context: f64,
    },
    /// YaRN (arXiv 2309.00071): as above, with a blend over pairs, from the one that turns `fast` times over the original
    /// context to the one that turns `slow` times.
    Yarn {
        factor: f64,
        fast: f64,
        slow: f64,
        original_context: f64,
        /// Whether the blend begins and ends at whole pairs.
        whole: bool,
    },
    /// Each pair by its own factor: LongRoPE (arXiv 2402.13753).
    Each {
        factors: Vec<f64>,
    },
}

/// Radians per position of the `dims / 2` rotated pairs.
pub(super) fn frequencies(dims: usize, base: f64, scaling: &Scaling) -> Vec<f32> {
    (0..dims / 2)
        .map(|pair| (pair, base.powf(-(2.0 * pair as f64) / dims as f64)))
        .map(|(pair, frequency)| scaling.apply(pair, frequency, dims, base) as f32)
        .collect()
}

/// What turns is multiplied by, so that attention stays as sharp: YaRN's.
pub(super) fn yarn_magnitude(factor: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}

/// The same of LongRoPE, for a context `factor` times the original one.
pub(super) fn longrope_magnitude(factor: f64, original_context: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original_context.ln()).sqrt() }
}

/// What YaRN makes of a context.
pub(super) fn yarn_context(context: u64, factor: f64, original_context: f64) -> u64 {
    context.max((factor * original_context) as u64)
}

// === impl Scaling ===

impl Scaling {
    fn apply(&self, pair: usize, frequency: f64, dims: usize, base: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, original_context } => {
                // Turns that the pair makes over the original context.
                let turns = original_context * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
            Self::Yarn { factor, fast, slow, original_context, whole } => {
                // The pair, perhaps between two, that makes so many turns over the original context.
                let pair_of =
                    |turns: f64| dims as f64 * (original_context / (turns * TAU)).ln() / (2.0 * base.ln());
                let (first, last) = (pair_of(fast), pair_of(slow));
                let (first, last) = if whole { (first.floor(), last.ceil()) } else { (first, last) };
                let (first, last) = (first.max(0.0), last.min(dims as f64 - 1.0));
                let width = if first == last { 0.001 } else { last - first };
                let stretched = ((pair as f64 - first) / width).clamp(0.0, 1.0);
                stretched * frequency / factor + (1.0 - stretched) * frequency
            }
            Self::Each { ref factors } => frequency / factors.get(pair).copied().unwrap_or(1.0),
        }
    }
}
