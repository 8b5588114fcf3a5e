//! The scheduler: queues, admission, placement, KV block accounting and continuous batching. It writes every
//! step plan, and never touches text or tensors.
//!
//! ```text
//! routers ══ Serve ══▶ link ──▶ front (Placement) ──▶ runner (Planner) ══ Run ══▶ worker
//!                        ▲                              │      ▲
//!                        └────── one message per step ──┘      └─ workers: claims, connections
//! ```
//!
//! The decisions are pure and stand in [`core`]; the rest of the crate owns sockets and timers.
//!
//! | file | what |
//! | --- | --- |
//! | `server.rs` | [`serve`]: starts the parts, the gRPC service |
//! | `link.rs` | one router's stream: its bounded outbox, its reader |
//! | `submission.rs` | submissions put together from chunks |
//! | `front.rs` | the task around Placement: who is there, what is live |
//! | `runner.rs` | the task around a Planner: one connection to one worker |
//! | `workers.rs` | which workers to claim, and to connect to again |
//! | `telemetry.rs` | metrics and spans |
#![forbid(unsafe_code)]

pub mod core;
mod front;
mod link;
mod runner;
mod server;
pub mod submission;
mod telemetry;
mod workers;

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

pub use self::core::fairness::Weights;
pub use server::serve;

/// The most tokens of a sequence that a step may guess: further ones are rarely right.
pub const MAX_DRAFTS: usize = 8;

/// How a scheduler is set up. [`Config::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Unique for the life of the process.
    pub id: String,
    /// Where routers reach it: `http://host:port` or `inproc://name`.
    pub address: String,
    /// Sequences that may wait per worker, beyond those that find a slot at once. 1024 is minutes of work
    /// for any worker: whoever comes later is better told to try elsewhere.
    pub max_waiting_sequences: usize,
    /// Their tokens. 4 Mi bounds the memory that prompts take to some ten MB per worker.
    pub max_waiting_tokens: usize,
    /// Tenants' weights, by name: one of weight 2 gets twice as much of a busy worker. 1 for those not named.
    pub tenant_weights: Weights,
    /// Steps in flight per worker. With 2, a worker never waits for a round trip; with 1, nothing is ever
    /// computed in vain.
    pub step_depth: usize,
    /// Tokens of a sequence that a step may guess, up to [`MAX_DRAFTS`]; 0: none. How many of them it does is
    /// decided by what they cost and bring.
    pub drafts: usize,
    /// Whether steps guess so many even where that doesn't seem to pay.
    pub always_guess: bool,
    /// Whether sequences that begin alike share what is computed of them.
    pub prefix_cache: bool,
    /// A worker that hasn't answered a step for this long is lost. The first step may page in weights from
    /// a slow disk, hence 60 s.
    pub step_deadline: Duration,
    /// How long sequences may go on with a worker that another scheduler is to have; then they move. 10 s is
    /// more than most streams take, and not much to wait for one's share.
    pub drain: Duration,
    /// Tells whoever holds a clone whether there are workers.
    pub readiness: Readiness,
}

/// How many workers are connected.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<usize>>);

/// Why a scheduler could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener failed.
    #[error("cannot serve routers: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// It could not be registered.
    #[error(transparent)]
    Membership(#[from] volley_membership::Error),
    /// A task of the scheduler ended before its time: a bug.
    #[error("the scheduler's {0} task ended")]
    Stopped(&'static str),
}

// === impl Config ===

impl Config {
    /// Default of `step_deadline`.
    pub const STEP_DEADLINE: Duration = Duration::from_secs(60);

    /// The defaults, which each field explains.
    pub fn new(id: impl Into<String>, address: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            address: address.into(),
            max_waiting_sequences: 1024,
            max_waiting_tokens: 4 << 20,
            tenant_weights: Weights::default(),
            step_depth: 2,
            drafts: MAX_DRAFTS,
            always_guess: false,
            prefix_cache: true,
            step_deadline: Self::STEP_DEADLINE,
            drain: Duration::from_secs(10),
            readiness: Readiness::default(),
        }
    }
}

// === impl Readiness ===

impl Readiness {
    /// Whether there is a worker to run anything on.
    pub fn ready(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// The number of connected workers, kept current.
    pub fn workers(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    fn set(&self, workers: usize) {
        self.0.send_replace(workers);
    }
}
