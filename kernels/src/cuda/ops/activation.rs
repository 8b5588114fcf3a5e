//! Activations of a feed-forward layer.

use half::bf16;

use super::{int, require, require_aligned, require_len};
use crate::{
    Error,
    cuda::{Device, Launch, View, ViewMut},
};

const OPERATION: &str = "activation";
const THREADS: usize = 256;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `x · σ(x)`.
    Silu,
    /// GELU, approximated by tanh.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// `out = f(x)`, or `out = f(gate) ⊙ up` for rows `[gate | up]`.
pub struct Activate<'a> {
    /// `[rows, columns]`, or `[rows, 2 · columns]` if gated.
    pub x: View<'a, bf16>,
    /// `[rows, columns]`
    pub out: ViewMut<'a, bf16>,
    /// Rows.
    pub rows: usize,
    /// A multiple of 8.
    pub columns: usize,
    /// f.
    pub function: Function,
    /// Whether rows hold a gate and what it gates.
    pub gated: bool,
}

/// Launches it.
pub fn activate(device: &dyn Device, op: &Activate<'_>) -> Result<(), Error> {
    let (rows, columns) = (op.rows, op.columns);
    require(OPERATION, columns > 0 && columns.is_multiple_of(8), || {
        format!("columns must be a multiple of 8, not {columns}")
    })?;
    require_len(OPERATION, "x", op.x.len(), rows * columns * if op.gated { 2 } else { 1 })?;
    require_len(OPERATION, "out", op.out.len(), rows * columns)?;
    require_aligned(OPERATION, &[("x", op.x.address()), ("out", op.out.address())])?;
    if rows == 0 {
        return Ok(());
    }
    let threads = (columns / 8).next_multiple_of(32).min(THREADS);
    let launch = Launch {
        kernel: match (op.function, op.gated) {
            (Function::Silu, true) => "silu_gated",
            (Function::Silu, false) => "silu_plain",
            (Function::GeluTanh, true) => "gelu_tanh_gated",
            (Function::GeluTanh, false) => "gelu_tanh_plain",
            (Function::GeluErf, true) => "gelu_erf_gated",
            (Function::GeluErf, false) => "gelu_erf_plain",
        },
        grid: [int(OPERATION, "rows", rows)? as u32, (columns / 8).div_ceil(threads) as u32, 1],
        block: [threads as u32, 1, 1],
        shared: 0,
        arguments: &[op.x.into(), (&op.out).into(), (int(OPERATION, "columns", columns)? as u32).into()],
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked above.
    unsafe { device.launch(&launch) }
}
