//! Linear layers of quantized Hugging Face checkpoints.
//!
//! ```text
//! config.rs   what `quantization_config` says
//! words.rs    codes in words of 32 bits, as rows
//! ```
//!
//! What a layer has tells how it is stored, so that those left as they were (`ignore`, `modules_to_not_convert`) need no
//! list: a plain `weight` is taken as it is. Scales of activations and of caches are not looked at: activations stay
//! as they are, whatever a checkpoint was made for.
//!
//! ```text
//! fp8, compressed-tensors   weight [out, in]             e4m3 or int8
//!                           weight_packed [out, in/8]    4 bits (in/4: 8 bits), the lowest first, and half of their range added
//!                           weight_scale(_inv)           one; one a row; one a group [out, groups]; one a block
//!                           weight_zero_point            packed along the outputs, where codes have one
//! gptq                      qweight [in/8, out]   qzeros [groups, out/8]   scales [groups, out]   g_idx [in]
//! awq                       qweight [in, out/8]   qzeros [groups, out/8]   scales [groups, out]
//! ```

mod config;
#[cfg(test)]
mod tests;
mod words;

use bytes::Bytes;
use volley_kernels::{DType, Scales, Tensor, cpu::formats::dequantized};

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
    /// fp8 and compressed-tensors; with rows and columns that share a scale, if blocks do.
    Codes {
        block: Option<[usize; 2]>,
    },
    /// With what is added to stored zero points.
    Gptq {
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
            Kind::Gptq { zero } => layer.columns(weights, |row| row % 8, zero).map(Some),
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

    /// The scales of fp8's and compressed-tensors' layers.
    fn scales(self, weights: &Weights, block: Option<[usize; 2]>) -> Result<Scales, Error> {
        let Self { rows, cols, .. } = self;
        let mut found = None;
        for what in ["weight_scale", "weight_scale_inv"] {
            found = found.or(self.plain(weights, what)?.map(|tensor| (what, tensor)));
        }
        let Some((what, tensor)) = found else {
            return Err(self.malformed(weights, "weight_scale", "is missing"));
        };
        let (numbers, shape) = (dequantized(tensor)?, [tensor.rows, tensor.cols]);
        let blocks = block.map(|[high, wide]| [rows.div_ceil(high), cols.div_ceil(wide)]);
        let scales = match shape {
            shape if blocks == Some(shape) => {
                let [high, wide] = block.unwrap_or([1, 1]);
                let row = |row: usize| &numbers[row / high * shape[1]..][..shape[1]];
                let scales = (0..rows).flat_map(row).copied().collect();
                Scales { group: wide.min(cols), scales, zeros: None }
            }
            [1, 1] => Scales::by_row(cols, vec![numbers[0]; rows]),
            [1, n] | [n, 1] if n == rows => Scales::by_row(cols, numbers),
            [n, groups] if n == rows && groups > 0 && cols.is_multiple_of(groups) => {
                Scales { group: cols / groups, scales: numbers, zeros: None }
            }
            [high, wide] => {
                let blocks =
                    blocks.map_or_else(String::new, |[high, wide]| format!(", or {high} × {wide} of blocks"));
                let problem = format!(
                    "has {high} × {wide} scales; expected one, {rows}, groups of {rows} rows of {cols}{blocks}"
                );
                return Err(self.malformed(weights, what, problem));
            }
        };
        let zeros = self.zeros(weights, scales.groups(cols))?;
        Ok(Scales { zeros, ..scales })
    }

    /// The zero points of compressed-tensors' layers.
    fn zeros(self, weights: &Weights, groups: usize) -> Result<Option<Vec<u8>>, Error> {
        let (what, rows) = ("weight_zero_point", self.rows);
        let Some(raw) = weights.raw(&self.tensor(what)) else { return Ok(None) };
        let four_bits = weights
            .raw(&self.tensor("weight_packed"))
            .is_some_and(|codes| codes.shape.last() == Some(&(self.cols / 8)));
        // Once they weren't packed.
        let bytes = match raw.dtype.as_str() {
            "I8" => Some(self.shaped(weights, what, raw, [rows, groups], 1)?),
            _ => None,
        };
        match bytes {
            Some(zeros) if four_bits => {
                return Ok(Some(zeros.iter().map(|zero| zero.wrapping_add(8) & 15).collect()));
            }
            Some(zeros) if zeros.iter().all(|&zero| zero == 0) => return Ok(None),
            None if four_bits => (),
            _ => {
                let problem = "8-bit codes with zero points; supported: 4-bit ones";
                return Err(self.unsupported(weights, what, problem));
            }
        }
        let packed = self.words(weights, what, [rows.div_ceil(8), groups])?;
        let zero = |i: usize| packed.code(i / groups / 8 * groups + i % groups, i / groups % 8);
        Ok(Some((0..rows * groups).map(zero).collect()))
    }

    /// The scales and zero points of GPTQ's and AWQ's layers, which have them by columns: `place` says where in its
    /// word an output is, and `more` is added to zero points.
    fn columns(self, weights: &Weights, place: fn(usize) -> usize, more: u8) -> Result<Scales, Error> {
        let Self { rows, cols, .. } = self;
        let Some(tensor) = self.plain(weights, "scales")? else {
            return Err(self.malformed(weights, "scales", "is missing"));
        };
        let (numbers, groups, n) = (dequantized(tensor)?, tensor.rows, tensor.cols);
        if n != rows || groups == 0 || !cols.is_multiple_of(groups) || !rows.is_multiple_of(8) {
            let problem =
                format!("has {groups} × {n} scales; expected groups of {cols} inputs × {rows} outputs");
            return Err(self.malformed(weights, "scales", problem));
        }
        let zeros = self.words(weights, "qzeros", [groups, rows / 8])?;
        let by_row = || (0..rows).flat_map(|row| (0..groups).map(move |group| (row, group)));
        let zero = |(row, group)| zeros.code(group * (rows / 8) + row / 8, place(row)) + more;
        Ok(Scales {
            group: cols / groups,
            scales: by_row().map(|(row, group)| numbers[group * rows + row]).collect(),
            zeros: Some(by_row().map(zero).collect()),
        })
    }

    /// Fails if inputs are in groups in another order than theirs.
    fn in_order(self, weights: &Weights, group: usize) -> Result<(), Error> {
        for what in ["g_idx", "weight_g_idx"] {
            if weights.raw(&self.tensor(what)).is_none() {
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
