//! The slots: plans go in, steps come out; drawn tokens go in, results come out. No device, no clock.

use std::{collections::HashSet, ops::Range, time::Duration};

use volley_kernels::{self as kernels, BLOCK_TOKENS, Batch, BlockId, Draw, Drawn};
use volley_proto::v1::{Drafted, Logprobs, NamedBlocks, SlotResult, SlotRun, StepPlan};

use super::{
    Limits,
    draft::Guess,
    guide::{Guides, Readiness, patience, restrict},
    inventory::Inventory,
    sequence::Sequence,
};

/// Blocks that an inventory tells of at most, those used last: 21 bytes each, two thirds of the largest message.
const TOLD: usize = 1 << 21;

/// A plan that contradicts itself, this worker's limits, or what went before: the connection ends with it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {step}: {problem}")]
pub(crate) struct PlanError {
    pub(crate) step: u64,
    pub(crate) problem: String,
}

/// All sequences of the worker.
pub(crate) struct Slots {
    limits: Limits,
    guides: Guides,
    slots: Vec<Option<Sequence>>,
    /// Sequences admitted so far.
    admitted: u64,
    inventory: Inventory,
}

/// A plan whose deltas have been applied.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    step: u64,
    pub(crate) copies: Vec<(BlockId, BlockId)>,
    /// What is to run, and what is guessed to come after.
    pub(super) runs: Vec<(SlotRun, Option<Guess>)>,
}

/// A checked plan, ready to compute.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) copies: Vec<(BlockId, BlockId)>,
    pub(crate) batch: Batch,
    /// Rows whose logits are needed, and what each is for.
    pub(crate) rows: Vec<usize>,
    pub(crate) draws: Vec<Draw>,
    /// Beside `draws`: the slot result that each belongs to.
    owners: Vec<usize>,
    /// Beside `draws`: the token that the next row takes each for, if that one is guessed.
    guesses: Vec<Option<u32>>,
    /// Rows whose final hidden states go into embeddings.
    pub(crate) pooled: Vec<Pooled>,
    /// One for each run of the plan, to be filled.
    results: Vec<SlotResult>,
    /// Beside `results`: which sequence it is, since its slot may be another's by then.
    numbers: Vec<u64>,
}

/// A run's part in its sequence's embedding.
#[derive(Debug)]
pub(crate) struct Pooled {
    pub(crate) rows: Range<usize>,
    /// The slot result that it belongs to.
    owner: usize,
    /// Whether it is the last part.
    ends: bool,
}

// === impl Slots ===

impl Slots {
    pub(crate) fn new(limits: Limits, guides: Guides) -> Self {
        let slots = (0..limits.sequences).map(|_| None).collect();
        Self { slots, limits, guides, admitted: 0, inventory: Inventory::default() }
    }

    /// What plans may ask for.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The sequence in a slot.
    pub(super) fn sequence_mut(&mut self, slot: u32) -> Option<&mut Sequence> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Slots that hold a sequence.
    pub(crate) fn taken(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Forgets all sequences. The cache keeps what they had.
    pub(crate) fn clear(&mut self) {
        for sequence in self.slots.iter_mut().filter_map(Option::take) {
            self.inventory.let_go(0, sequence.blocks.iter().map(|block| block.0));
        }
    }

    /// What the KV cache holds, for a scheduler that hasn't planned any of it.
    pub(crate) fn inventory(&self) -> Vec<NamedBlocks> {
        self.inventory.report(TOLD)
    }

    /// Applies a plan's deltas, and guesses from what sequences hold. After an error the slots are of no more use.
    pub(crate) fn apply(&mut self, plan: StepPlan) -> Result<Planned, PlanError> {
        let step = plan.step_id;
        let planned = self.changes(plan).map_err(|problem| PlanError { step, problem })?;
        Ok(Planned { step, ..planned })
    }

    /// Lays out the rows. After an error the slots are of no more use.
    pub(crate) fn lay_out(&mut self, planned: Planned) -> Result<Step, PlanError> {
        let mut step = Step { copies: planned.copies, ..Step::default() };
        for (run, guess) in planned.runs {
            let done = self.run(run, guess, &mut step);
            done.map_err(|problem| PlanError { step: planned.step, problem })?;
        }
        Ok(step)
    }

    fn changes(&mut self, plan: StepPlan) -> Result<Planned, String> {
        for full in plan.full {
            self.group(full.group)?;
            full.blocks.iter().try_for_each(|&block| self.block(block).map(drop))?;
            self.inventory.name(&full)?;
        }
        for slot in plan.release {
            let freed = self.slot(slot)?.take();
            let freed = freed.ok_or_else(|| format!("release of slot {slot}, which is empty"))?;
            self.inventory.let_go(0, freed.blocks.iter().map(|block| block.0));
        }
        for new in plan.admit {
            let (slot, limits) = (new.slot, self.limits);
            if self.slot(slot)?.is_some() {
                return Err(format!("admission to slot {slot}, which is taken"));
            }
            self.admitted += 1;
            let sequence = Sequence::admit(self.admitted, new, &limits, &self.guides)?;
            *self.slot(slot)? = Some(sequence);
        }
        for append in plan.append {
            self.group(append.group)?;
            let blocks =
                append.blocks.into_iter().map(|block| self.block(block)).collect::<Result<Vec<_>, _>>()?;
            let (slot, limit) = (append.slot, self.limits.blocks);
            let table = &mut self.sequence(slot)?.blocks;
            table.extend(blocks);
            if table.len() > limit {
                return Err(format!("slot {slot}: a table of {} blocks; there are {limit}", table.len()));
            }
        }
        let mut planned = Planned::default();
        for copy in plan.copy {
            self.group(copy.group)?;
            planned.copies.push((self.block(copy.from)?, self.block(copy.to)?));
            self.inventory.written(copy.group, copy.to);
        }
        let mut ran = HashSet::new();
        for run in plan.run {
            if !ran.insert(run.slot) {
                return Err(format!("slot {} runs twice", run.slot));
            }
            let guess = self.sequence(run.slot)?.guess(run.tokens as usize, run.drafts as usize);
            planned.runs.push((run, guess));
        }
        Ok(planned)
    }

    fn run(
        &mut self,
        SlotRun { slot, tokens, drafts }: SlotRun,
        guess: Option<Guess>,
        step: &mut Step,
    ) -> Result<(), String> {
        let limits = self.limits;
        let sequence = self.sequence(slot)?;
        let mut result = SlotResult { slot, ..SlotResult::default() };
        step.numbers.push(sequence.number);
        if let Some(failure) = sequence.failure() {
            result.failure = Some(failure.to_owned());
            step.results.push(result);
            return Ok(());
        }
        let first_row = step.batch.tokens.len();
        let (tokens, drafts) = (tokens as usize, drafts as usize);
        if first_row + tokens + drafts > limits.rows {
            return Err(format!("more than {} rows", limits.rows));
        }
        let run = sequence.run(slot, (tokens, drafts), guess, &limits)?;
        let rows = run.tokens.len();
        let blocks = sequence.blocks.clone();
        let written = run.position / BLOCK_TOKENS..(run.position + rows).div_ceil(BLOCK_TOKENS);
        for block in blocks.get(written).unwrap_or_default() {
            self.inventory.written(0, block.0);
        }
        step.batch.drawn.extend(run.expected.map(|draw| (first_row + tokens - 1, draw)));
        step.batch.tokens.extend(run.tokens);
        step.batch.sequences.push(kernels::Sequence { first_row, rows, position: run.position, blocks });
        let guess = run.guess.as_ref().map_or(&[][..], |guess| &guess.tokens);
        let guesses = guess.iter().copied().map(Some).chain(std::iter::repeat(None));
        let scores = run.scores.into_iter().map(|score| (score, None));
        for ((row, draw), guess) in scores.chain(run.samples.into_iter().zip(guesses)) {
            step.rows.push(first_row + row);
            step.draws.push(draw);
            step.owners.push(step.results.len());
            step.guesses.push(guess);
        }
        result.drafted = run.guess.map(|guess| Drafted {
            tokens: guess.tokens.len() as u32,
            accepted: 0,
            predicted: guess.predicted,
        });
        if run.pooled > 0 {
            let rows = first_row + rows - run.pooled..first_row + rows;
            step.pooled.push(Pooled { rows, owner: step.results.len(), ends: run.ends });
        }
        step.results.push(result);
        Ok(())
    }

    /// Takes in the final hidden states of a step's pooled rows, beside `step.pooled`.
    pub(crate) fn pool(&mut self, step: &mut Step, hidden: &[Vec<f32>]) {
        for (pooled, hidden) in step.pooled.iter().zip(hidden) {
            let result = &mut step.results[pooled.owner];
            let sequence = self.slots.get_mut(result.slot as usize).and_then(Option::as_mut);
            let Some(pool) = sequence.and_then(|sequence| sequence.pool.as_mut()) else { continue };
            pool.add(hidden, hidden.len() / pooled.rows.len());
            if pooled.ends {
                result.embedding = pool.embedding();
            }
        }
    }

    /// Tells the draws of guided sequences what they may draw. The forward pass, in whose time masks are
    /// computed, took `forward`; where a mask isn't there even so, the draw is left to a later step.
    pub(crate) fn guide(&mut self, step: &mut Step, forward: Duration) {
        let guided: Vec<usize> = (0..step.draws.len()).filter(|&draw| self.is_guided(step, draw)).collect();
        if guided.is_empty() {
            return;
        }
        let compiling =
            guided.iter().filter(|&&draw| self.readiness(step, draw) == Some(Readiness::Compiling));
        let others = step.results.len() - compiling.count();
        let mut left = Vec::new();
        for draw in guided {
            let patience =
                self.readiness(step, draw).map_or(Duration::ZERO, |is| patience(is, others, forward));
            let result = &mut step.results[step.owners[draw]];
            let Some(Some(sequence)) = self.slots.get_mut(result.slot as usize) else { continue };
            match sequence.guide.as_mut().and_then(|guide| guide.mask(patience)) {
                Some(Ok(mask)) => restrict(&mut step.draws[draw], mask),
                Some(Err(error)) => {
                    sequence.fail(format!("the grammar: {error}"));
                    result.failure = sequence.failure().map(str::to_owned);
                    left.push(draw);
                }
                None => {
                    sequence.defer();
                    result.deferred = true;
                    left.push(draw);
                }
            }
        }
        for draw in left.into_iter().rev() {
            step.rows.remove(draw);
            step.draws.remove(draw);
            step.owners.remove(draw);
            step.guesses.remove(draw);
        }
    }

    fn is_guided(&self, step: &Step, draw: usize) -> bool {
        step.draws[draw].given.is_none() && self.readiness(step, draw).is_some()
    }

    /// How far the guide of the sequence that draws is, if it has one.
    fn readiness(&self, step: &Step, draw: usize) -> Option<Readiness> {
        let slot = step.results[step.owners[draw]].slot as usize;
        Some(self.slots.get(slot)?.as_ref()?.guide.as_ref()?.readiness())
    }

    /// Whether a step's draws, which are under way, can be [`expect`](Self::expect)ed: none of them is a guess's.
    pub(crate) fn is_expectable(step: &Step) -> bool {
        step.results.iter().all(|result| result.drafted.is_none())
    }

    /// A step's draws are under way: sequences go on from them.
    pub(crate) fn expect(&mut self, step: &Step) {
        for (draw, &owner) in step.owners.iter().enumerate() {
            let sequence = self.slots.get_mut(step.results[owner].slot as usize);
            if let (None, Some(Some(sequence))) = (step.draws[draw].given, sequence) {
                sequence.expect(draw);
            }
        }
    }

    /// Whether a plan can be laid out while the draws of the step before it are expected.
    pub(crate) fn goes_on_unseen(&self, plan: &StepPlan) -> bool {
        plan.run.iter().all(|run| {
            let known = self.slots.get(run.slot as usize).and_then(Option::as_ref);
            let known = known.filter(|_| plan.admit.iter().all(|new| new.slot != run.slot));
            let unseen = known.is_none_or(|sequence| !sequence.is_expecting() || sequence.goes_on_unseen());
            run.drafts == 0 && unseen
        })
    }

    /// Keeps what a step drew, up to the first token that was guessed wrong; `drawn` is beside its draws.
    pub(crate) fn settle(&mut self, step: Step, drawn: Vec<Drawn>) -> Vec<SlotResult> {
        let Step { mut results, owners, draws, guesses, numbers, .. } = step;
        for (((drawn, draw), owner), guess) in drawn.into_iter().zip(draws).zip(owners).zip(guesses) {
            let result = &mut results[owner];
            if draw.given.is_some() {
                result.scored.extend(drawn.logprobs.map(to_wire));
                continue;
            }
            let position = draw.position as usize;
            drop(draw); // it shares the history of tokens, which grows in place
            let accepted = result.drafted.map_or(0, |drafted| drafted.accepted as usize);
            if result.tokens.len() > accepted {
                continue; // this row ran what was guessed, and something else was drawn
            }
            result.tokens.push(drawn.token);
            result.mirostat = drawn.mirostat;
            let sequence = self.slots.get_mut(result.slot as usize).and_then(Option::as_mut);
            if let Some(sequence) = sequence.filter(|sequence| sequence.number == numbers[owner]) {
                sequence.push(position, &drawn);
                if guess == Some(drawn.token) {
                    sequence.accept();
                    result.drafted.iter_mut().for_each(|drafted| drafted.accepted += 1);
                }
            }
            result.logprobs.extend(drawn.logprobs.map(to_wire));
        }
        results
    }

    fn slot(&mut self, slot: u32) -> Result<&mut Option<Sequence>, String> {
        let count = self.slots.len();
        self.slots.get_mut(slot as usize).ok_or_else(|| format!("slot {slot}; there are {count}"))
    }

    fn sequence(&mut self, slot: u32) -> Result<&mut Sequence, String> {
        self.slot(slot)?.as_mut().ok_or_else(|| format!("slot {slot} is empty"))
    }

    fn block(&self, block: u32) -> Result<BlockId, String> {
        match (block as usize) < self.limits.blocks {
            true => Ok(BlockId(block)),
            false => Err(format!("block {block}; there are {}", self.limits.blocks)),
        }
    }

    /// There is one KV group yet.
    fn group(&self, group: u32) -> Result<(), String> {
        if group == 0 { Ok(()) } else { Err(format!("KV group {group}; there is one")) }
    }
}

fn to_wire(logprobs: kernels::Logprobs) -> Logprobs {
    let (top_tokens, top_logprobs) = logprobs.top.into_iter().unzip();
    Logprobs { logprob: logprobs.logprob, top_tokens, top_logprobs }
}
