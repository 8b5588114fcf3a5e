//! Packed weights as bf16, for the products that read no other.

use std::ops::Range;

use half::bf16;

use super::{int, require, require_aligned, require_len, skinny::DeviceWeights};
use crate::{
    Error,
    cuda::{Argument, Device, Launch, PackedFormat, ViewMut},
};

const OPERATION: &str = "dequantize";
/// A block's warps: a step each.
const WARPS: usize = 4;

/// Rows of weights that are packed together.
const TILE_ROWS: usize = 16;

/// Writes `[rows, cols]` of some rows, each number rounded to bf16. The first is a multiple of 16.
pub fn dequantize(
    device: &dyn Device,
    weights: &DeviceWeights,
    some: Range<usize>,
    out: ViewMut<'_, bf16>,
) -> Result<(), Error> {
    let (rows, cols) = (some.len(), weights.cols);
    require(OPERATION, some.end <= weights.rows && some.start.is_multiple_of(TILE_ROWS), || {
        format!("rows {some:?} of {}: the first must be a multiple of {TILE_ROWS}", weights.rows)
    })?;
    if rows == 0 {
        return Ok(());
    }
    // What comes before the first of them.
    let (tiles, before) = (weights.rows.div_ceil(TILE_ROWS), some.start / TILE_ROWS);
    let codes = weights.codes.slice(weights.codes.len() / tiles * before..weights.codes.len());
    let group_scales = weights.group_scales.as_ref();
    let group_scales = group_scales.map(|scales| scales.slice(scales.len() / tiles * before..scales.len()));
    require_len(OPERATION, "out", out.len(), rows * cols)?;
    require_aligned(OPERATION, &[("out", out.address())])?;
    let number = |what, size| int(OPERATION, what, size).map(|size| Argument::from(size as u32));
    let launch = Launch {
        kernel: match weights.format {
            PackedFormat::Int8 => "dequantize_w8",
            PackedFormat::Int8Grouped => "dequantize_w8_grouped",
            PackedFormat::Int4Grouped => "dequantize_w4",
            PackedFormat::E4m3 => "dequantize_fp8",
        },
        grid: [cols.div_ceil(64).div_ceil(WARPS) as u32, rows.div_ceil(TILE_ROWS) as u32, 1],
        block: [32 * WARPS as u32, 1, 1],
        shared: 0,
        arguments: &[
            codes.into(),
            group_scales.into(),
            weights.row_scales.slice(some).into(),
            (&out).into(),
            number("rows", rows)?,
            number("cols", cols)?,
            weights.group.max(1).ilog2().into(),
        ],
    };
    // SAFETY: the weights are as long as their shape says, and so is `out`.
    unsafe { device.launch(&launch) }
}
