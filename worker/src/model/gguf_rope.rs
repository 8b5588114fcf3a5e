//! The rotation that GGUF metadata describes.

use volley_kernels::{DType, Rope};

use super::{
    family::Family,
    rope::{Scaling, frequencies, yarn_context, yarn_magnitude},
};
use crate::{Error, format::gguf::Gguf};

/// Divisors of the rotation frequencies, one per pair, in files of Llama 3.1 and later.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The same for the model's first context, and for the one that it was stretched to (longrope).
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// A file's rotations.
pub(super) struct Rotations<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) family: &'a Family,
    pub(super) architecture: &'a str,
    pub(super) head_dim: u64,
    pub(super) context: u64,
}

// === impl Rotations ===

impl Rotations<'_> {
    /// Of the layers that have a window where others have none, or of the others.
    pub(super) fn rope(&self, local: bool) -> Result<Rope, Error> {
        let Self { gguf, family, head_dim, .. } = *self;
        let dims = gguf.u64(&self.key("dimension_count"))?.unwrap_or(head_dim);
        if dims == 0 || dims > head_dim || dims % 2 != 0 {
            let problem = format!("{dims}; expected an even number up to the head dimension {head_dim}");
            return Err(self.malformed("dimension_count", problem));
        }
        let pairing = family.gguf_pairing;
        let rope = |base, scaling: &Scaling, magnitude| Rope {
            frequencies: frequencies(dims as usize, base, scaling),
            pairing,
            magnitude,
        };
        if let (Some(usual), true) = (family.local_base, local) {
            let base = gguf.f64(&self.key("freq_base_swa"))?.unwrap_or(usual);
            return self.finite(rope(base, &Scaling::None, 1.0));
        }
        let base = gguf.f64(&self.key("freq_base"))?.unwrap_or(10_000.0);
        let (scaling, magnitude) = self.scaling(dims as usize / 2)?;
        self.finite(rope(base, &scaling, magnitude as f32))
    }

    /// The context, as the scaling extends it.
    pub(super) fn context(&self) -> Result<u64, Error> {
        match self.yarn()? {
            Some((Scaling::Yarn { factor, original_context, .. }, _)) => {
                Ok(yarn_context(self.context, factor, original_context))
            }
            _ => Ok(self.context),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.rope.{name}", self.architecture)
    }

    fn malformed(&self, name: &str, problem: impl Into<String>) -> Error {
        Error::malformed(&self.gguf.file, format!("key {}", self.key(name)), problem.into())
    }

    fn number(&self, name: &str, usual: f64) -> Result<f64, Error> {
        let number = self.gguf.f64(&self.key(name))?.unwrap_or(usual);
        if number.is_finite() && number > 0.0 {
            return Ok(number);
        }
        Err(self.malformed(name, format!("{number}; expected a number above 0")))
    }

    /// How frequencies of so many pairs are stretched, and what sines and cosines are multiplied by.
    fn scaling(&self, pairs: usize) -> Result<(Scaling, f64), Error> {
        let magnitude = self.number("scaling.attn_factor", 1.0)?;
        if let Some((yarn, own)) = self.yarn()? {
            return Ok((yarn, own * magnitude));
        }
        let weights = &self.gguf.weights;
        let long = self.context as f64 > self.original_context()?;
        let names = [ROPE_FACTORS, if long { LONG_FACTORS } else { SHORT_FACTORS }];
        let tensor = names.into_iter().find(|name| weights.contains(name));
        let key = self.key("scaling.type");
        match (self.gguf.str(&key)?, tensor) {
            (None | Some("none" | "longrope"), Some(name)) => {
                Ok((Scaling::Each { factors: self.factors(name, pairs)? }, magnitude))
            }
            (None | Some("none"), None) => Ok((Scaling::None, magnitude)),
            (Some("linear"), None) => {
                Ok((Scaling::Linear { factor: self.number("scaling.factor", 1.0)? }, magnitude))
            }
            (Some(other), tensor) => {
                let with = tensor.map(|name| format!(" with {name}")).unwrap_or_default();
                let problem =
                    format!("{other}{with}; supported: none, linear, yarn, {ROPE_FACTORS}, {LONG_FACTORS}");
                Err(Error::unsupported(&self.gguf.file, format!("key {key}"), problem))
            }
        }
    }

    fn original_context(&self) -> Result<f64, Error> {
        self.number("scaling.original_context_length", self.context as f64)
    }

    /// YaRN and its magnitude, if it is that.
    fn yarn(&self) -> Result<Option<(Scaling, f64)>, Error> {
        if self.gguf.str(&self.key("scaling.type"))? != Some("yarn") {
            return Ok(None);
        }
        for name in ["scaling.yarn_ext_factor", "scaling.yarn_attn_factor", "scaling.yarn_log_multiplier"] {
            if self.gguf.f64(&self.key(name))?.is_some() {
                let place = format!("key {}", self.key(name));
                return Err(Error::unsupported(&self.gguf.file, place, "only YaRN's usual one is supported"));
            }
        }
        let factor = self.number("scaling.factor", 1.0)?.clamp(1e-6, 1e6);
        let scaling = Scaling::Yarn {
            factor,
            fast: self.number("scaling.yarn_beta_fast", 32.0)?,
            slow: self.number("scaling.yarn_beta_slow", 1.0)?,
            original_context: self.original_context()?,
            whole: true,
        };
        Ok(Some((scaling, yarn_magnitude(factor))))
    }

    fn factors(&self, name: &str, pairs: usize) -> Result<Vec<f64>, Error> {
        let Some(factors) = self.gguf.weights.find(name, 1, pairs)? else { return Ok(vec![]) };
        if factors.dtype != DType::F32 {
            let problem = format!("stored as {:?}; expected F32", factors.dtype);
            return Err(Error::unsupported(&self.gguf.file, format!("tensor {name}"), problem));
        }
        let numbers = factors.data.chunks_exact(4);
        Ok(numbers.map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect())
    }

    fn finite(&self, rope: Rope) -> Result<Rope, Error> {
        if rope.frequencies.iter().any(|frequency| !frequency.is_finite()) {
            let problem = "base, factor or rope_freqs give no finite frequencies";
            return Err(Error::malformed(&self.gguf.file, "rope", problem));
        }
        Ok(rope)
    }
}
