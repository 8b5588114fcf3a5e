//! The rotation that a config.json describes.

use std::path::Path;

use serde::Deserialize;
use volley_kernels::{Rope, RopePairing};

use super::rope::{Scaling, frequencies, longrope_magnitude, yarn_context, yarn_magnitude};
use crate::Error;

/// `rope_scaling`, or `rope_parameters`.
#[derive(Clone, Default, Deserialize)]
pub(super) struct RopeParameters {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    /// Multiplies sines and cosines, where it doesn't follow from the rest.
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    /// Of layers with a window, and of others.
    pub(super) sliding_attention: Option<Box<RopeParameters>>,
    pub(super) full_attention: Option<Box<RopeParameters>>,
}

/// What the rest of the file says, where the parameters don't.
pub(super) struct Usual<'a> {
    pub(super) base: f64,
    /// Of a head's dimensions, so many turn.
    pub(super) part: f64,
    pub(super) head_dim: u64,
    pub(super) context: u64,
    pub(super) original_context: Option<f64>,
    pub(super) file: &'a Path,
}

// === impl RopeParameters ===

impl RopeParameters {
    /// The rotation.
    pub(super) fn rope(&self, usual: &Usual<'_>) -> Result<Rope, Error> {
        let (scaling, magnitude) = self.scaling(usual)?;
        let base = usual.positive(self.rope_theta.or(Some(usual.base)), "rope_theta")?;
        let dims = self.dims(usual)?;
        let frequencies = frequencies(dims, base, &scaling);
        if let Scaling::Each { factors } = &scaling
            && factors.len() != frequencies.len()
        {
            let problem = format!("{} factors for {} pairs", factors.len(), frequencies.len());
            return Err(Error::malformed(usual.file, "rope scaling", problem));
        }
        Ok(Rope { frequencies, pairing: RopePairing::Halves, magnitude: magnitude as f32 })
    }

    /// The context, as the scaling extends it.
    pub(super) fn context(&self, usual: &Usual<'_>) -> Result<u64, Error> {
        match self.scaling(usual)?.0 {
            Scaling::Yarn { factor, original_context, .. } => {
                Ok(yarn_context(usual.context, factor, original_context))
            }
            _ => Ok(usual.context),
        }
    }

    fn dims(&self, usual: &Usual<'_>) -> Result<usize, Error> {
        let (part, head_dim) = (self.partial_rotary_factor.unwrap_or(usual.part), usual.head_dim);
        let dims = (head_dim as f64 * part) as u64;
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            let problem = format!("{part}; expected an even number of the {head_dim} dimensions of a head");
            return Err(Error::malformed(usual.file, "key partial_rotary_factor", problem));
        }
        Ok(dims as usize)
    }

    /// How frequencies are stretched, and what sines and cosines are multiplied by.
    fn scaling(&self, usual: &Usual<'_>) -> Result<(Scaling, f64), Error> {
        let factor = || usual.positive(self.factor, "factor");
        let original = || {
            let context = self.original_max_position_embeddings.or(usual.original_context);
            usual.positive(context, "original_max_position_embeddings")
        };
        let scaling = match self.rope_type.as_deref() {
            None | Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear { factor: factor()? },
            Some("llama3") => Scaling::Llama3 {
                factor: factor()?,
                low: usual.positive(self.low_freq_factor, "low_freq_factor")?,
                high: usual.positive(self.high_freq_factor, "high_freq_factor")?,
                original_context: original()?,
            },
            Some("yarn") => return self.yarn(usual),
            Some("longrope" | "su") => return self.longrope(usual, original()?),
            Some(other) => {
                let problem = format!("{other}; supported: default, linear, llama3, yarn, longrope");
                return Err(Error::unsupported(usual.file, "rope scaling", problem));
            }
        };
        Ok((scaling, 1.0))
    }

    fn yarn(&self, usual: &Usual<'_>) -> Result<(Scaling, f64), Error> {
        let original = self.original_max_position_embeddings.or(usual.original_context);
        let original = original.unwrap_or(usual.context as f64);
        let original_context = usual.positive(Some(original), "original_max_position_embeddings")?;
        let factor = usual
            .positive(self.factor.or(Some(usual.context as f64 / original_context)), "factor")?
            .clamp(1e-6, 1e6);
        let magnitude = match (self.mscale, self.mscale_all_dim) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                let of = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
                of(one) / of(all)
            }
            _ => yarn_magnitude(factor),
        };
        let scaling = Scaling::Yarn {
            factor,
            fast: usual.positive(self.beta_fast.or(Some(32.0)), "beta_fast")?,
            slow: usual.positive(self.beta_slow.or(Some(1.0)), "beta_slow")?,
            original_context,
            whole: self.truncate.unwrap_or(true),
        };
        let magnitude = self.attention_factor.unwrap_or(magnitude);
        Ok((scaling, usual.positive(Some(magnitude), "attention_factor")?))
    }

    /// Of the two sets of factors, that of the model's context (rope.rs says why).
    fn longrope(&self, usual: &Usual<'_>, original: f64) -> Result<(Scaling, f64), Error> {
        let long = usual.context as f64 > original;
        let (factors, key) =
            if long { (&self.long_factor, "long_factor") } else { (&self.short_factor, "short_factor") };
        let factors = factors.clone().unwrap_or_default();
        for factor in &factors {
            usual.positive(Some(*factor), key)?;
        }
        let stretch = self.factor.unwrap_or(usual.context as f64 / original);
        let magnitude = self.attention_factor.unwrap_or_else(|| longrope_magnitude(stretch, original));
        Ok((Scaling::Each { factors }, usual.positive(Some(magnitude), "attention_factor")?))
    }
}

// === impl Usual ===

impl Usual<'_> {
    fn positive(&self, value: Option<f64>, key: &str) -> Result<f64, Error> {
        value.filter(|value| value.is_finite() && *value > 0.0).ok_or_else(|| {
            Error::malformed(self.file, format!("rope scaling: {key}"), "expected a number above 0")
        })
    }
}
