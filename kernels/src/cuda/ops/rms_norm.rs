//! RMS norm, with the residual added first.

use half::bf16;

use super::{int, require, require_aligned, require_len};
use crate::{
    Error,
    cuda::{Argument, Device, Launch, View, ViewMut},
};

const OPERATION: &str = "rms_norm";
/// Elements of one 16-byte access.
const VECTOR: usize = 8;
const THREADS: usize = 256;

/// `out = x / rms(x) · gain` over rows of `columns`.
pub struct RmsNorm<'a> {
    /// `[rows, columns]`
    pub x: View<'a, bf16>,
    /// `[rows, columns]`: becomes `x + residual`, rounded to bf16, and is what is normalized.
    pub residual: Option<ViewMut<'a, bf16>>,
    /// `[columns]`
    pub gain: View<'a, bf16>,
    /// `[rows, columns]`
    pub out: ViewMut<'a, bf16>,
    /// Rows.
    pub rows: usize,
    /// A multiple of 8, at most 16384.
    pub columns: usize,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// The same of some columns of wider rows, where they stand.
pub struct RmsNormWithin<'a> {
    /// From the first of the columns on, up to the last row's last.
    pub x: ViewMut<'a, bf16>,
    /// Numbers from row to row: a multiple of 8.
    pub stride: usize,
    /// As many as columns.
    pub gain: View<'a, bf16>,
    /// Rows.
    pub rows: usize,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// Launches it.
pub fn rms_norm(device: &dyn Device, op: &RmsNorm<'_>) -> Result<(), Error> {
    let elements = op.rows * op.columns;
    check(op.columns)?;
    require_len(OPERATION, "x", op.x.len(), elements)?;
    require_len(OPERATION, "out", op.out.len(), elements)?;
    require_len(OPERATION, "gain", op.gain.len(), op.columns)?;
    if let Some(residual) = &op.residual {
        require_len(OPERATION, "residual", residual.len(), elements)?;
    }
    if op.rows == 0 {
        return Ok(());
    }
    let arguments = [
        op.x.into(),
        (&op.residual).into(),
        op.gain.into(),
        (&op.out).into(),
        (op.columns as i32).into(),
        (op.columns as i32).into(),
        op.epsilon.into(),
    ];
    launch(device, op.rows, op.columns, &arguments)
}

/// Launches it.
pub fn rms_norm_within(device: &dyn Device, op: &RmsNormWithin<'_>) -> Result<(), Error> {
    let columns = op.gain.len();
    check(columns)?;
    require(OPERATION, op.stride >= columns && op.stride.is_multiple_of(VECTOR), || {
        format!("stride must be a multiple of {VECTOR} from {columns} on, not {}", op.stride)
    })?;
    if op.rows == 0 {
        return Ok(());
    }
    require_len(OPERATION, "x", op.x.len(), (op.rows - 1) * op.stride + columns)?;
    require_aligned(OPERATION, &[("x", op.x.address())])?;
    let arguments = [
        (&op.x).into(),
        None::<View<'_, bf16>>.into(),
        op.gain.into(),
        (&op.x).into(),
        (columns as i32).into(),
        int(OPERATION, "stride", op.stride)?.into(),
        op.epsilon.into(),
    ];
    launch(device, op.rows, columns, &arguments)
}

fn check(columns: usize) -> Result<(), Error> {
    require(OPERATION, columns.is_multiple_of(VECTOR) && (1..=16384).contains(&columns), || {
        format!("columns must be a multiple of {VECTOR} up to 16384, not {columns}")
    })
}

fn launch(device: &dyn Device, rows: usize, columns: usize, arguments: &[Argument]) -> Result<(), Error> {
    let vectors = columns / VECTOR;
    let kernel = match vectors.div_ceil(THREADS) {
        1 => "rms_norm_1",
        2 => "rms_norm_2",
        3..=4 => "rms_norm_4",
        _ => "rms_norm_8",
    };
    let launch = Launch {
        kernel,
        grid: [int(OPERATION, "rows", rows)? as u32, 1, 1],
        block: [vectors.min(THREADS).next_multiple_of(32) as u32, 1, 1],
        shared: 0,
        arguments,
    };
    // SAFETY: the views are as long as the kernel reads and writes, as the callers have checked.
    unsafe { device.launch(&launch) }
}
