//! The router: OpenAI's HTTP API in front, the scheduler's gRPC link behind.
//!
//! ```text
//!  http                api                  text                     engine
//!  server ─ edge ─▶ chat, completions ─▶ template, tokenizer ─▶ Generation ─▶ link ══▶ scheduler
//!  sse           ◀─ reply             ◀─ Deltas ◀─ assembler  (text threads)       ◀══
//! ```
//!
//! Owns HTTP, validation, templates, tokens ↔ text, stop strings and usage. Never holds weights, never knows
//! KV blocks. Each API under `api/` is a translation to and from [`generation`]; none knows another.

pub mod api;
pub mod config;
pub mod engine;
#[cfg(test)]
mod fixture;
pub mod generation;
mod http;
mod telemetry;
#[cfg(test)]
mod tests;
mod text;

pub use self::{
    http::{auth, error, limits, server},
    text::{assembler, model, output, stop, template, tokenizer},
};
