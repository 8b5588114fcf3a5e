//! Linear layers of quantized Hugging Face checkpoints.
//!
//! ```text
//! config.rs   what `quantization_config` says
//! scales.rs   scales and zero points
//! words.rs    codes in words of 32 bits, as rows
//! ```
//!
//! What a layer has tells how it is stored, so that those left as they were (`ignore`, `modules_to_not_convert`) need no
//! list: a plain `weight` is taken as it is. Scales of activations and of caches are not looked at: activations stay
//! as they are, whatever a checkpoint was made for.
//!
//! ```text
//! fp8, compressed-tensors,  weight [out, in]             e4m3 or int8
//! modelopt (fp8)            weight_packed [out, in/8]    4 bits (in/4: 8 bits), the lowest first, and half of their range added
//!                           weight_scale(_inv)           one; one a row; one a group [out, groups]; one a block
//!                           weight_zero_point            packed along the outputs, where codes have one
//! gptq                      qweight [in/8, out]   qzeros [groups, out/8]   scales [groups, out]   g_idx [in]
//!                           (8 bits: in/4, out/4)
//! awq                       qweight [in, out/8]   qzeros [groups, out/8]   scales [groups, out]
//! ```

mod config;
mod scales;
#[cfg(test)]
mod tests;
mod words;

use bytes::Bytes;
use volley_kernels::{DType, Scales, Tensor};

pub(super) use self::config::scheme;
use self::words::Words;
use super::{Entry, Raw, Weights};
use crate::Error;

/// How a checkpoint's quantized layers are stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scheme {
    kind: Kind,
    /// What most of them are.
    pub(crate) format: DType,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// fp8, compressed-tensors and modelopt; with rows and columns that share a scale, if blocks do.
    Codes {
        block: Option<[usize; 2]>,
    },
    /// With the codes of a word, and what is added to stored zero points.
    Gptq {
        codes: usize,
        zero: u8,
    },
    Awq,
}

/// A layer's name, outputs and inputs.
#[derive(Clone, Copy)]
struct Layer<'a> {
    name: &'a str,
    rows: usize,
    cols: usize,
}

// === impl Scheme ===

impl Scheme {
    /// The scales of a layer; none if it isn't quantized.
    pub(super) fn scales(
        &self,
        weights: &Weights,
        layer: &str,
        (rows, cols): (usize, usize),
    ) -> Result<Option<Scales>, Error> {
        let layer = Layer { name: layer, rows, cols };
        match self.kind {
            _ if !self.has(weights, layer.name) => Ok(None),
            Kind::Codes { block } => layer.scales(weights, block).map(Some),
            Kind::Gptq { codes: 4, zero } => layer.middle_columns(weights, zero).map(Some),
            Kind::Gptq { zero, .. } => layer.columns(weights, |row| row % 8, zero).map(Some),
            Kind::Awq => layer.columns(weights, words::awq_place, 0).map(Some),
        }
    }

    /// A layer's matrix; none if it isn't quantized.
    pub(super) fn matrix(
        &self,
        weights: &Weights,
        layer: &str,
        (rows, cols): (usize, usize),
    ) -> Result<Option<Tensor>, Error> {
        let Some(scales) = self.scales(weights, layer, (rows, cols))? else { return Ok(None) };
        let layer = Layer { name: layer, rows, cols };
        layer.in_order(weights, scales.group)?;
        let (dtype, codes) = match self.kind {
            Kind::Codes { .. } => layer.codes(weights)?,
            Kind::Gptq { codes: 4, .. } => {
                let codes = layer.qweight(weights, [cols / 4, rows])?.transposed(rows);
                (DType::Int8, words::less_half(&codes))
            }
            Kind::Gptq { .. } => (DType::Int4, layer.qweight(weights, [cols / 8, rows])?.transposed(rows)),
            Kind::Awq => (DType::Int4, layer.qweight(weights, [cols, rows / 8])?.awq_rows(rows)),
        };
        let name = format!("{}.weight", layer.name);
        Ok(Some(Tensor::new(name, dtype, rows, cols, codes)?.with_scales(scales)?))
    }

    /// Whether there is such a layer.
    pub(super) fn has(&self, weights: &Weights, layer: &str) -> bool {
        let raw = |what: &str| matches!(weights.entry(&format!("{layer}.{what}")), Some(Entry::Raw(_)));
        match self.kind {
            Kind::Codes { .. } => raw("weight") || raw("weight_packed"),
            Kind::Gptq { .. } | Kind::Awq => raw("qweight"),
        }
    }

    /// Whether such weights are more on a GPU than in the file: it has no kernels for scales of blocks of e4m3.
    pub(super) fn unpacked_on_gpu(&self) -> bool {
        matches!(self.kind, Kind::Codes { block: Some(_) }) && self.format == DType::E4m3
    }
}

// === impl Layer ===

impl Layer<'_> {
    fn tensor(self, what: &str) -> String {
        format!("{}.{what}", self.name)
    }

    fn unsupported(self, weights: &Weights, what: &str, problem: impl Into<String>) -> Error {
        Error::unsupported(&weights.file, format!("tensor {}", self.tensor(what)), problem)
    }

    fn malformed(self, weights: &Weights, what: &str, problem: impl Into<String>) -> Error {
        Error::malformed(&weights.file, format!("tensor {}", self.tensor(what)), problem)
    }

    /// The codes of fp8's and compressed-tensors' layers.
    fn codes(self, weights: &Weights) -> Result<(DType, Bytes), Error> {
        let Self { rows, cols, .. } = self;
        if let Some(codes) = weights.raw(&self.tensor("weight")) {
            let dtype = match codes.dtype.as_str() {
                "F8_E4M3" => DType::E4m3,
                "I8" => DType::Int8,
                other => {
                    let problem =
                        format!("stored as {other}; supported: F8_E4M3, I8, and I32 as weight_packed");
                    return Err(self.unsupported(weights, "weight", problem));
                }
            };
            return Ok((dtype, self.shaped(weights, "weight", codes, [rows, cols], 1)?));
        }
        let what = "weight_packed";
        let raw = weights.raw(&self.tensor(what));
        let codes = raw.ok_or_else(|| self.malformed(weights, what, "is missing"))?;
        if codes.shape == [rows, cols / 4] && cols.is_multiple_of(4) {
            let codes = self.shaped(weights, what, codes, [rows, cols / 4], 4)?;
            return Ok((DType::Int8, words::less_half(&codes)));
        }
        if !cols.is_multiple_of(8) {
            let problem = format!("{cols} inputs are not whole words of 8 codes");
            return Err(self.unsupported(weights, what, problem));
        }
        // Words of the lower end first are what 4-bit rows are anyway.
        Ok((DType::Int4, self.shaped(weights, what, codes, [rows, cols / 8], 4)?))
    }

    /// The bytes of a tensor that must have this shape, of numbers of so many bytes.
    fn shaped(
        self,
        weights: &Weights,
        what: &str,
        raw: &Raw,
        shape: [usize; 2],
        bytes: usize,
    ) -> Result<Bytes, Error> {
        if raw.shape != shape && raw.shape != [shape[0] * shape[1]] {
            let problem = format!("has shape {:?}, expected {shape:?}", raw.shape);
            return Err(self.malformed(weights, what, problem));
        }
        let size = shape[0] * shape[1] * bytes;
        if raw.data.len() != size {
            let problem = format!("{shape:?} take {size} bytes, the file has {}", raw.data.len());
            return Err(self.malformed(weights, what, problem));
        }
        Ok(raw.data.clone())
    }

    /// A tensor of 32-bit words of this shape.
    fn words(self, weights: &Weights, what: &str, shape: [usize; 2]) -> Result<Words, Error> {
        let raw = weights.raw(&self.tensor(what));
        let raw = raw.ok_or_else(|| self.malformed(weights, what, "is missing"))?;
        if raw.dtype != "I32" {
            return Err(self.malformed(weights, what, format!("stored as {}, expected I32", raw.dtype)));
        }
        Ok(Words(self.shaped(weights, what, raw, shape, 4)?))
    }

    fn qweight(self, weights: &Weights, shape: [usize; 2]) -> Result<Words, Error> {
        let Self { rows, cols, .. } = self;
        if !rows.is_multiple_of(8) || !cols.is_multiple_of(8) {
            let problem = format!("{rows} × {cols} codes are not whole words of 8");
            return Err(self.unsupported(weights, "qweight", problem));
        }
        self.words(weights, "qweight", shape)
    }

    /// A plain tensor, if there is one of that name.
    fn plain<'a>(self, weights: &'a Weights, what: &str) -> Result<Option<&'a Tensor>, Error> {
        match weights.entry(&self.tensor(what)) {
            None => Ok(None),
            Some(Entry::Tensor(tensor)) => Ok(Some(tensor)),
            Some(Entry::Raw(raw)) => {
                let problem = format!("stored as {}; supported: F32 F16 BF16", raw.dtype);
                Err(self.unsupported(weights, what, problem))
            }
            Some(Entry::Unusable(problem)) => Err(self.unsupported(weights, what, problem)),
        }
    }

    /// Fails if inputs are in groups in another order than theirs.
    fn in_order(self, weights: &Weights, group: usize) -> Result<(), Error> {
        for what in ["g_idx", "weight_g_idx"] {
            if weights.entry(&self.tensor(what)).is_none() {
                continue;
            }
            let groups = self.words(weights, what, [1, self.cols])?;
            let own = |col: usize| groups.word(col) as usize == col / group;
            // compressed-tensors writes -1 where there is no order.
            if !(0..self.cols).all(own) && !(0..self.cols).all(|col| groups.word(col) == u32::MAX) {
                let problem = "the inputs are reordered (desc_act, actorder); supported: groups in order";
                return Err(self.unsupported(weights, what, problem));
            }
        }
        Ok(())
    }
}
