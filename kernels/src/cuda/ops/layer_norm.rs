//! Layer norm, with the residual added first.

use half::bf16;

use super::{int, require, require_aligned, require_len};
use crate::{
    Error,
    cuda::{Device, Launch, View, ViewMut},
};

const OPERATION: &str = "layer_norm";
const THREADS: usize = 256;

/// `out = (x − mean) / √(variance + ε) · gain + bias` over rows of `columns`.
pub struct LayerNorm<'a> {
    /// `[rows, columns]`
    pub x: View<'a, bf16>,
    /// `[rows, columns]`: becomes `x + residual`, rounded to bf16, and is what is normalized.
    pub residual: Option<ViewMut<'a, bf16>>,
    /// `[columns]`
    pub gain: View<'a, bf16>,
    /// `[columns]`
    pub bias: Option<View<'a, bf16>>,
    /// `[rows, columns]`
    pub out: ViewMut<'a, bf16>,
    /// Rows.
    pub rows: usize,
    /// A multiple of 8, at most 16384.
    pub columns: usize,
    /// Added to the variance.
    pub epsilon: f32,
}

/// Launches it.
pub fn layer_norm(device: &dyn Device, op: &LayerNorm<'_>) -> Result<(), Error> {
    let (elements, columns) = (op.rows * op.columns, op.columns);
    require(OPERATION, columns.is_multiple_of(8) && (1..=16384).contains(&columns), || {
        format!("columns must be a multiple of 8 up to 16384, not {columns}")
    })?;
    require_len(OPERATION, "x", op.x.len(), elements)?;
    require_len(OPERATION, "out", op.out.len(), elements)?;
    require_len(OPERATION, "gain", op.gain.len(), columns)?;
    require_len(OPERATION, "bias", op.bias.map_or(columns, |bias| bias.len()), columns)?;
    require_len(OPERATION, "residual", op.residual.as_ref().map_or(elements, ViewMut::len), elements)?;
    require_aligned(
        OPERATION,
        &[("x", op.x.address()), ("out", op.out.address()), ("gain", op.gain.address())],
    )?;
    let optional = [op.bias.map(|bias| bias.address()), op.residual.as_ref().map(ViewMut::address)];
    optional
        .into_iter()
        .flatten()
        .try_for_each(|at| require_aligned(OPERATION, &[("bias or residual", at)]))?;
    if op.rows == 0 {
        return Ok(());
    }
    let vectors = columns / 8;
    let kernel = match vectors.div_ceil(THREADS) {
        1 => "layer_norm_1",
        2 => "layer_norm_2",
        3..=4 => "layer_norm_4",
        _ => "layer_norm_8",
    };
    let launch = Launch {
        kernel,
        grid: [int(OPERATION, "rows", op.rows)? as u32, 1, 1],
        block: [vectors.min(THREADS).next_multiple_of(32) as u32, 1, 1],
        shared: 0,
        arguments: &[
            op.x.into(),
            (&op.residual).into(),
            op.gain.into(),
            op.bias.into(),
            (&op.out).into(),
            (columns as i32).into(),
            op.epsilon.into(),
        ],
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked above.
    unsafe { device.launch(&launch) }
}
