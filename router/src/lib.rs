//! The router: OpenAI's HTTP API in front, the scheduler's gRPC link behind.
//!
//! ```text
//!  HTTP ─▶ server ─▶ api/{chat,completions,models} ─▶ Generation ─▶ engine ─▶ link ══▶ scheduler
//!  SSE  ◀─ sse    ◀─ api                           ◀─ Delta      ◀─ assembler (text threads) ◀══
//! ```
//!
//! Owns HTTP, validation, templates, tokens ↔ text, stop strings and usage. Never holds weights, never knows
//! KV blocks. Each API under `api/` is a translation to and from [`generation`]; none knows another.

pub mod api;
mod artefacts;
pub mod assembler;
pub mod auth;
mod body;
mod cluster;
pub mod config;
mod dispatch;
mod edge;
pub mod engine;
pub mod error;
mod exchange;
#[cfg(test)]
mod fixture;
pub mod generation;
mod json;
mod link;
pub mod model;
mod path;
mod request;
pub mod server;
mod sse;
mod stall;
pub mod stop;
mod supervise;
pub mod template;
#[cfg(test)]
mod tests;
pub mod tokenizer;
pub mod vocabulary;
