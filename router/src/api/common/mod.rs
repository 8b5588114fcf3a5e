//! What the APIs do alike. Nothing here knows one of them.
//!
//! ```text
//!  body ─ parse (fields, parameters, later) ─▶ Settings ─ generate ─▶ Deltas ─ reply (logprobs, usage, extras) ─▶ answer
//! ```

pub(crate) mod extras;
pub mod fields;
pub(crate) mod generate;
pub mod hints;
mod later;
pub(crate) mod logprobs;
pub mod parameters;
pub(crate) mod parse;
mod ranking;
pub(crate) mod reply;
pub(crate) mod sampling;
pub(crate) mod usage;
