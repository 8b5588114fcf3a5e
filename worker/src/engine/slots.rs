//! The slots: plans go in, steps come out; drawn tokens go in, results come out. Pure: no device, no clock.

use std::collections::HashSet;

use volley_kernels::{self as kernels, Batch, BlockId, Draw, Drawn};
use volley_proto::v1::{Logprobs, SlotResult, SlotRun, StepPlan};

use super::{Limits, sequence::Sequence};

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
    slots: Vec<Option<Sequence>>,
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
    /// One for each run of the plan, to be filled.
    results: Vec<SlotResult>,
}

// === impl Slots ===

impl Slots {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { slots: (0..limits.sequences).map(|_| None).collect(), limits }
    }

    /// Slots that hold a sequence.
    pub(crate) fn taken(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Forgets all sequences.
    pub(crate) fn clear(&mut self) {
        self.slots.fill_with(|| None);
    }

    /// Applies a plan's deltas and lays out its rows. After an error the slots are of no more use.
    pub(crate) fn apply(&mut self, plan: StepPlan) -> Result<Step, PlanError> {
        let step = plan.step_id;
        self.changes(plan).map_err(|problem| PlanError { step, problem })
    }

    fn changes(&mut self, plan: StepPlan) -> Result<Step, String> {
        for slot in plan.release {
            let freed = self.slot(slot)?.take();
            freed.ok_or_else(|| format!("release of slot {slot}, which is empty"))?;
        }
        for new in plan.admit {
            let (slot, limits) = (new.slot, self.limits);
            let place = self.slot(slot)?;
            if place.is_some() {
                return Err(format!("admission to slot {slot}, which is taken"));
            }
            *place = Some(Sequence::admit(new, &limits)?);
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
        let mut step = Step::default();
        for copy in plan.copy {
            self.group(copy.group)?;
            step.copies.push((self.block(copy.from)?, self.block(copy.to)?));
        }
        let mut ran = HashSet::new();
        for run in plan.run {
            if !ran.insert(run.slot) {
                return Err(format!("slot {} runs twice", run.slot));
            }
            self.run(run, &mut step)?;
        }
        Ok(step)
    }

    fn run(&mut self, SlotRun { slot, tokens }: SlotRun, step: &mut Step) -> Result<(), String> {
        let limits = self.limits;
        let sequence = self.sequence(slot)?;
        let mut result = SlotResult { slot, ..SlotResult::default() };
        if let Some(failure) = sequence.failure() {
            result.failure = Some(failure.to_owned());
            step.results.push(result);
            return Ok(());
        }
        let first_row = step.batch.tokens.len();
        if first_row + tokens as usize > limits.rows {
            return Err(format!("more than {} rows", limits.rows));
        }
        let run = sequence.run(slot, tokens as usize, &limits)?;
        let rows = run.tokens.len();
        let blocks = sequence.blocks.clone();
        step.batch.tokens.extend(run.tokens);
        step.batch.sequences.push(kernels::Sequence { first_row, rows, position: run.position, blocks });
        let sample = run.sample.map(|draw| (rows - 1, draw));
        for (row, draw) in run.scores.into_iter().chain(sample) {
            step.rows.push(first_row + row);
            step.draws.push(draw);
            step.owners.push(step.results.len());
        }
        step.results.push(result);
        Ok(())
    }

    /// Keeps what a step drew; `drawn` is beside its draws.
    pub(crate) fn settle(&mut self, step: Step, drawn: Vec<Drawn>) -> Vec<SlotResult> {
        let Step { mut results, owners, draws, .. } = step;
        for ((drawn, draw), owner) in drawn.into_iter().zip(draws).zip(owners) {
            let result = &mut results[owner];
            if draw.given.is_some() {
                result.scored.extend(drawn.logprobs.map(to_wire));
                continue;
            }
            drop(draw); // it shares the history of tokens, which grows in place
            result.tokens.push(drawn.token);
            result.mirostat = drawn.mirostat;
            if let Some(Some(sequence)) = self.slots.get_mut(result.slot as usize) {
                sequence.push(&drawn);
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
