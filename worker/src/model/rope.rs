//! Rotation frequencies and their scalings.

/// How frequencies are stretched for a longer context than the model was first trained for.
#[derive(Clone, Copy, Debug, PartialEq)]
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
}

/// Radians per position of the `dims / 2` rotated pairs.
pub(super) fn frequencies(dims: usize, base: f64, scaling: Scaling) -> Vec<f32> {
    (0..dims / 2)
        .map(|pair| base.powf(-(2.0 * pair as f64) / dims as f64))
        .map(|frequency| scaling.apply(frequency) as f32)
        .collect()
}

// === impl Scaling ===

impl Scaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, original_context } => {
                // Turns that the pair makes over the original context.
                let turns = original_context * frequency / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}
