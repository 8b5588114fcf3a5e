//! Packed weights as bf16, for the products that read no other.

use half::bf16;

use super::{int, require_aligned, require_len, skinny::DeviceWeights};
use crate::{
    Error,
    cuda::{Argument, Device, Launch, Memory, PackedFormat, ViewMut},
};

const OPERATION: &str = "dequantize";
/// A block's warps: a step each.
const WARPS: usize = 4;

/// Writes `[rows, cols]`, each number rounded to bf16.
pub fn dequantize(device: &dyn Device, weights: &DeviceWeights, out: ViewMut<'_, bf16>) -> Result<(), Error> {
    let (rows, cols) = (weights.rows, weights.cols);
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
        grid: [cols.div_ceil(64).div_ceil(WARPS) as u32, rows.div_ceil(16) as u32, 1],
        block: [32 * WARPS as u32, 1, 1],
        shared: 0,
        arguments: &[
            weights.codes.view().into(),
            weights.group_scales.as_ref().map(Memory::view).into(),
            weights.row_scales.view().into(),
            (&out).into(),
            number("rows", rows)?,
            number("cols", cols)?,
            weights.group.max(1).ilog2().into(),
        ],
    };
    // SAFETY: the weights are as long as their shape says, and so is `out`.
    unsafe { device.launch(&launch) }
}
