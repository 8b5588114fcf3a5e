//! A worker without a model: it does what plans say, as a worker would, and says how long it would have taken.
//!
//! With a [`Memory`] its tokens pass through KV blocks: what a row reads must be what was computed for it. It
//! refuses plans that can't be, with a [`Violation`].

mod cost;
#[path = "../../../../worker/src/engine/inventory.rs"]
mod inventory; // the worker's own
mod memory;

use std::time::Duration;

use volley_proto::v1::{self, Kind};

pub use self::{
    cost::{Cost, Rows},
    memory::Memory,
};
use crate::model;

/// What a worker is made with.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Slots.
    pub slots: usize,
    /// Rows of a step.
    pub batch_tokens: usize,
    /// What its steps cost.
    pub cost: Cost,
    /// The request that kills it with its third token.
    pub poison: Option<String>,
}

/// The state that plans change.
#[derive(Debug)]
pub struct Worker {
    shape: Shape,
    slots: Vec<Option<Slot>>,
    memory: Option<Memory>,
    last_step: u64,
}

#[derive(Debug)]
struct Slot {
    sequence: v1::NewSequence,
    /// What is known; without a memory only how many, and their digest.
    tokens: Vec<u32>,
    known: usize,
    digest: u64,
    computed: usize,
    mirostat: Option<f32>,
    /// Blocks, by group.
    tables: Vec<Vec<u32>>,
}

/// A plan that can't be, or blocks that don't hold what they should.
#[derive(Clone, Debug)]
pub struct Violation(pub String);

/// What a step gives: the answer, and how long it takes.
#[derive(Clone, Debug)]
pub struct Stepped {
    /// For the scheduler.
    pub result: v1::StepResult,
    /// Time to compute it.
    pub took: Duration,
    /// The worker dies of it.
    pub fatal: bool,
}

macro_rules! ensure {
    ($holds:expr, $($said:tt)*) => {
        if !$holds {
            return Err($crate::worker::Violation(format!($($said)*)));
        }
    };
}
use ensure;

// === impl Worker ===

impl Worker {
    /// One that has just started. Without a memory its blocks aren't looked at.
    pub fn new(shape: Shape, memory: Option<Memory>) -> Self {
        let slots = (0..shape.slots).map(|_| None).collect();
        Self { shape, slots, memory, last_step: 0 }
    }

    /// Another scheduler claims it, or nobody: nothing runs, steps count anew. Blocks keep their content.
    pub fn clear(&mut self) {
        for slot in self.slots.iter_mut().filter_map(Option::take) {
            self.memory.iter_mut().for_each(|memory| memory.let_go(&slot.tables));
        }
        self.last_step = 0;
    }

    /// What its cache holds, by name.
    pub fn inventory(&self) -> Vec<v1::NamedBlocks> {
        self.memory.as_ref().map_or_else(Vec::new, |memory| memory.inventory.report(usize::MAX))
    }

    /// Sequences in slots.
    pub fn taken(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Does what the plan says.
    pub fn step(&mut self, plan: v1::StepPlan) -> Result<Stepped, Violation> {
        ensure!(plan.step_id == self.last_step + 1, "step {} follows {}", plan.step_id, self.last_step);
        self.last_step = plan.step_id;
        let released = !plan.release.is_empty();
        if let Some(memory) = &mut self.memory {
            plan.full.iter().try_for_each(|full| memory.inventory.name(full)).map_err(Violation)?;
        }
        for slot in plan.release {
            let freed = self.slots.get_mut(slot as usize).and_then(Option::take);
            let Some(freed) = freed else {
                return Err(Violation(format!("slot {slot} is released, but it is free")));
            };
            self.memory.iter_mut().for_each(|memory| memory.let_go(&freed.tables));
        }
        for sequence in plan.admit {
            self.admit(sequence)?;
        }
        if let Some(memory) = &mut self.memory {
            for append in plan.append {
                let slot = self.slots.get_mut(append.slot as usize).and_then(Option::as_mut);
                ensure!(slot.is_some(), "slot {} gets blocks, but it is free", append.slot);
                if let Some(slot) = slot {
                    let group = append.group as usize;
                    slot.tables.resize_with(slot.tables.len().max(group + 1), Vec::new);
                    slot.tables[group].extend(append.blocks);
                }
            }
            plan.copy.iter().for_each(|copy| memory.copy(copy));
        }
        let most: usize = plan.run.iter().map(|run| (run.tokens + run.drafts) as usize).sum();
        ensure!(most <= self.shape.batch_tokens, "{most} rows in a step of {}", self.shape.batch_tokens);
        ensure!(most > 0 || released, "a step that does nothing");
        let (mut rows, mut cost) = (0, Rows::default());
        let mut slots = Vec::with_capacity(plan.run.len());
        let mut fatal = false;
        for run in &plan.run {
            let slot = self.slots.get_mut(run.slot as usize).and_then(Option::as_mut);
            let Some(slot) = slot else {
                return Err(Violation(format!("slot {} runs, but it is free", run.slot)));
            };
            let result = slot.run(run, self.memory.as_mut(), plan.step_id)?;
            fatal |= slot.is_poison(self.shape.poison.as_deref());
            let ran = run.tokens + result.drafted.map_or(0, |drafted| drafted.tokens);
            slots.push(result);
            rows += ran;
            let (new, all) = (f64::from(ran), slot.computed as f64);
            cost.read += all;
            cost.attended += new * (all - new / 2.0);
        }
        cost.rows = f64::from(rows);
        let took = self.shape.cost.step(cost);
        let result = v1::StepResult {
            step_id: plan.step_id,
            slots,
            rows,
            compute_us: took.as_micros() as u64,
            ..Default::default()
        };
        Ok(Stepped { result, took, fatal })
    }

    fn admit(&mut self, mut sequence: v1::NewSequence) -> Result<(), Violation> {
        let number = sequence.slot;
        let place = self.slots.get_mut(number as usize);
        let Some(place @ None) = place else {
            return Err(Violation(format!("slot {number} is given away, but it is taken")));
        };
        let mut tokens = std::mem::take(&mut sequence.tokens);
        let (known, digest) = (tokens.len(), model::digest_all(&tokens));
        if self.memory.is_none() {
            tokens = Vec::new();
        }
        let sampling = sequence.sampling.clone().unwrap_or_default();
        let mirostat = model::first_state(sequence.mirostat, &sampling);
        let computed = sequence.computed as usize;
        *place = Some(Slot { sequence, tokens, known, digest, computed, mirostat, tables: Vec::new() });
        Ok(())
    }
}

// === impl Slot ===

impl Slot {
    fn run(
        &mut self,
        run: &v1::SlotRun,
        mut memory: Option<&mut Memory>,
        step: u64,
    ) -> Result<v1::SlotResult, Violation> {
        let (from, to) = (self.computed, self.computed + run.tokens as usize);
        ensure!(
            to > from && to <= self.known,
            "slot {} runs {from}..{to} of {} tokens",
            run.slot,
            self.known
        );
        self.computed = to;
        let mut result = v1::SlotResult { slot: run.slot, ..Default::default() };
        if let Some(memory) = memory.as_deref_mut() {
            memory.write(&self.tables, from, &self.tokens[from..to])?;
            memory.read(&self.tables, &self.tokens[..to])?;
            self.score(from, to, &mut result);
        }
        if to < self.known {
            return Ok(result);
        }
        match self.sequence.kind() {
            Kind::Generate => {
                self.draw(step, &mut result);
                self.guess(run.drafts, memory, step, &mut result)?;
            }
            Kind::Embed => result.embedding = vec![(self.digest >> 40) as f32],
            Kind::Score | Kind::Unspecified => {}
        }
        Ok(result)
    }

    fn is_poison(&self, poison: Option<&str>) -> bool {
        let generated = self.known - self.sequence.prompt_tokens as usize;
        poison == Some(self.sequence.request_id.as_str()) && generated >= 3
    }

    /// The log-probabilities of prompt tokens that follow the rows `from..to`.
    fn score(&self, from: usize, to: usize, result: &mut v1::SlotResult) {
        let Some(range) = self.sequence.score else { return };
        let prompt = self.sequence.prompt_tokens as usize;
        for next in (from + 1).max(range.from as usize)..(to + 1).min(prompt) {
            result.scored.push(model::score(model::digest_all(&self.tokens[..next]), self.tokens[next]));
        }
    }

    fn draw(&mut self, step: u64, result: &mut v1::SlotResult) {
        // A guided draw is deferred now and then, as if its grammar were not compiled yet.
        if self.sequence.grammar.is_some() && model::digest(self.digest, step as u32).is_multiple_of(3) {
            self.computed -= 1;
            result.deferred = true;
            return;
        }
        let generated = self.known - self.sequence.prompt_tokens as usize;
        let banned = generated < self.sequence.min_tokens as usize && !self.sequence.banned.is_empty();
        let (seed, logprobs) = self.sequence.sampling.as_ref().map_or((0, None), |s| (s.seed, s.logprobs));
        let token = model::draw(self.digest, seed, self.sequence.choice, self.mirostat, banned);
        if logprobs.is_some() {
            result.logprobs.push(model::score(self.digest, token));
        }
        self.mirostat = self.mirostat.map(|state| model::next_state(state, token));
        result.mirostat = self.mirostat;
        result.tokens.push(token);
        self.known += 1;
        self.digest = model::digest(self.digest, token);
        if !self.tables.is_empty() {
            self.tokens.push(token);
        }
    }

    /// Guesses some of the `most` tokens that it may, and runs a row for each. Each is right half the time.
    fn guess(
        &mut self,
        most: u32,
        mut memory: Option<&mut Memory>,
        step: u64,
        result: &mut v1::SlotResult,
    ) -> Result<(), Violation> {
        let guessable = self.mirostat.is_none() && self.sequence.grammar.is_none();
        ensure!(guessable || most == 0, "slot {} can't be guessed", self.sequence.slot);
        let guesses = model::digest(self.digest, step as u32) % (u64::from(most) + 1);
        let mut drafted = v1::Drafted { tokens: guesses as u32, ..Default::default() };
        if let Some(memory) = memory.as_deref_mut() {
            // What none of the rows may leave behind where it is read.
            memory.write(&self.tables, self.computed, &vec![u32::MAX; guesses as usize])?;
        }
        while drafted.accepted < drafted.tokens && model::digest(self.digest, !step as u32).is_multiple_of(2)
        {
            let at = self.computed;
            if let Some(memory) = memory.as_deref_mut() {
                memory.write(&self.tables, at, &self.tokens[at..at + 1])?;
                memory.read(&self.tables, &self.tokens[..at + 1])?;
            }
            self.computed += 1;
            drafted.accepted += 1;
            self.draw(step, result);
        }
        result.drafted = (guesses > 0).then_some(drafted);
        Ok(())
    }
}
