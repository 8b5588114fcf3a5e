//! Steps that the device is at. The next plan is laid out and started meanwhile where it can be, so that the device has
//! no pause between steps; the draws that it goes on from then never leave the device.
//!
//! ```text
//! step thread  start N ─ start N+1 ─ result of N ─ start N+2 ─ result of N+1 ─
//! device             ├─────── N ───────┼────── N+1 ───────┼────── N+2 ──────
//! ```

use std::{
    sync::mpsc::{Sender, channel},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::WeakSender;
use volley_kernels::{Drawing, Waiter};

use super::{Job, Running, slots::Step};
use crate::Error;

/// Steps under way at most: one, and the next.
pub(super) const MOST: usize = 2;

/// A step under way.
pub(super) struct Flight {
    pub(super) running: Running,
    pub(super) step: Step,
    pub(super) drawing: Drawing,
    pub(super) rows: usize,
    pub(super) sequences: usize,
    /// When it was started.
    pub(super) started: Instant,
    /// How long nothing was under way before.
    pub(super) wait: Duration,
    /// Whether the next one may begin before its end.
    pub(super) is_passable: bool,
}

/// Tells the step thread when a step has landed, so that it can wait for that and for plans at the same time.
pub(super) struct Landings(Sender<(Running, Waiter)>);

// === impl Landings ===

impl Landings {
    pub(super) fn start(jobs: WeakSender<Job>) -> Result<Self, Error> {
        let (waiters, waiting) = channel::<(Running, Waiter)>();
        let wait = move || {
            for (step, waiter) in waiting {
                waiter.wait();
                let Some(jobs) = jobs.upgrade() else { return };
                if jobs.blocking_send(Job::Landed(step)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("volley-landings".to_owned()).spawn(wait);
        thread.map_err(|error| Error::StepThread(format!("could not be told of ends of steps: {error}")))?;
        Ok(Self(waiters))
    }

    /// Has `Job::Landed` sent at the end of that step.
    pub(super) fn watch(&self, step: Running, waiter: Waiter) {
        let _ = self.0.send((step, waiter)); // the thread ends with the jobs
    }
}
