//! From slices: plain int8 and fp8, GPTQ's tensors.

use half::f16;

use super::{PackedFormat, PackedWeights, Packing, invalid};
use crate::Error;

/// GPTQ's tensors of a linear layer (4 bits, inputs in order).
#[derive(Clone, Copy, Debug)]
pub struct GptqTensors<'a> {
    /// `[inputs / 8, outputs]`: eight inputs a word, the first in the lowest bits.
    pub qweight: &'a [u32],
    /// `[groups, outputs / 8]`: eight outputs a word, the first in the lowest bits.
    pub qzeros: &'a [u32],
    /// `[groups, outputs]`
    pub scales: &'a [f16],
    /// `[inputs]`: the group of each. Only the plain order can be packed; empty: that one.
    pub g_idx: &'a [u32],
    /// Added to the stored zero points: 1 in the first version of the format, 0 in the second.
    pub zero_bias: u32,
}

impl PackedWeights {
    /// Packs int8 `[rows, cols]` with a scale for each row, or for each group of a row's inputs
    /// (`[rows, cols / group]`): `weight = scale · code`.
    pub fn from_int8(cols: usize, codes: &[i8], scales: &[f32], group: Option<usize>) -> Result<Self, Error> {
        let rows = whole(codes.len(), cols, "codes")?;
        let Some(group) = group else {
            same("scales", scales.len(), rows)?;
            let codes = |row: usize, out: &mut [u8]| bytes(codes, row, out);
            return Ok(Packing::by_row(PackedFormat::Int8, cols, scales.to_vec(), codes)?.finish());
        };
        let groups = cols.div_ceil(group.max(1));
        same("scales", scales.len(), rows * groups)?;
        let codes = |row: usize, out: &mut [u8]| bytes(codes, row, out);
        let scale = |row: usize, group: usize| (scales[row * groups + group], 0.0);
        Ok(Packing::by_group(PackedFormat::Int8Grouped, (rows, cols), group, codes, scale)?.finish())
    }

    /// Packs e4m3 `[rows, cols]` with a scale for each row (a tensor's one scale, repeated).
    pub fn from_e4m3(cols: usize, codes: &[u8], scales: &[f32]) -> Result<Self, Error> {
        let rows = whole(codes.len(), cols, "codes")?;
        same("scales", scales.len(), rows)?;
        if codes.iter().any(|code| code & 0x7f == 0x7f) {
            return Err(invalid("a weight is no number".into()));
        }
        let codes = |row: usize, out: &mut [u8]| out.copy_from_slice(&codes[row * cols..][..cols]);
        Ok(Packing::by_row(PackedFormat::E4m3, cols, scales.to_vec(), codes)?.finish())
    }

    /// Packs GPTQ's tensors of `rows` outputs and `cols` inputs: `weight = scale · (code − zero)`.
    pub fn from_gptq(rows: usize, cols: usize, group: usize, from: GptqTensors<'_>) -> Result<Self, Error> {
        check_int4(rows, cols, group, from.qweight, from.qzeros, from.scales)?;
        same("g_idx", from.g_idx.len(), if from.g_idx.is_empty() { 0 } else { cols })?;
        if from.g_idx.iter().enumerate().any(|(col, &g)| g as usize != col / group) {
            return Err(invalid("the inputs are reordered (desc_act), which is not supported".into()));
        }
        let codes = |row: usize, out: &mut [u8]| {
            for (col, out) in out.iter_mut().enumerate() {
                *out = nibble(from.qweight[col / 8 * rows + row], col % 8) as u8;
            }
        };
        let scale = |row: usize, group: usize| {
            let zero = nibble(from.qzeros[group * (rows / 8) + row / 8], row % 8) + from.zero_bias;
            scale_and_offset(from.scales[group * rows + row], zero)
        };
        Ok(Packing::by_group(PackedFormat::Int4Grouped, (rows, cols), group, codes, scale)?.finish())
    }
}

fn bytes(codes: &[i8], row: usize, out: &mut [u8]) {
    let codes = &codes[row * out.len()..][..out.len()];
    out.iter_mut().zip(codes).for_each(|(out, &code)| *out = code as u8);
}

fn nibble(word: u32, i: usize) -> u32 {
    word >> (4 * i) & 15
}

fn scale_and_offset(scale: f16, zero: u32) -> (f32, f32) {
    let scale = scale.to_f32();
    (scale, -scale * zero as f32)
}

/// Fails unless a 4-bit layer's tensors have their sizes.
fn check_int4(
    rows: usize,
    cols: usize,
    group: usize,
    qweight: &[u32],
    qzeros: &[u32],
    scales: &[f16],
) -> Result<(), Error> {
    if group == 0 || !cols.is_multiple_of(group) || !rows.is_multiple_of(8) {
        return Err(invalid(format!(
            "{rows} × {cols} in groups of {group}: 8 outputs and whole groups are needed"
        )));
    }
    let groups = cols / group;
    same("qweight", qweight.len(), cols * rows / 8)?;
    same("qzeros", qzeros.len(), groups * rows / 8)?;
    same("scales", scales.len(), groups * rows)
}

fn whole(len: usize, cols: usize, what: &str) -> Result<usize, Error> {
    if cols == 0 || !len.is_multiple_of(cols) {
        return Err(invalid(format!("{len} {what} are not whole rows of {cols}")));
    }
    Ok(len / cols)
}

fn same(what: &str, len: usize, wanted: usize) -> Result<(), Error> {
    if len == wanted { Ok(()) } else { Err(invalid(format!("{what} has {len} elements, not {wanted}"))) }
}
