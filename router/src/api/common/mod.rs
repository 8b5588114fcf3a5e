//! What the APIs do alike. Nothing here knows one of them.
//!
//! ```text
//!  body ─ parse (fields, parameters, format, reasoning, later) ─▶ Settings ─ generate ─▶ Deltas
//!  answer ◀─ reply (logprobs, usage) ◀─ listen: reasoning, content, calls ◀────────────────────┘
//! ```

pub mod fields;
pub mod format;
pub(crate) mod generate;
mod later;
pub(crate) mod listen;
pub(crate) mod logprobs;
pub mod parameters;
pub(crate) mod parse;
pub mod reasoning;
pub(crate) mod reply;
pub(crate) mod usage;
