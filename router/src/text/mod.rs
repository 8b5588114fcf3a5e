//! Text ↔ tokens, pure: no sockets, no clock, no other task's state.
//!
//! ```text
//!  messages ─ template ─▶ text ─ tokenizer ─▶ tokens        one model's: model
//!  text ◀─ stop ◀─ assembler ◀─ vocabulary ◀─ tokens
//!   └▶ output: reasoning, content, tool calls
//! ```

pub mod assembler;
pub mod model;
pub mod output;
pub mod stop;
pub mod template;
pub mod tokenizer;
