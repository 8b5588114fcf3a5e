//! Drawing tokens from logits.

use super::{int, require, require_aligned, require_len};
use crate::{
    Error,
    cuda::{Device, Element, Launch, View, ViewMut},
};

const OPERATION: &str = "sample";
/// As in `select.cuh`.
const THREADS: u32 = 512;
const CHUNK: usize = 512;
const SELECTION_BYTES: usize = 4 * (3 * 1024 + 2 * 2048 + 2 * 128) + 8 * (32 + 1) + 4 * 9 + 4;

/// How one row is drawn from: what the CPU's `Draw` says, but for what `logits_edit` and the masks do. Typical-p and
/// mirostat are the CPU's alone: they rank tokens by surprise, and mirostat's bound follows each draw. A row that asks
/// for one of them is read back and drawn from there.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct DrawRow {
    /// 0: the largest logit, the lowest token among equals.
    pub temperature: f32,
    /// Smallest set of tokens whose probabilities reach this; 1: off.
    pub top_p: f32,
    /// Only tokens at least this probable relative to the best; 0: off.
    pub min_p: f32,
    /// Only so many best tokens; 0: off.
    pub top_k: u32,
    /// Keys the generator, with `choice` and `position`.
    pub seed: u64,
    /// The choice's index.
    pub choice: u32,
    /// Absolute position of the token that is drawn.
    pub position: u32,
    /// A token to take without drawing; negative: none.
    pub given: i32,
    /// Its row of the masks; negative: every token is allowed.
    pub mask: i32,
}

// SAFETY: any bits are numbers; 16 + 8 + 16 bytes without a gap.
unsafe impl Element for DrawRow {}

/// One token for each row of logits.
pub struct Sample<'a> {
    /// `[rows, stride]`; NaN: can't be drawn.
    pub logits: View<'a, f32>,
    /// `[rows]`
    pub draws: View<'a, DrawRow>,
    /// `[masks, ⌈tokens / 32⌉]`: bit `t % 32` of word `t / 32` allows token `t`.
    pub masks: Option<View<'a, u32>>,
    /// `[rows]`
    pub out: ViewMut<'a, u32>,
    /// Size of the vocabulary.
    pub tokens: usize,
    /// Logits from row to row: a multiple of 4.
    pub stride: usize,
}

/// Launches it.
pub fn sample(device: &dyn Device, op: &Sample<'_>) -> Result<(), Error> {
    let (rows, words) = (op.draws.len(), op.tokens.div_ceil(32));
    check_logits(OPERATION, op.logits, rows, op.tokens, op.stride)?;
    require_len(OPERATION, "out", op.out.len(), rows)?;
    let mask_words = op.masks.map_or(0, |masks| masks.len());
    require(OPERATION, mask_words.is_multiple_of(words), || {
        format!("{mask_words} words are not whole masks of {words}")
    })?;
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch {
        kernel: "sample",
        grid: [int(OPERATION, "rows", rows)? as u32, 1, 1],
        block: [THREADS, 1, 1],
        shared: selection_bytes(op.tokens),
        arguments: &[
            op.logits.into(),
            op.masks.into(),
            op.draws.into(),
            (&op.out).into(),
            (op.tokens as u32).into(),
            (op.stride as u32).into(),
            ((mask_words / words) as u32).into(),
        ],
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked above; it checks the masks' numbers.
    unsafe { device.launch(&launch) }
}

/// Shared memory to choose among so many tokens: `Selection` and a sum per chunk.
pub(super) fn selection_bytes(tokens: usize) -> usize {
    SELECTION_BYTES + tokens.div_ceil(CHUNK) * 8
}

/// Rows of logits must be whole, and start at 16-byte boundaries.
pub(super) fn check_logits(
    operation: &'static str,
    logits: View<'_, f32>,
    rows: usize,
    tokens: usize,
    stride: usize,
) -> Result<(), Error> {
    require(operation, (1..=1 << 22).contains(&tokens), || format!("a vocabulary of {tokens} tokens"))?;
    require(operation, stride >= tokens && stride.is_multiple_of(4), || {
        format!("the stride must be a multiple of 4 from {tokens} on, not {stride}")
    })?;
    int(operation, "the stride", stride)?;
    require_aligned(operation, &[("logits", logits.address())])?;
    require_len(operation, "logits", logits.len(), rows * stride)
}
