//! Writes the steps of one worker: continuous batching.
//!
//! A sequence has tokens that are *known* and tokens that are *scheduled*: they have run, or run in a step
//! that is in flight. A step runs some of the difference, under one token budget; there is no prefill phase
//! and no decode phase. [`plan`](Planner::plan) chooses, in `plan.rs`; this file keeps the state and takes in
//! the results.
//!
//! One step ahead: up to `depth` steps are in flight. A step that reaches the end of what is known draws a
//! token, which the worker keeps; the next step may run that token before anybody here knows it (`ahead`). A
//! sequence that ends in step k may have a row in k+1. It is dropped, and metered as waste. Its slot is free for
//! k+2, its blocks when k+1 is back.
//!
//! A guided sequence may find that nothing was drawn, since its grammar isn't compiled yet. Then the last row
//! didn't count, and every step behind it runs what the one before should have: nobody waits for it.
//!
//! A step may also run guesses (`speculate.rs`). How many were right is known when it is back; until then
//! `scheduled` and `ahead` are the most that there can be, and the sequence stands somewhere before. Blocks are
//! there for the most, and never is a token drawn beyond the last. A result takes back what was wrong: the steps
//! behind it begin where the sequence stands indeed, which the worker knows.
//!
//! When blocks run out, a sequence is preempted: it gives up its blocks and waits again, to be computed anew
//! with what it has generated as part of what is known.
//!
//! | file | what |
//! | --- | --- |
//! | `plan.rs` | the step: who runs how much; whom it costs blocks |
//! | `running.rs` | a sequence in a slot, the steps that run it, and what a result says about it |
//! | `growth.rs`, `recompute.rs` | how full the cache may be; what preemption may cost |
//! | `refuse.rs` | who isn't taken in |
//! | `give_way.rs` | whose place a newcomer gets |
//! | `first_step.rs` | a step for newcomers, where another tenant has most places |
//! | `pace.rs` | how much of a long prompt runs beside streams |
//! | `reuse.rs` | what is computed already isn't computed again |
//! | `speculate.rs` | how many tokens to guess |
//! | `alone.rs` | sequences that may have killed workers |

mod alone;
mod first_step;
mod give_way;
mod growth;
mod pace;
mod plan;
mod recompute;
mod refuse;
mod reuse;
mod running;
mod speculate;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use volley_proto::v1::{self, failure::Reason};

pub use self::recompute::SHARE;
use self::{
    growth::Growth,
    pace::Pace,
    plan::Draft,
    recompute::Account,
    running::{Run, Running, State, Step},
    speculate::Speculation,
};
use super::{
    blocks::{Blocks, Change, Table},
    drain::Drain,
    fairness::{GENERATED_COST, Queue, Weights},
    prefix::BlockMap,
    sequence::{Output, Sequence, Spec, failure},
    types::{Millis, Rank, SequenceKey, SlotId, TokenCount},
};

/// What a worker can hold, and how much may wait for it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sequences that run side by side.
    pub slots: u32,
    /// Rows of a step.
    pub batch_tokens: TokenCount,
    /// Tokens of a KV block.
    pub block_tokens: TokenCount,
    /// KV blocks, by group.
    pub blocks: Vec<u32>,
    /// The model's context window.
    pub context: TokenCount,
    /// Steps in flight: 1 waits for every result, 2 keeps the worker busy meanwhile.
    pub depth: usize,
    /// Tokens of a sequence that a step may guess; 0: none.
    pub drafts: TokenCount,
    /// Whether it guesses so many even where that doesn't seem to pay.
    pub always_guess: bool,
    /// Whether sequences that begin alike share blocks.
    pub prefix_cache: bool,
    /// Sequences that may wait, beyond those that find a slot.
    pub max_waiting: usize,
    /// Their tokens.
    pub max_waiting_tokens: TokenCount,
}

/// One worker's queue, slots and blocks.
#[derive(Debug)]
pub struct Planner {
    limits: Limits,
    blocks: Blocks,
    waiting: Queue,
    drain: Drain,
    running: BTreeMap<Rank, Running>,
    /// Blocks that running sequences will have filled soon, and by whom.
    computing: BlockMap<Rank>,
    ranks: HashMap<SequenceKey, Rank>,
    free_slots: Vec<SlotId>,
    /// Freed since the last plan: the worker doesn't know yet.
    released: Vec<SlotId>,
    in_flight: VecDeque<Step>,
    next_step: u64,
    account: Account,
    growth: Growth,
    pace: Pace,
    speculation: Speculation,
    /// The last step was for newcomers only.
    newcomers_ran: bool,
    totals: Totals,
}

/// Counted since the planner was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sequences that gave up their blocks to others.
    pub preemptions: u64,
    /// Tokens that were guessed, and run.
    pub draft_tokens: u64,
    /// Of these, those that were right.
    pub accepted_tokens: u64,
    /// Rows that were computed for nothing: after an end, or to be computed again. Not wrong guesses.
    pub wasted_tokens: u64,
    /// Rows of sequences that no earlier row had computed.
    pub first_tokens: u64,
    /// Rows that computed again what a preempted sequence had.
    pub recomputed_tokens: u64,
    /// Of these, those that the account didn't allow: nothing else could run.
    pub overdrawn_tokens: u64,
    /// Tokens that needn't be computed, since they were already.
    pub cached_tokens: u64,
    /// Cached blocks that had to give way.
    pub evictions: u64,
}

/// The present state, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences in slots.
    pub running: usize,
    /// Sequences that wait for one.
    pub waiting: usize,
    /// Their tokens.
    pub waiting_tokens: TokenCount,
    /// KV blocks that nobody holds (of the fullest group).
    pub free_blocks: usize,
    /// KV blocks (of the smallest group).
    pub total_blocks: usize,
}

/// The worker answered something that can't be. It is of no use any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the worker answered step {answered}, but step {expected:?} was next")]
pub struct OutOfStep {
    answered: u64,
    expected: Option<u64>,
}

// === impl Planner ===

impl Planner {
    /// For a worker that has just been connected; what its cache holds from before is told by [`Planner::holding`].
    pub fn new(limits: Limits) -> Self {
        let blocks = Blocks::new(limits.block_tokens, &limits.blocks);
        Self {
            account: Account::new(blocks.capacity(blocks.total())),
            blocks,
            waiting: Queue::default(),
            drain: Drain::default(),
            running: BTreeMap::new(),
            computing: BlockMap::default(),
            ranks: HashMap::new(),
            free_slots: (0..limits.slots).rev().map(SlotId).collect(),
            released: Vec::new(),
            growth: Growth::default(),
            pace: Pace::default(),
            speculation: Speculation::new(limits.drafts, limits.always_guess),
            newcomers_ran: false,
            in_flight: VecDeque::new(),
            next_step: 1,
            totals: Totals::default(),
            limits,
        }
    }

    /// Gives tenants their weights, before anything waits.
    pub fn weighing(self, weights: Weights) -> Self {
        Self { waiting: Queue::new(weights), ..self }
    }

    /// It is `now`. To be told before events, so that the planner knows how fast its queue drains.
    pub fn at(&mut self, now: Millis) {
        self.drain.at(now, self.free_slots.is_empty() || !self.waiting.is_empty());
    }

    /// Takes in the sequences of one request, all or none. What ends at once (refused; or a moved one
    /// that had its last token already) is reported in `out`.
    pub fn submit(&mut self, request: Vec<Sequence>, out: &mut Vec<Output>) {
        if let Some(refusal) = self.refuse(&request) {
            out.extend(request.iter().map(|sequence| sequence.fail(refusal.clone())));
            return;
        }
        for sequence in request {
            match sequence.finished(self.limits.context) {
                Some(reason) => out.push(sequence.finish(reason)),
                None => self.wait(sequence),
            }
        }
    }

    /// Ends a sequence without a word. What it holds is free once the steps in flight are back.
    pub fn cancel(&mut self, key: &SequenceKey) {
        let Some(&rank) = self.ranks.get(key) else { return };
        self.end(rank);
    }

    /// Fails the sequences whose deadline has passed.
    pub fn expire(&mut self, now: Millis, out: &mut Vec<Output>) {
        let running = self.running.values().filter(|r| r.state != State::Ended).map(|r| &r.sequence);
        let late = |s: &&Sequence| s.spec.deadline.is_some_and(|deadline| deadline < now);
        let expired: Vec<_> = running.chain(self.waiting.iter()).filter(late).map(Sequence::rank).collect();
        let late = failure(Reason::Deadline, "the request's deadline has passed");
        for rank in expired {
            let waiting = self.waiting.iter().find(|sequence| sequence.rank() == rank);
            let sequence = self.running.get(&rank).map(|r| &r.sequence).or(waiting);
            out.extend(sequence.map(|sequence| sequence.fail(late.clone())));
            self.end(rank);
        }
    }

    /// Takes in the result of the oldest step in flight; what it has to say goes to `out`.
    pub fn complete(&mut self, result: v1::StepResult, out: &mut Vec<Output>) -> Result<(), OutOfStep> {
        let expected = self.in_flight.front().map(|step| step.id);
        let answered = result.step_id;
        if expected != Some(answered) {
            return Err(OutOfStep { answered, expected });
        }
        let Some(step) = self.in_flight.pop_front() else { return Ok(()) };
        let (decodes, rows) = step.rows();
        self.pace.measure(decodes, rows, result.compute_us);
        if rows == 0 {
            self.speculation.measure(result.rows as usize, result.compute_us);
        }
        let mut answers: Vec<_> = (0..self.limits.slots).map(|_| None).collect();
        for answer in result.slots {
            if let Some(place) = answers.get_mut(answer.slot as usize) {
                *place = Some(answer);
            }
        }
        // Who is charged for how many tokens: one entry for sequences of a tenant that stand side by side.
        let mut charges: Vec<(Arc<Spec>, TokenCount)> = Vec::new();
        for run in step.runs {
            let Some(running) = self.running.get_mut(&run.rank) else { continue };
            running.in_flight -= 1;
            let before = running.computed;
            running.computed += run.tokens;
            running.ahead -= usize::from(run.draws) + run.drafts;
            let answer = answers.get_mut(running.slot.0 as usize).and_then(Option::take).unwrap_or_default();
            let drafted = answer.drafted.unwrap_or_default();
            self.totals.draft_tokens += u64::from(drafted.tokens);
            self.totals.accepted_tokens += u64::from(drafted.accepted);
            if running.state == State::Ended {
                self.totals.wasted_tokens += run.tokens as u64 + u64::from(drafted.accepted);
            } else {
                let (guessed, right) = (drafted.tokens as usize, drafted.accepted as usize);
                self.speculation.learn(&mut running.record, guessed, right);
                self.totals.wasted_tokens += u64::from(answer.deferred);
                let output = running.take_in(run, answer, self.limits.context);
                let failed = output.as_ref().is_some_and(|output| output.message.failure.is_some());
                if let Some(output) = output {
                    if output.ends() {
                        running.state = State::Ended;
                    }
                    let (spec, drawn) = (&running.sequence.spec, output.message.tokens.len());
                    match charges.last_mut().filter(|(last, _)| last.pays_as(spec)) {
                        Some((_, tokens)) => *tokens += drawn,
                        None => charges.push((spec.clone(), drawn)),
                    }
                    out.push(output);
                }
                let again = running.computed.min(running.sequence.reached).saturating_sub(before);
                let first = running.computed.saturating_sub(before) - again;
                running.sequence.reaches(running.computed);
                self.account.earn(first);
                self.totals.first_tokens += first as u64;
                self.totals.recomputed_tokens += again as u64;
                if !failed && running.published < self.limits.whole_blocks(running.computed) {
                    self.publish(run.rank);
                }
            }
            self.settle(run.rank);
        }
        for (spec, tokens) in charges {
            self.waiting.charge(&spec, tokens, GENERATED_COST);
        }
        Ok(())
    }

    /// Everything that isn't over, for other workers, in order: this one died. Those that a step in flight
    /// was running were present.
    pub fn lost(mut self) -> Vec<Sequence> {
        let present = |r: &&mut Running| r.in_flight > 0 && r.state != State::Ended;
        let ranks: std::collections::HashSet<_> =
            self.in_flight.iter().flat_map(|step| step.runs.iter().map(|run| run.rank)).collect();
        let alone = ranks.len() == 1;
        for running in self.running.values_mut().filter(present) {
            running.sequence.present(alone, running.scheduled);
        }
        self.let_go()
    }

    /// Everything that isn't over, for other workers, in order: this one goes, or belongs to another scheduler.
    pub fn let_go(self) -> Vec<Sequence> {
        let ran = self.running.into_values().filter(|r| r.state != State::Ended).map(|r| r.sequence);
        let mut all: Vec<_> = ran.chain(self.waiting.into_all()).collect();
        all.sort_by_key(Sequence::rank);
        all.iter_mut().for_each(Sequence::moves);
        all
    }

    /// What waits: another worker may run it earlier.
    pub fn let_waiting_go(&mut self) -> Vec<Sequence> {
        let mut all = self.waiting.take_all();
        for sequence in &mut all {
            self.ranks.remove(&sequence.key);
            sequence.moves();
        }
        all
    }

    /// How busy the worker is.
    pub fn load(&self) -> Load {
        Load {
            running: self.limits.slots as usize - self.free_slots.len(),
            waiting: self.waiting.len(),
            waiting_tokens: self.waiting.tokens(),
            free_blocks: self.blocks.free(),
            total_blocks: self.blocks.total(),
        }
    }

    /// What has been counted.
    pub fn totals(&self) -> Totals {
        Totals { evictions: self.blocks.evictions(), ..self.totals }
    }

    /// How the worker's cache has changed since this was last asked, in order.
    pub fn cache_changes(&mut self) -> Vec<Change> {
        self.blocks.take_changes()
    }

    /// Steps that the worker hasn't answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether there is nothing left to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.in_flight.is_empty()
    }

    fn wait(&mut self, mut sequence: Sequence) {
        sequence.hashes(self.blocks.block_tokens());
        self.ranks.insert(sequence.key, sequence.rank());
        self.waiting.push(sequence);
    }

    fn end(&mut self, rank: Rank) {
        if let Some(running) = self.running.get_mut(&rank) {
            running.state = State::Ended;
            self.settle(rank);
        } else if let Some(sequence) = self.waiting.remove(rank) {
            self.totals.wasted_tokens += sequence.given_up as u64;
            self.ranks.remove(&sequence.key);
        }
    }

    /// Frees what a sequence holds if it has stopped: its slot for the next step that is planned, which is behind
    /// all that run it; its blocks when nothing of it is in flight.
    fn settle(&mut self, rank: Rank) {
        let Some(running) = self.running.get_mut(&rank).filter(|r| r.state != State::Running) else { return };
        // Who gives up its blocks to a step that is being written may have a row in it.
        let at_once = running.state != State::Evicting || running.in_flight == 0;
        if at_once && !std::mem::replace(&mut running.left, true) {
            self.released.extend(running.started.then_some(running.slot));
            self.free_slots.push(running.slot);
        }
        if running.in_flight > 0 {
            return;
        }
        let Some(mut running) = self.running.remove(&rank) else { return };
        self.unclaim(rank, &mut running);
        self.blocks.release(running.table);
        let (state, mut sequence) = (running.state, running.sequence);
        if state == State::Evicting || state == State::Yielding {
            if running.started {
                sequence.given_up = running.computed;
            }
            sequence.hashes(self.blocks.block_tokens());
        }
        match state {
            State::Evicting => self.waiting.put_back(sequence),
            State::Yielding => self.waiting.line_up(sequence),
            State::Running | State::Ended => {
                self.growth.ended();
                self.drain.frees(sequence.prompt_tokens);
                self.ranks.remove(&sequence.key);
            }
        }
    }
}
