//! Scales and zero points of a quantized layer, by rows.

use volley_kernels::{Scales, Tensor, cpu::formats::dequantized};

use super::{Layer, Weights, words::Words};
use crate::{Error, format::Entry};

const ONLY_FOUR_BITS: &str = "8-bit codes with zero points; supported: 4-bit ones";

impl Layer<'_> {
    /// The scales of fp8's and compressed-tensors' layers.
    pub(super) fn scales(self, weights: &Weights, block: Option<[usize; 2]>) -> Result<Scales, Error> {
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
            [n, groups] if n == rows && even(cols, groups) => {
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
        let raw = match weights.entry(&self.tensor(what)) {
            None => return Ok(None),
            Some(Entry::Raw(raw)) => raw,
            Some(_) => return Err(self.unsupported(weights, what, ONLY_FOUR_BITS)),
        };
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
            _ => return Err(self.unsupported(weights, what, ONLY_FOUR_BITS)),
        }
        let packed = self.words(weights, what, [rows.div_ceil(8), groups])?;
        let zero = |i: usize| packed.code(i / groups / 8 * groups + i % groups, i / groups % 8);
        Ok(Some((0..rows * groups).map(zero).collect()))
    }

    /// Scales and zero points of GPTQ's and AWQ's layers, which have them by columns: `place` says where in its word an
    /// output is, and `more` is added to zero points.
    pub(super) fn columns(
        self,
        weights: &Weights,
        place: fn(usize) -> usize,
        more: u8,
    ) -> Result<Scales, Error> {
        let (scales, group) = self.column_scales(weights)?;
        let words = self.rows / 8;
        let zeros = self.words(weights, "qzeros", [scales.rows, words])?;
        let zero = |(row, group): (usize, usize)| zeros.code(group * words + row / 8, place(row)) + more;
        Ok(Scales { group, scales: transposed(scales)?, zeros: Some(by_row(scales).map(zero).collect()) })
    }

    /// The same for codes of 8 bits, whose zero points must all be the middle.
    pub(super) fn middle_columns(self, weights: &Weights, more: u8) -> Result<Scales, Error> {
        let (scales, group) = self.column_scales(weights)?;
        let Words(zeros) = self.words(weights, "qzeros", [scales.rows, self.rows / 4])?;
        if zeros.iter().any(|zero| zero.wrapping_add(more) != 0x80) {
            return Err(self.unsupported(weights, "qzeros", ONLY_FOUR_BITS));
        }
        Ok(Scales { group, scales: transposed(scales)?, zeros: None })
    }

    /// The scales, a group's one after another; and inputs of a group.
    fn column_scales(self, weights: &Weights) -> Result<(&Tensor, usize), Error> {
        let Self { rows, cols, .. } = self;
        let Some(scales) = self.plain(weights, "scales")? else {
            return Err(self.malformed(weights, "scales", "is missing"));
        };
        let (groups, n) = (scales.rows, scales.cols);
        if n != rows || !even(cols, groups) || !rows.is_multiple_of(8) {
            let problem =
                format!("has {groups} × {n} scales; expected groups of {cols} inputs × {rows} outputs");
            return Err(self.malformed(weights, "scales", problem));
        }
        Ok((scales, cols / groups))
    }
}

/// Whether so many groups have equally many inputs each, a power of two where there are several. Of any other size it can't be
/// told from their number: the last group may have fewer.
fn even(cols: usize, groups: usize) -> bool {
    groups == 1 || groups > 0 && cols.is_multiple_of(groups) && (cols / groups).is_power_of_two()
}

/// The outputs and groups of scales by columns, in the order of rows.
fn by_row(scales: &Tensor) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (groups, rows) = (scales.rows, scales.cols);
    (0..rows).flat_map(move |row| (0..groups).map(move |group| (row, group)))
}

fn transposed(scales: &Tensor) -> Result<Vec<f32>, Error> {
    let numbers = dequantized(scales)?;
    Ok(by_row(scales).map(|(row, group)| numbers[group * scales.cols + row]).collect())
}
