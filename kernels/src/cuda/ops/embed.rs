//! Embedding gather.

use half::bf16;

use super::{int, require, require_aligned, require_len};
use crate::{
    Error,
    cuda::{Device, Launch, View, ViewMut},
};

const OPERATION: &str = "embed";

/// Added to the number of a draw, in place of a token.
pub const DRAWN: u32 = 1 << 31;

/// `out[row] = scale · table[tokens[row]]`; a token outside the vocabulary gives zeros.
pub struct Embed<'a> {
    /// `[rows]`: tokens, or [`DRAWN`] and the number of a draw.
    pub tokens: View<'a, u32>,
    /// What was drawn, if any of them is.
    pub drawn: Option<View<'a, u32>>,
    /// `[vocabulary, columns]`
    pub table: View<'a, bf16>,
    /// `[rows, columns]`
    pub out: ViewMut<'a, bf16>,
    /// A multiple of 8.
    pub columns: usize,
    /// Multiplies every number (1 for most families).
    pub scale: f32,
}

/// Launches it.
pub fn embed(device: &dyn Device, op: &Embed<'_>) -> Result<(), Error> {
    let (rows, columns) = (op.tokens.len(), op.columns);
    require(OPERATION, columns > 0 && columns.is_multiple_of(8), || {
        format!("columns must be a multiple of 8, not {columns}")
    })?;
    require(OPERATION, op.table.len().is_multiple_of(columns), || {
        format!("the table's {} elements are not whole rows of {columns}", op.table.len())
    })?;
    require_len(OPERATION, "out", op.out.len(), rows * columns)?;
    require_aligned(OPERATION, &[("table", op.table.address()), ("out", op.out.address())])?;
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch {
        kernel: "embed",
        grid: [int(OPERATION, "rows", rows)? as u32, 1, 1],
        block: [(columns / 8).next_multiple_of(32).min(256) as u32, 1, 1],
        shared: 0,
        arguments: &[
            op.tokens.into(),
            op.drawn.into(),
            op.table.into(),
            (&op.out).into(),
            (int(OPERATION, "draws", op.drawn.map_or(0, |drawn| drawn.len()))? as u32).into(),
            (int(OPERATION, "the vocabulary", op.table.len() / columns)? as u32).into(),
            (int(OPERATION, "columns", columns)? as u32).into(),
            op.scale.into(),
        ],
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked above; it checks the tokens itself.
    unsafe { device.launch(&launch) }
}
