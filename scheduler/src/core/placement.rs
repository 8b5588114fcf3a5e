//! Which worker gets a request. One per scheduler.
//!
//! Knows every live sequence and the worker it is on, so that a cancel finds it and a lost worker's
//! sequences find another. Those that find none go back to their router at once: it knows the other
//! schedulers, and is the one place that waits.
//!
//! The choice is where the request costs least: by what is still to be done on a worker (rows of prompts that
//! run first, sequences that it would run beside), and by what of the request its prefix cache doesn't spare it.
//! [`Holders`] knows the caches exactly; [`Sessions`] knows where a session's last request went, whose
//! blocks may not be filled yet; [`Spread`] sees to it that what many requests begin with comes to more workers.

use std::collections::{BTreeMap, BTreeSet};

use volley_proto::v1::{self, failure::Reason};

use super::{
    blocks::Change,
    holders::{Holders, Place},
    sequence::{GUILTY, Output, Sequence, failure},
    sessions::Sessions,
    spread::Spread,
    types::{LinkId, SequenceKey, TokenCount, WorkerId},
};

/// What a row of the request that is to be computed weighs, against one that is before it: whoever comes later
/// waits for it as well, the more the busier the cluster. Simulated mixed traffic near its limit (load 3) had 44 %
/// of its tokens cached and a TTFT of 1,200 ms at p99 with 1, 47 % and 720 ms with 4, 49 % and 500 ms with 16.
const OWN_ROW: TokenCount = 16;
/// What a live sequence weighs, in rows: each of its steps reads its keys and values, and whoever is beside it waits
/// for that. Anything from 16 to 256 gave the same first tokens.
const BESIDE: TokenCount = 128;

/// What a worker is good for.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The model it serves, by content.
    pub model_hash: String,
    /// Equal classes give equal bytes.
    pub numerics_class: String,
    /// Tokens that its KV cache holds.
    pub kv_tokens: TokenCount,
    /// Tokens of a KV block.
    pub block_tokens: TokenCount,
    /// The model's context window.
    pub context: TokenCount,
}

/// All live sequences and where they are.
#[derive(Debug, Default)]
pub struct Placement {
    workers: BTreeMap<WorkerId, Worker>,
    live: BTreeMap<SequenceKey, Live>,
    holders: Holders,
    sessions: Sessions,
    spread: Spread,
    /// Chosen last.
    last: WorkerId,
    moves: u64,
}

#[derive(Debug)]
struct Worker {
    facts: Facts,
    /// Tokens that its sequences may come to hold.
    outstanding: TokenCount,
    /// Rows of prompts that have to run before what comes now.
    to_compute: TokenCount,
    /// Live sequences.
    sequences: usize,
    /// Its number among the holders of blocks.
    place: Place,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    worker: WorkerId,
    tokens: TokenCount,
    /// Rows until it draws its first token here.
    to_compute: TokenCount,
}

/// What a request would cost on a worker, in rows.
#[derive(Clone, Copy)]
struct Offer {
    /// Why not there, if it can be elsewhere: too small for it, other bytes, no room now.
    unfit: (bool, bool, bool),
    before: TokenCount,
    own: TokenCount,
    /// Blocks of it that are cached there.
    found: usize,
    /// Workers behind the one that was chosen last go first of equals.
    again: bool,
    worker: WorkerId,
}

/// How much room a request needs; the same for all workers with one context window.
#[derive(Default)]
struct Sizes {
    context: TokenCount,
    largest: TokenCount,
    all: TokenCount,
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
    /// Ask a worker's planner for what waits there: it may begin earlier elsewhere. It comes back by
    /// [`Placement::returned`].
    Recall {
        /// Whose planner.
        worker: WorkerId,
    },
    /// Tell a router.
    Report(Output),
}

// === impl Placement ===

impl Placement {
    /// A worker is connected. What waits at others of its model is shared out anew.
    pub fn worker_joined(&mut self, id: WorkerId, facts: Facts, out: &mut Vec<Action>) {
        let others = self.workers.iter().filter(|(_, other)| other.facts.model_hash == facts.model_hash);
        let busy = others.filter(|(_, other)| other.sequences > 0);
        out.extend(busy.map(|(&worker, _)| Action::Recall { worker }));
        let place = self.holders.join();
        self.workers.insert(id, Worker { facts, outstanding: 0, to_compute: 0, sequences: 0, place });
    }

    /// What a worker's cache has has changed.
    pub fn cache_changed(&mut self, id: WorkerId, changes: &[Change]) {
        if let Some(worker) = self.workers.get(&id) {
            self.holders.change(worker.place, changes);
        }
    }

    /// A worker is lost, with `sequences` unfinished; more of them may follow.
    pub fn worker_left(&mut self, id: WorkerId, sequences: Vec<Sequence>, out: &mut Vec<Action>) {
        if let Some(worker) = self.workers.remove(&id) {
            self.holders.leave(worker.place);
        }
        let request = |sequence: &Sequence| (sequence.key.link, sequence.key.request);
        // One choice stands for all: another would take one more worker with it.
        let guilty: BTreeSet<_> = sequences.iter().filter(|s| s.deaths >= GUILTY).map(request).collect();
        let mut moving = Vec::new();
        for sequence in sequences {
            if !self.live.contains_key(&sequence.key) {
                continue; // Cancelled on the way.
            }
            if guilty.contains(&request(&sequence)) {
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

    /// What waited at a worker has come back, as it was recalled. Choices stay with those that run there: they share
    /// a prompt, and spread over several workers they could take one more with them.
    pub fn returned(&mut self, worker: WorkerId, sequences: Vec<Sequence>, out: &mut Vec<Action>) {
        let mut waiting = sequences;
        waiting.retain(|s| self.live.get(&s.key).is_some_and(|live| live.worker == worker));
        for request in requests(waiting) {
            if self.has_others(&request, worker) {
                out.push(Action::Run { worker, sequences: request });
                continue;
            }
            for sequence in &request {
                self.forget(&sequence.key);
            }
            self.place(request, out);
        }
    }

    /// A request has arrived: its sequences, one per choice. An older attempt at it is cancelled.
    pub fn submit(&mut self, request: Vec<Sequence>, out: &mut Vec<Action>) {
        let Some(SequenceKey { link, request: number, .. }) = request.first().map(|s| s.key) else { return };
        self.cancel(link, number, None, out);
        self.place(request, out);
    }

    /// A sequence's prompt is computed: from now on it runs a row a step.
    pub fn begun(&mut self, key: &SequenceKey) {
        let Some(live) = self.live.get_mut(key) else { return };
        if let Some(worker) = self.workers.get_mut(&live.worker) {
            worker.to_compute -= std::mem::take(&mut live.to_compute);
        }
    }

    /// A sequence has said its last.
    pub fn ended(&mut self, key: &SequenceKey) {
        self.forget(key);
    }

    /// The router doesn't want a request any more, or one choice of it.
    pub fn cancel(&mut self, link: LinkId, request: u64, choice: Option<u32>, out: &mut Vec<Action>) {
        let all = self.choices(link, request).map(|(&key, _)| key);
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
        let Some(worker) = self.choose(&mut request) else {
            self.hand_back(&request, out);
            return false;
        };
        if let Some(session) = request.first().and_then(|first| first.spec.session) {
            self.sessions.went(session, worker);
        }
        if let Some(chosen) = self.workers.get_mut(&worker) {
            let found = self.holders.found(chosen.place) * chosen.facts.block_tokens;
            // Choices share the prompt: the first one computes it.
            let mut shared = 0;
            for sequence in &mut request {
                sequence.numerics_class.clone_from(&chosen.facts.numerics_class);
                let tokens = sequence.kv_tokens(chosen.facts.context);
                let cached = found.min(sequence.cacheable()).max(shared);
                shared = sequence.prompt_tokens;
                let to_compute = sequence.tokens.len().saturating_sub(cached);
                chosen.outstanding += tokens;
                chosen.to_compute += to_compute;
                chosen.sequences += 1;
                self.live.insert(sequence.key, Live { worker, tokens, to_compute });
            }
        }
        out.push(Action::Run { worker, sequences: request });
        true
    }

    /// Of the workers that serve the model: one that can hold the request at all, whose bytes are equal to
    /// those so far, with room in its KV cache, where the request costs least. Now and then the idlest of those,
    /// to have what many begin with on more of them.
    fn choose(&mut self, request: &mut [Sequence]) -> Option<WorkerId> {
        self.find_cached(request);
        let first = request.first()?;
        let class = request.iter().find(|s| s.generated() > 0).map_or("", |s| s.numerics_class.as_str());
        let (known, cacheable) = (first.tokens.len(), first.cacheable());
        let home = first.spec.session.and_then(|session| self.sessions.last(session));
        let mut sizes = Sizes::default();
        let serving = self.workers.iter().filter(|(_, w)| w.facts.model_hash == first.spec.model_hash);
        let offers = serving.map(|(&id, worker)| {
            let Worker { facts, outstanding, to_compute, sequences, place } = worker;
            let (largest, all) = sizes.of(request, facts.context);
            let other_class = !class.is_empty() && class != facts.numerics_class;
            let full = outstanding + all > facts.kv_tokens;
            let found = self.holders.found(*place);
            let left = known - (found * facts.block_tokens).min(cacheable);
            // Half of it is guessed to be filled there just now, or to be found elsewhere no cheaper.
            let left = if home == Some(id) { left / 2 } else { left };
            Offer {
                unfit: (largest > facts.kv_tokens, other_class, full),
                before: to_compute + about(*sequences) * BESIDE,
                own: left * OWN_ROW,
                found,
                again: id <= self.last,
                worker: id,
            }
        });
        let (best, idlest) = offers.fold((None, None), |(best, idlest), offer| {
            (least(best, offer, |o| o.before + o.own), least(idlest, offer, |o| o.before))
        });
        let (best, idlest) = (best?, idlest?);
        let beginning = first.chain.as_ref().and_then(|chain| chain.hashes().get(best.found.checked_sub(1)?));
        let copies = best.found > idlest.found
            && beginning.is_some_and(|beginning| {
                self.spread.copies(*beginning, best.before - idlest.before, idlest.own - best.own)
            });
        self.last = if copies { idlest } else { best }.worker;
        Some(self.last)
    }

    /// Whether a worker has more choices of a request than these.
    fn has_others(&self, choices: &[Sequence], worker: WorkerId) -> bool {
        let Some(SequenceKey { link, request, .. }) = choices.first().map(|s| s.key) else { return false };
        let there = self.choices(link, request).filter(|(_, live)| live.worker == worker);
        there.count() > choices.len()
    }

    /// The live choices of a request. One attempt at most has any: the next cancels it.
    fn choices(&self, link: LinkId, request: u64) -> impl Iterator<Item = (&SequenceKey, &Live)> {
        let key = |attempt, choice| SequenceKey { link, request, attempt, choice };
        self.live.range(key(0, 0)..=key(u32::MAX, u32::MAX))
    }

    /// Looks up who has how much of a request's prompt, which its choices share.
    fn find_cached(&mut self, request: &mut [Sequence]) {
        let Some((first, others)) = request.split_first_mut() else { return };
        let mut serving = self.workers.values().filter(|w| w.facts.model_hash == first.spec.model_hash);
        let Some(block_tokens) = serving.next().map(|worker| worker.facts.block_tokens.max(1)) else {
            return;
        };
        let blocks = first.cacheable() / block_tokens;
        let hashes = first.hashes(block_tokens);
        self.holders.find(hashes.get(..blocks).unwrap_or_default());
        let prompt = first.chain.as_ref().map(|chain| chain.beginning(first.prompt_tokens));
        for other in others.iter_mut().filter(|other| other.chain.is_none()) {
            other.chain.clone_from(&prompt);
        }
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
            worker.to_compute -= live.to_compute;
            worker.sequences -= 1;
        }
        Some(live)
    }
}

// === impl Sizes ===

impl Sizes {
    /// Tokens of KV cache that the largest sequence of a request may come to hold, and all of them together.
    fn of(&mut self, request: &[Sequence], context: TokenCount) -> (TokenCount, TokenCount) {
        if self.context != context {
            let sizes = request.iter().map(|sequence| sequence.kv_tokens(context));
            *self = Self { context, largest: sizes.clone().max().unwrap_or(0), all: sizes.sum() };
        }
        (self.largest, self.all)
    }
}

/// So many, to about an eighth. Exactly, the one where a sequence has just ended would always be the least busy,
/// and it has just planned a step: a newcomer would wait longer there than with any other.
fn about(sequences: usize) -> usize {
    let unit = (sequences.next_power_of_two() / 8).max(1);
    sequences / unit * unit
}

/// The offer of the fittest workers that costs less; of equals, the earlier in turn.
fn least(one: Option<Offer>, other: Offer, cost: impl Fn(&Offer) -> TokenCount) -> Option<Offer> {
    let key = |offer: &Offer| (offer.unfit, cost(offer), offer.again);
    Some(one.filter(|one| key(one) <= key(&other)).unwrap_or(other))
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
