//! Which worker gets a request. One per scheduler.
//!
//! Knows every live sequence and the worker it is on, so that a cancel finds it and a lost worker's
//! sequences find another. Those that have no worker wait here, for a bounded time.
//!
//! The choice today is the fewest outstanding tokens. A prefix index and affinity by session will weigh in
//! where [`Placement::choose`] compares: everything they need to know passes through here.

use std::{collections::BTreeMap, time::Duration};

use volley_proto::v1::failure::Reason;

use super::{
    sequence::{Output, Sequence, failure},
    types::{LinkId, Millis, SequenceKey, TokenCount, WorkerId},
};

/// A sequence that was running at this many worker deaths isn't given another worker: it may be the reason.
const MAX_DEATHS: u32 = 3;

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

/// How long and how much may wait for a worker.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// After this a sequence without a worker fails.
    pub wait: Duration,
    /// Sequences without a worker, at most.
    pub sequences: usize,
}

/// All live sequences and where they are.
#[derive(Debug)]
pub struct Placement {
    patience: Patience,
    workers: BTreeMap<WorkerId, Worker>,
    live: BTreeMap<SequenceKey, Live>,
    /// In order of arrival, each with the time when it gives up.
    homeless: Vec<(Millis, Sequence)>,
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
    worker: Option<WorkerId>,
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
    /// No workers yet.
    pub fn new(patience: Patience) -> Self {
        let (workers, live) = (BTreeMap::new(), BTreeMap::new());
        Self { patience, workers, live, homeless: Vec::new(), moves: 0 }
    }

    /// A worker is connected. Those that wait for its model go to it.
    pub fn worker_joined(&mut self, now: Millis, id: WorkerId, facts: Facts, out: &mut Vec<Action>) {
        self.workers.insert(id, Worker { facts, outstanding: 0 });
        let homeless = std::mem::take(&mut self.homeless);
        for (patience, request) in requests(homeless) {
            self.place(now, Some(patience), request, out);
        }
    }

    /// A worker is lost, with `sequences` unfinished; more of them may follow.
    pub fn worker_left(
        &mut self,
        now: Millis,
        id: WorkerId,
        sequences: Vec<Sequence>,
        out: &mut Vec<Action>,
    ) {
        self.workers.remove(&id);
        let mut moving = Vec::new();
        for sequence in sequences {
            if !self.live.contains_key(&sequence.key) {
                continue; // Cancelled on the way.
            }
            if sequence.deaths >= MAX_DEATHS {
                self.live.remove(&sequence.key);
                let message = format!("{} workers died while they ran this request", sequence.deaths);
                out.push(Action::Report(sequence.fail(failure(Reason::GaveUp, message))));
                continue;
            }
            self.moves += u64::from(sequence.deaths > 0);
            moving.push((Millis::default(), sequence));
        }
        for (_, request) in requests(moving) {
            self.place(now, None, request, out);
        }
    }

    /// A request has arrived: its sequences, one per choice. An older attempt at it is cancelled.
    pub fn submit(&mut self, now: Millis, request: Vec<Sequence>, out: &mut Vec<Action>) {
        let Some(SequenceKey { link, request: number, .. }) = request.first().map(|s| s.key) else { return };
        self.cancel(link, number, None, out);
        for sequence in &request {
            self.live.insert(sequence.key, Live { worker: None, tokens: 0 });
        }
        self.place(now, None, request, out);
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

    /// Fails those that have waited for a worker for too long.
    pub fn expire(&mut self, now: Millis, out: &mut Vec<Action>) {
        let (late, waiting) = std::mem::take(&mut self.homeless)
            .into_iter()
            .partition(|(patience, s)| *patience < now || s.spec.deadline.is_some_and(|d| d < now));
        self.homeless = waiting;
        for (_, sequence) in late {
            self.live.remove(&sequence.key);
            let no_worker = failure(Reason::NoWorker, "no worker serves this model");
            out.push(Action::Report(sequence.fail(no_worker)));
        }
    }

    /// Sequences without a worker.
    pub fn homeless(&self) -> impl Iterator<Item = &Sequence> {
        self.homeless.iter().map(|(_, sequence)| sequence)
    }

    /// Live sequences, wherever they are.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Sequences that lost a worker that was running them, and were given another or wait for one.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// Gives live sequences of one request a worker, or lets them wait until `patience`.
    fn place(
        &mut self,
        now: Millis,
        patience: Option<Millis>,
        mut request: Vec<Sequence>,
        out: &mut Vec<Action>,
    ) {
        let Some(worker) = self.choose(&request) else {
            return self.wait(patience.unwrap_or(now.after(self.patience.wait)), request, out);
        };
        if let Some(chosen) = self.workers.get_mut(&worker) {
            for sequence in &mut request {
                sequence.numerics_class.clone_from(&chosen.facts.numerics_class);
                let tokens = sequence.kv_tokens(chosen.facts.context);
                chosen.outstanding += tokens;
                self.live.insert(sequence.key, Live { worker: Some(worker), tokens });
            }
        }
        out.push(Action::Run { worker, sequences: request });
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

    fn wait(&mut self, patience: Millis, request: Vec<Sequence>, out: &mut Vec<Action>) {
        let full = self.homeless.len() + request.len() > self.patience.sequences;
        for sequence in request {
            if full && !sequence.moved {
                self.live.remove(&sequence.key);
                let refusal = failure(Reason::NoWorker, "no worker serves this model, and many wait for one");
                out.push(Action::Report(sequence.fail(refusal)));
            } else {
                self.live.insert(sequence.key, Live { worker: None, tokens: 0 });
                self.homeless.push((patience, sequence));
            }
        }
    }

    fn cancel_all(&mut self, keys: Vec<SequenceKey>, out: &mut Vec<Action>) {
        let mut by_worker: BTreeMap<WorkerId, Vec<SequenceKey>> = BTreeMap::new();
        for key in keys {
            match self.forget(&key).and_then(|live| live.worker) {
                Some(worker) => by_worker.entry(worker).or_default().push(key),
                None => self.homeless.retain(|(_, sequence)| sequence.key != key),
            }
        }
        out.extend(by_worker.into_iter().map(|(worker, keys)| Action::Cancel { worker, keys }));
    }

    fn forget(&mut self, key: &SequenceKey) -> Option<Live> {
        let live = self.live.remove(key)?;
        if let Some(worker) = live.worker.and_then(|id| self.workers.get_mut(&id)) {
            worker.outstanding -= live.tokens;
        }
        Some(live)
    }
}

/// Groups neighbours of one request: its choices share a prompt, and should share a worker.
fn requests(sequences: Vec<(Millis, Sequence)>) -> Vec<(Millis, Vec<Sequence>)> {
    let mut groups: Vec<(Millis, Vec<Sequence>)> = Vec::new();
    for (patience, sequence) in sequences {
        let same = |s: &Sequence| (s.key.link, s.key.request) == (sequence.key.link, sequence.key.request);
        match groups.last_mut() {
            Some((_, group)) if group.last().is_some_and(same) => group.push(sequence),
            _ => groups.push((patience, vec![sequence])),
        }
    }
    groups
}

#[cfg(test)]
mod tests;
