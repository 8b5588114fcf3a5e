//! Penalties, bias and bans, a soft cap, and log-probabilities.

use super::{
    int, require, require_aligned, require_len,
    sample::{check_logits, selection_bytes},
};
use crate::{
    Error,
    cuda::{Device, Element, Launch, View, ViewMut},
};

const EDIT: &str = "logits_edit";
const RESTORE: &str = "logits_restore";
const CAP: &str = "logits_cap";
const LOGPROBS: &str = "logprobs";
const THREADS: usize = 128;
/// Most alternatives of an entry.
pub const MAX_ALTERNATIVES: usize = 128;

/// What changes one logit.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Edit {
    /// Row of logits.
    pub row: u32,
    /// Which token of it.
    pub token: u32,
    /// How often it was generated (below 2³⁰), and [`HISTORY`](Self::HISTORY), [`BANNED`](Self::BANNED).
    pub history: u32,
    /// Added after the penalties.
    pub bias: f32,
}

/// What a row takes off tokens of its history.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct PenaltyRow {
    /// For each time that it was generated.
    pub frequency: f32,
    /// Once if it was generated.
    pub presence: f32,
    /// Divides positive logits, multiplies others; 1: off.
    pub repetition: f32,
    /// Keeps rows at 16 bytes.
    pub unused: f32,
}

/// An entry of log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Asked {
    /// Row of logits.
    pub row: u32,
    /// How many best tokens.
    pub alternatives: u32,
}

/// Changes logits in place; [`logits_restore`] takes it back.
pub struct EditLogits<'a> {
    /// `[rows, stride]`
    pub logits: ViewMut<'a, f32>,
    /// No token twice in a row; one that isn't there is passed over.
    pub edits: View<'a, Edit>,
    /// `[rows]`
    pub penalties: View<'a, PenaltyRow>,
    /// As many as edits: becomes what the logits were.
    pub raw: ViewMut<'a, f32>,
    /// Size of the vocabulary.
    pub tokens: usize,
    /// Logits from row to row: a multiple of 4.
    pub stride: usize,
}

/// Puts back what [`logits_edit`] replaced.
pub struct RestoreLogits<'a> {
    /// `[rows, stride]`
    pub logits: ViewMut<'a, f32>,
    /// Those of the edit.
    pub edits: View<'a, Edit>,
    /// As the edit left it.
    pub raw: View<'a, f32>,
    /// Size of the vocabulary.
    pub tokens: usize,
    /// Logits from row to row: a multiple of 4.
    pub stride: usize,
}

/// Natural log-probabilities of the raw logits.
pub struct Logprobs<'a> {
    /// `[rows, stride]`
    pub logits: View<'a, f32>,
    /// `[n]`
    pub asked: View<'a, Asked>,
    /// `[rows]`: the token of each row.
    pub drawn: View<'a, u32>,
    /// `[n]`: of that token.
    pub out: ViewMut<'a, f32>,
    /// `[n, width]`: the best tokens first, equal ones by token; `u32::MAX` where there are no more.
    pub top_tokens: ViewMut<'a, u32>,
    /// `[n, width]`
    pub top: ViewMut<'a, f32>,
    /// Most alternatives of any entry: at most [`MAX_ALTERNATIVES`].
    pub width: usize,
    /// Size of the vocabulary.
    pub tokens: usize,
    /// Logits from row to row: a multiple of 4.
    pub stride: usize,
}

// === impl Edit ===

impl Edit {
    /// The token is in the history, so penalties apply.
    pub const HISTORY: u32 = 1 << 30;
    /// The token can't be drawn.
    pub const BANNED: u32 = 1 << 31;
}

// SAFETY: four numbers of 4 bytes.
unsafe impl Element for Edit {}
// SAFETY: four numbers of 4 bytes.
unsafe impl Element for PenaltyRow {}
// SAFETY: two numbers of 4 bytes.
unsafe impl Element for Asked {}

/// Launches the edit.
pub fn logits_edit(device: &dyn Device, op: &EditLogits<'_>) -> Result<(), Error> {
    let (rows, n) = (op.penalties.len(), op.edits.len());
    check_logits(EDIT, op.logits.view(), rows, op.tokens, op.stride)?;
    require_len(EDIT, "raw", op.raw.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let launch = Launch {
        kernel: "logits_edit",
        grid: [int(EDIT, "edits", n)?.unsigned_abs().div_ceil(THREADS as u32), 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        arguments: &[
            (&op.logits).into(),
            op.edits.into(),
            op.penalties.into(),
            (&op.raw).into(),
            (rows as u32).into(),
            (op.tokens as u32).into(),
            (op.stride as u32).into(),
            (n as u32).into(),
        ],
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked above; it checks rows and tokens.
    unsafe { device.launch(&launch) }
}

/// Launches the way back.
pub fn logits_restore(device: &dyn Device, op: &RestoreLogits<'_>) -> Result<(), Error> {
    let (rows, n) = (op.logits.len() / op.stride.max(1), op.edits.len());
    check_logits(RESTORE, op.logits.view(), rows, op.tokens, op.stride)?;
    require_len(RESTORE, "raw", op.raw.len(), n)?;
    if n == 0 {
        return Ok(());
    }
    let launch = Launch {
        kernel: "logits_restore",
        grid: [int(RESTORE, "edits", n)?.unsigned_abs().div_ceil(THREADS as u32), 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        arguments: &[
            (&op.logits).into(),
            op.edits.into(),
            op.raw.into(),
            (rows as u32).into(),
            (op.tokens as u32).into(),
            (op.stride as u32).into(),
            (n as u32).into(),
        ],
    };
    // SAFETY: as for the edit.
    unsafe { device.launch(&launch) }
}

/// `logit = cap · tanh(logit / cap)` of a multiple of 4 logits.
pub fn logits_cap(device: &dyn Device, logits: ViewMut<'_, f32>, cap: f32) -> Result<(), Error> {
    let n = logits.len() / 4;
    require(CAP, logits.len().is_multiple_of(4), || {
        format!("{} logits: expected whole fours", logits.len())
    })?;
    require(CAP, cap.is_finite() && cap > 0.0, || format!("a cap of {cap}"))?;
    require_aligned(CAP, &[("logits", logits.address())])?;
    if n == 0 {
        return Ok(());
    }
    let launch = Launch {
        kernel: "logits_cap",
        grid: [int(CAP, "logits", n)?.unsigned_abs().div_ceil(THREADS as u32), 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        arguments: &[(&logits).into(), (n as u64).into(), cap.into()],
    };
    // SAFETY: so many logits are there.
    unsafe { device.launch(&launch) }
}

/// Launches it.
pub fn logprobs(device: &dyn Device, op: &Logprobs<'_>) -> Result<(), Error> {
    let (rows, n) = (op.drawn.len(), op.asked.len());
    check_logits(LOGPROBS, op.logits, rows, op.tokens, op.stride)?;
    require(LOGPROBS, op.width <= MAX_ALTERNATIVES, || {
        format!("{} alternatives are more than {MAX_ALTERNATIVES}", op.width)
    })?;
    require_len(LOGPROBS, "out", op.out.len(), n)?;
    require_len(LOGPROBS, "top_tokens", op.top_tokens.len(), n * op.width)?;
    require_len(LOGPROBS, "top", op.top.len(), n * op.width)?;
    if n == 0 {
        return Ok(());
    }
    let launch = Launch {
        kernel: "logprobs",
        grid: [int(LOGPROBS, "entries", n)? as u32, 1, 1],
        block: [512, 1, 1],
        shared: selection_bytes(op.tokens),
        arguments: &[
            op.logits.into(),
            op.asked.into(),
            op.drawn.into(),
            (&op.out).into(),
            (&op.top_tokens).into(),
            (&op.top).into(),
            (rows as u32).into(),
            (op.tokens as u32).into(),
            (op.stride as u32).into(),
            (op.width as u32).into(),
        ],
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked above; it checks rows and tokens.
    unsafe { device.launch(&launch) }
}
