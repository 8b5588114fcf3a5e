//! Who gets a request: the real policy, and the simple ones that it has to beat.

use volley_scheduler::core::{
    blocks::Change,
    placement::{Action, Facts, Placement},
    sequence::Sequence,
    types::{SequenceKey, WorkerId},
};

/// A way to choose a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The scheduler's own.
    Volley,
    /// Each in turn.
    RoundRobin,
    /// Whoever has the fewest requests.
    LeastLoaded,
}

/// A policy at work on workers 0, 1, 2, ….
#[derive(Debug)]
pub(super) enum Chooser {
    Volley(Box<Placement>),
    RoundRobin { next: usize, workers: usize },
    LeastLoaded { requests: Vec<u32> },
}

// === impl Policy ===

impl Policy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Volley, Self::RoundRobin, Self::LeastLoaded];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Volley => "volley",
            Self::RoundRobin => "round-robin",
            Self::LeastLoaded => "least-loaded",
        }
    }
}

// === impl Chooser ===

impl Chooser {
    pub(super) fn new(policy: Policy, workers: usize, facts: &Facts) -> Self {
        match policy {
            Policy::Volley => {
                let mut placement = Placement::default();
                let mut none = Vec::new(); // nothing waits yet
                (0..workers as u64)
                    .for_each(|n| placement.worker_joined(WorkerId(n), facts.clone(), &mut none));
                Self::Volley(Box::new(placement))
            }
            Policy::RoundRobin => Self::RoundRobin { next: 0, workers },
            Policy::LeastLoaded => Self::LeastLoaded { requests: vec![0; workers] },
        }
    }

    /// Gives a request to a worker.
    pub(super) fn choose(&mut self, sequence: Sequence) -> Option<(usize, Vec<Sequence>)> {
        let worker = match self {
            Self::Volley(placement) => {
                let mut actions = Vec::new();
                placement.submit(vec![sequence], &mut actions);
                return actions.into_iter().find_map(|action| match action {
                    Action::Run { worker, sequences } => Some((worker.0 as usize, sequences)),
                    _ => None,
                });
            }
            Self::RoundRobin { next, workers } => {
                *next = (*next + 1) % *workers;
                *next
            }
            Self::LeastLoaded { requests } => {
                let (worker, requests) = requests.iter_mut().enumerate().min_by_key(|(_, count)| **count)?;
                *requests += 1;
                worker
            }
        };
        Some((worker, vec![sequence]))
    }

    /// What a worker's prefix cache has has changed.
    pub(super) fn cache_changed(&mut self, worker: usize, changes: &[Change]) {
        if let Self::Volley(placement) = self {
            placement.cache_changed(WorkerId(worker as u64), changes);
        }
    }

    /// A request has its first token.
    pub(super) fn begun(&mut self, key: &SequenceKey) {
        if let Self::Volley(placement) = self {
            placement.begun(key);
        }
    }

    /// A request of a worker is over.
    pub(super) fn ended(&mut self, worker: usize, key: &SequenceKey) {
        match self {
            Self::Volley(placement) => placement.ended(key),
            Self::RoundRobin { .. } => {}
            Self::LeastLoaded { requests } => requests[worker] -= 1,
        }
    }
}
