//! Which worker gets a request. One per scheduler.
//!
//! Knows every live sequence and the worker it is on, so that a cancel finds it and a lost worker's
//! sequences find another. Those that find none go back to their router at once: it knows the other
//! schedulers, and is the one place that waits.
//!
//! The choice today is the fewest outstanding tokens. A prefix index and affinity by session will weigh in
//! where [`Placement::choose`] compares: everything they need to know passes through here.

use std::collections::BTreeMap;

use volley_proto::v1::{self, failure::Reason};

use super::{
    sequence::{GUILTY, Output, Sequence, failure},
    types::{LinkId, SequenceKey, TokenCount, WorkerId},
};

/// What a worker is good for.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The model it serves, by content.
    pub model_hash: String,
    /// Equal classes give equal bytes.
    pub numerics_class: String,
    /// Tokens that its KV cache holds.
    pub kv_tokens: TokenCount,
    /// The model's context window.
    pub context: TokenCount,
}

/// All live sequences and where they are.
#[derive(Debug, Default)]
pub struct Placement {
    workers: BTreeMap<WorkerId, Worker>,
    live: BTreeMap<SequenceKey, Live>,
    moves: u64,
}

#[derive(Debug)]
struct Worker {
    facts: Facts,
    /// Tokens that its sequences may come to hold.
    outstanding: TokenCount,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    worker: WorkerId,
    tokens: TokenCount,
}

/// What the shell is to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Hand one request's sequences to a worker's planner.
    Run {
        /// Whose planner.
        worker: WorkerId,
        /// In order of arrival.
        sequences: Vec<Sequence>,
    },
    /// Take sequences from a worker's planner.
    Cancel {
        /// Whose planner.
        worker: WorkerId,
        /// Which.
        keys: Vec<SequenceKey>,
    },
    /// Tell a router.
    Report(Output),
}

// === impl Placement ===

impl Placement {
    /// A worker is connected.
    pub fn worker_joined(&mut self, id: WorkerId, facts: Facts) {
        self.workers.insert(id, Worker { facts, outstanding: 0 });
    }

    /// A worker is lost, with `sequences` unfinished; more of them may follow.
    pub fn worker_left(&mut self, id: WorkerId, sequences: Vec<Sequence>, out: &mut Vec<Action>) {
        self.workers.remove(&id);
        let mut moving = Vec::new();
        for sequence in sequences {
            if !self.live.contains_key(&sequence.key) {
                continue; // Cancelled on the way.
            }
            if sequence.deaths >= GUILTY {
                self.live.remove(&sequence.key);
                let message = "workers die of this request: the last one ran nothing else";
                out.push(Action::Report(sequence.fail(failure(Reason::GaveUp, message))));
                continue;
            }
            moving.push(sequence);
        }
        for request in requests(moving) {
            let ran = request.iter().filter(|sequence| sequence.deaths > 0).count();
            if self.place(request, out) {
                self.moves += ran as u64;
            }
        }
    }

    /// A request has arrived: its sequences, one per choice. An older attempt at it is cancelled.
    pub fn submit(&mut self, request: Vec<Sequence>, out: &mut Vec<Action>) {
        let Some(SequenceKey { link, request: number, .. }) = request.first().map(|s| s.key) else { return };
        self.cancel(link, number, None, out);
        self.place(request, out);
    }

    /// A sequence has said its last.
    pub fn ended(&mut self, key: &SequenceKey) {
        self.forget(key);
    }

    /// The router doesn't want a request any more, or one choice of it.
    pub fn cancel(&mut self, link: LinkId, request: u64, choice: Option<u32>, out: &mut Vec<Action>) {
        let key = |attempt, choice| SequenceKey { link, request, attempt, choice };
        let all = self.live.range(key(0, 0)..=key(u32::MAX, u32::MAX)).map(|(&key, _)| key);
        let keys = all.filter(|key| choice.is_none_or(|choice| choice == key.choice)).collect();
        self.cancel_all(keys, out);
    }

    /// A router is gone: all of its sequences are cancelled.
    pub fn link_lost(&mut self, link: LinkId, out: &mut Vec<Action>) {
        let first = SequenceKey { link, request: 0, attempt: 0, choice: 0 };
        let keys = self.live.range(first..).map(|(&key, _)| key).take_while(|key| key.link == link).collect();
        self.cancel_all(keys, out);
    }

    /// Live sequences, wherever they are.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Sequences that lost a worker that was running them, and were given another here.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// Gives one request's sequences a worker, or else back to the router. Whether there was one.
    fn place(&mut self, mut request: Vec<Sequence>, out: &mut Vec<Action>) -> bool {
        let Some(worker) = self.choose(&request) else {
            self.hand_back(&request, out);
            return false;
        };
        if let Some(chosen) = self.workers.get_mut(&worker) {
            for sequence in &mut request {
                sequence.numerics_class.clone_from(&chosen.facts.numerics_class);
                let tokens = sequence.kv_tokens(chosen.facts.context);
                chosen.outstanding += tokens;
                self.live.insert(sequence.key, Live { worker, tokens });
            }
        }
        out.push(Action::Run { worker, sequences: request });
        true
    }

    /// Of the workers that serve the model: one that can hold the request at all, whose bytes are equal to
    /// those so far, with room in its KV cache, with the fewest outstanding tokens.
    fn choose(&self, request: &[Sequence]) -> Option<WorkerId> {
        let first = request.first()?;
        let serving = self.workers.iter().filter(|(_, w)| w.facts.model_hash == first.spec.model_hash);
        let class = request.iter().find(|s| s.generated() > 0).map_or("", |s| s.numerics_class.as_str());
        serving
            .min_by_key(|(id, worker)| {
                let sizes = request.iter().map(|s| s.kv_tokens(worker.facts.context));
                let too_large = sizes.clone().max().is_some_and(|tokens| tokens > worker.facts.kv_tokens);
                let other_class = !class.is_empty() && class != worker.facts.numerics_class;
                let full = worker.outstanding + sizes.sum::<TokenCount>() > worker.facts.kv_tokens;
                (too_large, other_class, full, worker.outstanding, **id)
            })
            .map(|(&id, _)| id)
    }

    /// The request as a whole moves: the deaths of any of its sequences are the request's.
    fn hand_back(&mut self, request: &[Sequence], out: &mut Vec<Action>) {
        let deaths = request.iter().map(|sequence| sequence.deaths).max().unwrap_or(0);
        for sequence in request {
            self.live.remove(&sequence.key);
            let no_worker = failure(Reason::NoWorker, "no worker serves this model");
            out.push(Action::Report(sequence.fail(v1::Failure { deaths, ..no_worker })));
        }
    }

    fn cancel_all(&mut self, keys: Vec<SequenceKey>, out: &mut Vec<Action>) {
        let mut by_worker: BTreeMap<WorkerId, Vec<SequenceKey>> = BTreeMap::new();
        for key in keys {
            if let Some(live) = self.forget(&key) {
                by_worker.entry(live.worker).or_default().push(key);
            }
        }
        out.extend(by_worker.into_iter().map(|(worker, keys)| Action::Cancel { worker, keys }));
    }

    fn forget(&mut self, key: &SequenceKey) -> Option<Live> {
        let live = self.live.remove(key)?;
        if let Some(worker) = self.workers.get_mut(&live.worker) {
            worker.outstanding -= live.tokens;
        }
        Some(live)
    }
}

/// Groups neighbours of one request: its choices share a prompt, and should share a worker.
fn requests(sequences: Vec<Sequence>) -> Vec<Vec<Sequence>> {
    let mut groups: Vec<Vec<Sequence>> = Vec::new();
    for sequence in sequences {
        let same = |s: &Sequence| (s.key.link, s.key.request) == (sequence.key.link, sequence.key.request);
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(same) => group.push(sequence),
            _ => groups.push(vec![sequence]),
        }
    }
    groups
}

#[cfg(test)]
mod tests;
