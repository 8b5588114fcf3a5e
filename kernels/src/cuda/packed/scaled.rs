//! From codes whose scales lie beside them.

use super::{PackedFormat, Packing};
use crate::{DType, Error, Tensor, cpu::formats};

/// The fewest inputs of a group that kernels have.
const LEAST_GROUP: usize = 32;
/// Inputs of a group where a row has one scale and the format has groups: scales are few, and any number will do.
const USUAL_GROUP: usize = 128;

impl<'a> Packing<'a> {
    /// Packs scaled matrices of equal inputs, stacked by outputs. Codes stay as they are, and scales of 16 bits; what
    /// zero points come to is rounded to f16. None if no kernel reads such: several formats, 8-bit floats with more
    /// than a scale for each row, groups of fewer than 32.
    pub(crate) fn of_scaled(parts: &'a [&'a Tensor]) -> Result<Option<Self>, Error> {
        let (Some(first), Some(group)) = (parts.first(), group(parts)) else { return Ok(None) };
        let (dtype, cols) = (first.dtype, first.cols);
        if parts.iter().any(|part| part.dtype != dtype || part.cols != cols) {
            return Ok(None);
        }
        let by_row = parts.iter().all(|part| one_scale(part));
        let format = match dtype {
            DType::Int8 if by_row => PackedFormat::Int8,
            DType::Int8 => PackedFormat::Int8Grouped,
            DType::Int4 => PackedFormat::Int4Grouped,
            DType::E4m3 if by_row => PackedFormat::E4m3,
            _ => return Ok(None),
        };
        let of = move |row: usize| {
            let mut row = row;
            parts.iter().find_map(|part| match row.checked_sub(part.rows) {
                Some(below) => {
                    row = below;
                    None
                }
                None => Some((*part, row)),
            })
        };
        let codes = move |row: usize, out: &mut [u8]| {
            let Some((part, row)) = of(row) else { return };
            let data = formats::row_data(part, row);
            match dtype {
                DType::Int4 => {
                    let pairs = out.as_chunks_mut().0.iter_mut().zip(data);
                    pairs.for_each(|(pair, code): (&mut [u8; 2], _)| *pair = [code & 15, code >> 4]);
                }
                _ => out.copy_from_slice(data),
            }
        };
        let rows = parts.iter().map(|part| part.rows).sum();
        // By construction, all parts have scales: `group` is of them.
        let scale = |row: usize, number: usize| {
            let found = of(row).and_then(|(part, row)| Some((part.scales.as_ref()?, row)));
            let Some((scales, row)) = found else { return (0.0, 0.0) };
            let (scale, zero) = scales.at(row * scales.groups(cols) + number * group / scales.group);
            (scale, if dtype == DType::Int4 { -scale * f32::from(zero) } else { 0.0 })
        };
        let packed = match format.grouped() {
            true => Self::by_group(format, (rows, cols), group, codes, scale)?,
            false => Self::by_row(format, cols, (0..rows).map(|row| scale(row, 0).0).collect(), codes)?,
        };
        Ok(Some(packed))
    }
}

fn one_scale(part: &Tensor) -> bool {
    part.scales.as_ref().is_some_and(|scales| scales.group >= part.cols)
}

/// Inputs of a group that is part of a group of each matrix. None if some have no scales, or their groups are too small.
fn group(parts: &[&Tensor]) -> Option<usize> {
    let mut group = None;
    for part in parts {
        let own = part.scales.as_ref()?.group;
        if own < part.cols {
            let power = 1 << own.trailing_zeros();
            group = Some(group.map_or(power, |group: usize| group.min(power)));
        }
    }
    Some(group.unwrap_or(USUAL_GROUP)).filter(|&group| group >= LEAST_GROUP)
}
