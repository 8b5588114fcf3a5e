//! What runs next. In order: sequences that decode, prompts that have begun, sequences that wait; each by
//! rank. When blocks run out, somebody is preempted, but never the first in rank: it always goes on, ends,
//! and makes another the first. So every sequence ends.

use volley_proto::v1::{self, Kind};

use super::{Planner, Run, Running, Sequence, State, Step, speculate::Record};
use crate::core::{
    blocks::Table,
    fairness::PROMPT_COST,
    inventory,
    types::{BlockId, Rank, SlotId, TokenCount},
};

/// While sequences decode, prompts get at most this part of a step's rows. A worker sizes its steps for its
/// speed, so a quarter of a full step bounds how much longer a decode waits for its next token; the rest
/// of the prompt follows in the next steps.
pub(super) const PROMPT_SHARE_BESIDE_DECODES: TokenCount = 4;

/// The step being written.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) plan: v1::StepPlan,
    runs: Vec<Run>,
    pub(super) rows: TokenCount,
    /// Blocks that sequences ahead in rank are short of: not for those behind them.
    owed: usize,
    /// Whether somebody has given up its blocks to this step.
    pub(super) preempted: bool,
}

/// Rows that prompts may have in the step being written.
struct Left {
    all: TokenCount,
    /// Of these, for long ones.
    long: TokenCount,
}

// === impl Planner ===

impl Planner {
    /// The next step, if one can start now: there is something to run, and fewer than `depth` steps are in
    /// flight. A worker that would go idle gets one more, without rows, if it still has slots to release:
    /// their memory and their spans would wait for the next request otherwise.
    pub fn plan(&mut self) -> Option<v1::StepPlan> {
        if self.in_flight.len() >= self.limits.depth {
            return None;
        }
        self.reuse_more();
        let mut draft = Draft::default();
        if let Some(suspect) = self.suspect() {
            if self.others_in_flight(suspect) {
                return None;
            }
            self.run_alone(suspect, &mut draft);
            if draft.runs.is_empty() && self.in_flight.iter().any(|step| !step.runs.is_empty()) {
                return None; // it still runs
            }
        }
        if draft.runs.is_empty() {
            self.run_together(&mut draft);
        }
        let releases = self.in_flight.is_empty() && !self.released.is_empty();
        (releases || !draft.runs.is_empty()).then(|| self.send(draft))
    }

    /// Everybody who may run beside others.
    fn run_together(&mut self, draft: &mut Draft) {
        if self.run_newcomers(draft) {
            return;
        }
        self.give_way();
        let (budget, context) = (self.limits.batch_tokens, self.limits.context);
        let (decodes, prompts): (Vec<_>, Vec<_>) = self
            .running
            .iter()
            .filter(|(_, running)| running.runs() && !running.sequence.suspected())
            .map(|(&rank, running)| (rank, running.decodes(context)))
            .partition(|&(_, decodes)| decodes);
        let decodes: Vec<_> = decodes.into_iter().map(|(rank, _)| rank).collect();
        for (nth, (&rank, drafts)) in decodes.iter().zip(self.drafts(&decodes)).enumerate() {
            // A row for each comes before guesses for some.
            let spare = (budget - draft.rows).saturating_sub(decodes.len() - nth);
            self.run(rank, budget - draft.rows, drafts.min(spare), draft);
        }
        let beside = draft.rows > 0;
        let share = if beside { (budget / PROMPT_SHARE_BESIDE_DECODES).max(1) } else { budget };
        let mut left = Left { all: share.min(budget - draft.rows), long: share };
        left.long = if beside { self.pace.rows(left.all) } else { share };
        let long_share = left.long;
        // A prompt of several steps leaves half of each to those behind it, if there is anyone.
        let mut parts = Vec::new();
        for (rank, _) in prompts {
            let Some(running) = self.running.get(&rank) else { continue };
            let long = self.is_long(running);
            let most = if long { left.all.div_ceil(2) } else { left.all };
            let rows = left.take(running.pending(context).min(most), long);
            parts.push((rank, rows, running.pending(context) - rows, long));
        }
        while left.all > 0 && draft.owed == 0 && !self.waiting.first().is_some_and(Sequence::suspected) {
            let Some(rank) = self.admit() else { break };
            let long = self.running.get(&rank).is_some_and(|running| self.is_long(running));
            let (before, most) = (draft.rows, if long { left.all.min(left.long) } else { left.all });
            self.run(rank, most, 0, draft);
            left.take(draft.rows - before, long);
        }
        for (rank, rows, rest, long) in parts {
            let more = left.take(rest, long);
            self.run(rank, rows + more, 0, draft);
        }
        if beside {
            self.pace.took(long_share - left.long);
        }
    }

    /// Whether a sequence takes more than a step of its own to get to its next token.
    fn is_long(&self, Running { sequence, scheduled, .. }: &Running) -> bool {
        sequence.tokens.len() - sequence.cached.unwrap_or(*scheduled) > self.limits.batch_tokens
    }

    /// How many tokens each of the sequences that decode may guess.
    fn drafts(&mut self, decodes: &[Rank]) -> Vec<TokenCount> {
        let batch = self.limits.batch_tokens;
        // Prompts have their part of the step.
        let room = batch.saturating_sub(decodes.len()).min(batch - batch / PROMPT_SHARE_BESIDE_DECODES);
        // Both are in the order of ranks.
        let mut next = decodes.iter().peekable();
        let running = self.running.iter_mut().filter(|(rank, _)| next.next_if_eq(rank).is_some());
        let records: Vec<_> =
            running.map(|(_, r)| r.sequence.spec.guessable().then_some(&mut r.record)).collect();
        self.speculation.choose(records.into_iter(), room)
    }

    /// Runs up to `rows` tokens of a sequence, and as many guesses of `drafts` if they reach the end of what is
    /// known, as far as there are blocks for them.
    pub(super) fn run(&mut self, rank: Rank, rows: TokenCount, drafts: TokenCount, draft: &mut Draft) {
        let Some(running) = self.running.get(&rank).filter(|r| r.runs()) else { return };
        if rows.min(running.pending(self.limits.context)) == 0 {
            return;
        }
        let (new, held) = (!running.started, self.blocks.capacity(running.table.len()));
        if held == running.scheduled && !self.make_room(rank, draft) {
            return;
        }
        let fork = if new { self.fork(rank, draft) } else { None };
        let Some(running) = self.running.get_mut(&rank) else { return };
        running.skip(fork.as_ref().map_or(0, |fork| fork.tokens));
        let spare = self.blocks.free().saturating_sub(draft.owed);
        let rows = rows.min(running.pending(self.limits.context));
        let room = held + self.blocks.capacity(spare) - running.scheduled;
        let rows = rows.min(room);
        let context = self.limits.context;
        let draws = running.sequence.samples(context) && running.scheduled + rows == running.expected();
        // What is drawn after the last guess may be the sequence's last token.
        let left = running.sequence.limit(context).saturating_sub(running.expected() + 1);
        let drafts = if draws { drafts.min(room - rows).min(left) } else { 0 };
        let before = running.table.len();
        let missing = self.blocks.needed(running.scheduled + rows + drafts).saturating_sub(before);
        self.blocks.grow(&mut running.table, missing);
        draft.append(running.slot, &running.table, if new { 0 } else { before });
        if let Some(fork) = fork {
            draft.copy(&fork.from, &running.table, before);
        }
        let cached = running.scheduled;
        running.scheduled += rows + drafts;
        running.in_flight += 1;
        running.ahead += usize::from(draws) + drafts;
        draft.rows += rows + drafts;
        draft.runs.push(Run { rank, tokens: rows, draws, drafts });
        let (tokens, drafts) = (rows as u32, drafts as u32);
        draft.plan.run.push(v1::SlotRun { slot: running.slot.0, tokens, drafts });
        if new {
            self.start(rank, cached, draft);
        }
    }

    /// Sees to it that a block can be had for `rank`, by preemption if need be. False: not in this step.
    fn make_room(&mut self, rank: Rank, draft: &mut Draft) -> bool {
        let stopping = |r: &&Running| r.state != State::Running;
        loop {
            if self.blocks.free() > draft.owed {
                return true;
            }
            let coming: usize = self.running.values().filter(stopping).map(|r| r.table.len()).sum();
            if self.blocks.free() + coming > draft.owed {
                draft.owed += 1;
                return false;
            }
            match self.victim() {
                Some(victim) => {
                    self.preempt(victim);
                    draft.preempted = true;
                }
                None => return false,
            }
            if !self.running.get(&rank).is_some_and(|r| r.state == State::Running) {
                return false;
            }
        }
    }

    /// Who gives up its blocks: of the lowest priority the one that is cheapest to recompute, the
    /// youngest of equals. Never the first in rank.
    fn victim(&self) -> Option<Rank> {
        let running = self.running.iter().filter(|(_, r)| r.state == State::Running).skip(1);
        running
            .map(|(&rank, r)| (rank.priority(), r.scheduled, std::cmp::Reverse(rank.arrival()), rank))
            .min()
            .map(|(.., rank)| rank)
    }

    fn preempt(&mut self, rank: Rank) {
        if let Some(running) = self.running.get_mut(&rank) {
            running.state = State::Evicting;
            self.totals.preemptions += 1;
            self.growth.preempted();
            self.settle(rank);
        }
    }

    /// Gives the first that waits a slot, if its tokens would find room without taking it from anybody.
    /// Nobody overtakes it if not.
    pub(super) fn admit(&mut self) -> Option<Rank> {
        if !self.admissible(self.waiting.first()?) {
            return None;
        }
        let mut sequence = self.waiting.take()?;
        let slot = self.free_slots.pop()?;
        sequence.lines_up = false;
        let rank = sequence.rank();
        let running = Running {
            sequence,
            slot,
            table: self.blocks.table(),
            started: false,
            waits: false,
            scheduled: 0,
            computed: 0,
            published: 0,
            claimed: 0,
            ahead: 0,
            in_flight: 0,
            record: Record::default(),
            begun: false,
            left: false,
            state: State::Running,
        };
        self.running.insert(rank, running);
        self.reuse(rank);
        if let Some(Running { sequence, scheduled, .. }) = self.running.get(&rank)
            && (sequence.reached, sequence.generated()) == (0, 0)
        {
            self.waiting.charge(&sequence.spec, sequence.tokens.len() - scheduled, PROMPT_COST);
        }
        Some(rank)
    }

    /// Whether there is a place for a sequence that waits: a slot, and room for its tokens that is not taken
    /// from anybody. What was preempted must afford to be computed again, unless it is cached.
    pub(super) fn admissible(&self, sequence: &Sequence) -> bool {
        if self.free_slots.is_empty() || self.running.is_empty() {
            return !self.free_slots.is_empty();
        }
        let wanted = self.room(sequence, sequence.tokens.len()) + self.promised();
        let free = self.blocks.free();
        if wanted <= free && self.account.affords(sequence.reached) {
            return true;
        }
        let cached = self.cached(sequence);
        let again = sequence.reached.saturating_sub(self.blocks.capacity(cached.blocks));
        wanted - cached.held <= free && self.account.affords(again)
    }

    /// Blocks that running sequences will want: the rest of their prompts, and some to grow into, so that
    /// whoever is let in isn't preempted soon.
    fn promised(&self) -> usize {
        let running = self.running.values().filter(|r| r.state == State::Running);
        running.map(|r| (self.room(&r.sequence, r.expected()) + 1).saturating_sub(r.table.len())).sum()
    }

    /// Blocks for a sequence of so many tokens, and for what it is likely to grow by.
    fn room(&self, sequence: &Sequence, tokens: TokenCount) -> usize {
        let limit = sequence.kv_tokens(self.limits.context);
        self.blocks.needed(tokens + self.growth.of(limit.saturating_sub(tokens)))
    }

    fn send(&mut self, draft: Draft) -> v1::StepPlan {
        let mut plan = draft.plan;
        plan.step_id = self.next_step;
        // Some may have given way by now, even to this plan: the worker hears of it in the same order.
        plan.full = inventory::tell(&self.blocks.take_named());
        plan.release = self.released.drain(..).map(|slot| slot.0).collect();
        self.next_step += 1;
        self.in_flight.push_back(Step { id: plan.step_id, runs: draft.runs });
        plan
    }
}

// === impl Left ===

impl Left {
    /// Takes up to `rows` for a prompt.
    fn take(&mut self, rows: TokenCount, long: bool) -> TokenCount {
        let rows = rows.min(if long { self.all.min(self.long) } else { self.all });
        self.all -= rows;
        self.long -= if long { rows } else { 0 };
        rows
    }
}

// === impl Draft ===

impl Draft {
    /// Tells the worker the blocks of a table from the `nth` on.
    fn append(&mut self, slot: SlotId, table: &Table, nth: usize) {
        if nth == table.len() {
            return;
        }
        for (group, blocks) in (0..).zip(table.from(nth)) {
            let blocks = blocks.iter().map(|block| block.0).collect();
            self.plan.append.push(v1::BlockAppend { slot: slot.0, group, blocks });
        }
    }

    /// Copies a block of every group to the `nth` of a table.
    fn copy(&mut self, from: &[BlockId], table: &Table, nth: usize) {
        let to = table.from(nth).filter_map(|blocks| blocks.first());
        let pairs = (0..).zip(from.iter().zip(to));
        self.plan.copy.extend(pairs.map(|(group, (from, to))| v1::BlockCopy {
            group,
            from: from.0,
            to: to.0,
        }));
    }
}

/// What the worker needs to know of a sequence of which `computed` tokens are in its KV cache.
pub(super) fn new_sequence(
    sequence: &Sequence,
    slot: SlotId,
    computed: TokenCount,
    context: TokenCount,
) -> v1::NewSequence {
    let spec = &sequence.spec;
    let kind = match spec.kind {
        // max_tokens 0: nothing is drawn, whatever it is called.
        Kind::Generate if !sequence.samples(context) => Kind::Score,
        kind => kind,
    };
    v1::NewSequence {
        slot: slot.0,
        kind: kind.into(),
        tokens: sequence.tokens.iter().map(|token| token.0).collect(),
        computed: computed as u32,
        prompt_tokens: sequence.prompt_tokens as u32,
        sampling: Some(spec.sampling.clone()),
        choice: sequence.key.choice,
        score: sequence.score_left(),
        adapter: spec.adapter.clone(),
        request_id: spec.request_id.clone(),
        traceparent: sequence.traceparent.clone(),
        banned: if spec.min_tokens > 0 { spec.stop_tokens.iter().map(|t| t.0).collect() } else { vec![] },
        min_tokens: spec.min_tokens as u32,
        grammar: spec.grammar.clone(),
        mirostat: sequence.mirostat,
        prediction: spec.prediction.clone(),
    }
}
