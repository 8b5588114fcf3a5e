//! The scheduler: queues, admission, placement, KV block accounting and continuous batching. It writes every
//! step plan, and never touches text or tensors.
//!
//! ```text
//! routers ══ Serve ══▶ link ──▶ front (Placement) ──▶ worker task (Planner) ══ Run ══▶ worker
//!                        ▲                                  │
//!                        └────── one message per step ──────┘
//! ```
//!
//! The decisions are pure and stand in [`core`]; the rest of the crate owns sockets and timers.
#![forbid(unsafe_code)]

pub mod core;
