//! Runs under load: a thousand workers, a million requests, nothing goes wrong.
//!
//! ```text
//!  Traffic ─▶ Chooser ─▶ Planner (real, one per worker) ─▶ Worker: Cost ─▶ Figures
//!             real Placement, or in turn, or the fewest requests
//! ```
//!
//! A worker begins a step when the one before is done and the plan has arrived; a plan and a result are 150 µs on
//! their way. What routers and clients take is left out.

mod cluster;
mod figures;
mod flood;
mod policy;
mod traffic;

use volley_scheduler::core::planner::Limits;

pub use self::{
    figures::{Figures, Histogram, Steady},
    flood::{Seen, flood},
    policy::Policy,
    traffic::{Kind, Traffic},
};
use crate::worker::{Cost, Rows, Violation};

/// What runs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Workers, all alike.
    pub workers: usize,
    /// Requests until the end.
    pub requests: usize,
    /// Of what kinds.
    pub kinds: Vec<Kind>,
    /// What workers hold.
    pub limits: Limits,
    /// What their steps cost.
    pub cost: Cost,
    /// What arrives, as a part of what the workers could do without a prefix cache.
    pub load: f64,
    /// Of the traffic.
    pub seed: u64,
}

/// A device that workers may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Llama 3.1 8B on an H100.
    H100,
    /// SmolLM2 135M on 16 cores.
    Cpu,
}

// === impl Setup ===

impl Setup {
    /// Workers with such a device, and default bounds.
    pub fn new(device: Device, workers: usize, requests: usize) -> Self {
        // H100: 80 GB less weights, activations and a reserve leave 52 GB of KV cache; the CPU's has 4 GB.
        let (cost, kv, slots, batch_tokens) = match device {
            Device::H100 => (Cost::h100(), 52e9, 256, 2048),
            Device::Cpu => (Cost::cpu(), 4e9, 64, 512),
        };
        let block_tokens = 32;
        let limits = Limits {
            slots,
            batch_tokens,
            block_tokens,
            blocks: vec![(kv / cost.kv_bytes) as u32 / block_tokens as u32],
            context: 16 << 10,
            prefix_cache: true,
            depth: 2,
            drafts: 0,
            always_guess: false,
            max_waiting: 1024,
            max_waiting_tokens: 4 << 20,
        };
        Self { workers, requests, kinds: Kind::ALL.to_vec(), limits, cost, load: 0.7, seed: 0 }
    }

    /// Requests a second that are `load` of what the workers could do, with 64 sequences side by side each.
    pub fn rate(&self) -> f64 {
        let seconds = |kind: &Kind| {
            let (prompt, answer) = kind.mean();
            let rows = |rows: f64, read: f64| Rows { rows, read, attended: read };
            let prefill = self.cost.row_flop * prompt / (self.cost.flops * 0.7);
            prefill + answer * self.cost.step(rows(64.0, 64.0 * prompt)).as_secs_f64() / 64.0
        };
        let mean = self.kinds.iter().map(seconds).sum::<f64>() / self.kinds.len() as f64;
        self.load * self.workers as f64 / mean
    }
}

/// One run.
pub fn run(setup: &Setup, policy: Policy) -> Result<Figures, Violation> {
    cluster::Cluster::new(setup, policy).run()
}
