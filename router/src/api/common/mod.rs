//! What the APIs do alike. Nothing here knows one of them.
//!
//! ```text
//!  body ─ parse (fields, parameters, sampling, format, reasoning, hints, later) ─▶ Settings ─ generate ─▶ Deltas
//!  answer ◀─ reply (logprobs, usage, extras) ◀─ listen: reasoning, content, calls ◀────────────────────────┘
//! ```

pub(crate) mod conversation;
pub(crate) mod extras;
pub mod fields;
pub mod format;
pub(crate) mod generate;
pub mod hints;
pub(crate) mod later;
pub(crate) mod listen;
pub(crate) mod logprobs;
pub mod messages;
pub mod parameters;
pub(crate) mod parse;
pub(crate) mod prompts;
mod ranking;
pub mod reasoning;
pub(crate) mod reply;
pub(crate) mod resume;
pub(crate) mod sampling;
pub(crate) mod speculation;
mod timeout;
pub mod tools;
pub(crate) mod turn;
pub(crate) mod usage;
