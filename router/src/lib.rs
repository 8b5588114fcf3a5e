//! The router: OpenAI's HTTP API in front, the scheduler's gRPC link behind.
//!
//! ```text
//!  HTTP ─▶ server ─▶ api/{chat,completions,models} ─▶ Generation ─▶ engine ─▶ link ══▶ scheduler
//!  SSE  ◀─ sse    ◀─ api                           ◀─ Delta      ◀─ assembler (text threads) ◀══
//! ```
//!
//! Owns HTTP, validation, templates, tokens ↔ text, stop strings and usage. Never holds weights, never knows
//! KV blocks. Each API under `api/` is a translation to and from [`generation`]; none knows another.

mod artefacts;
pub mod assembler;
mod cluster;
mod dispatch;
pub mod engine;
#[cfg(test)]
mod fixture;
pub mod generation;
mod link;
pub mod model;
mod request;
pub mod stop;
mod supervise;
pub mod template;
pub mod tokenizer;
pub mod vocabulary;
