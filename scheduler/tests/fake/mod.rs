//! A worker without a model. Its next token is a hash of all tokens before it, read back from its KV blocks:
//! a block that two sequences share by mistake changes a stream. It refuses plans that can't be.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses its part

pub mod cluster;
#[path = "../../../worker/src/engine/inventory.rs"]
mod inventory; // the worker's own

use std::collections::{HashMap, HashSet};

use volley_proto::v1::{self, FinishReason, Kind};

pub const VOCABULARY: u32 = 61;
/// Ends a sequence that asked for it, about once in [`VOCABULARY`] tokens.
pub const STOP: u32 = 7;

/// What a model is to the scheduler.
#[derive(Default)]
pub struct FakeWorker {
    pub block_tokens: usize,
    pub batch_tokens: usize,
    /// (group, block) → its tokens.
    kv: HashMap<(u32, u32), Vec<Option<u32>>>,
    slots: HashMap<u32, Slot>,
    inventory: inventory::Inventory,
    last_step: u64,
    /// What it dies of.
    pub poison: Option<Poison>,
}

/// A row that kills a worker.
#[derive(Clone, Debug)]
pub struct Poison {
    pub request_id: String,
    /// The row's position.
    pub at: usize,
}

struct Slot {
    sequence: v1::NewSequence,
    /// Prompt and whatever was drawn.
    tokens: Vec<u32>,
    computed: usize,
    /// A sampler's state that its tokens don't tell.
    mirostat: Option<f32>,
    tables: HashMap<u32, Vec<u32>>,
}

impl FakeWorker {
    pub fn new(block_tokens: usize, batch_tokens: usize) -> Self {
        Self { block_tokens, batch_tokens, ..Self::default() }
    }

    /// A new claim: nothing runs any more; what the cache holds.
    pub fn claim(&mut self) -> Vec<v1::NamedBlocks> {
        let mut slots: Vec<_> = self.slots.drain().collect();
        slots.sort_unstable_by_key(|(slot, _)| *slot);
        slots.iter().for_each(|(_, slot)| slot.let_go(&mut self.inventory));
        self.last_step = 0;
        self.inventory()
    }

    /// What the cache holds, by name.
    pub fn inventory(&self) -> Vec<v1::NamedBlocks> {
        self.inventory.report(usize::MAX)
    }

    /// Sequences in slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Whether this step would be its last.
    pub fn dies_of(&self, plan: &v1::StepPlan) -> bool {
        let Some(poison) = &self.poison else { return false };
        plan.run.iter().any(|run| {
            let new = plan.admit.iter().find(|new| new.slot == run.slot);
            let new = new.map(|new| (&new.request_id, new.computed as usize));
            let held = self.slots.get(&run.slot).map(|slot| (&slot.sequence.request_id, slot.computed));
            let (request_id, computed) = new.or(held).expect("the slot is taken");
            *request_id == poison.request_id
                && (computed..computed + run.tokens as usize).contains(&poison.at)
        })
    }

    /// Does what the plan says, as a worker would.
    pub fn step(&mut self, plan: v1::StepPlan) -> v1::StepResult {
        assert_eq!(plan.step_id, self.last_step + 1, "steps are numbered without a gap");
        self.last_step = plan.step_id;
        let released = !plan.release.is_empty();
        plan.full.iter().for_each(|full| self.inventory.name(full).unwrap());
        for slot in &plan.release {
            let freed = self.slots.remove(slot).expect("it was taken");
            freed.let_go(&mut self.inventory);
        }
        for sequence in plan.admit {
            let slot = Slot {
                tokens: sequence.tokens.clone(),
                computed: sequence.computed as usize,
                mirostat: start(sequence.mirostat, sequence.sampling.as_ref()),
                tables: HashMap::new(),
                sequence,
            };
            let taken = self.slots.insert(slot.sequence.slot, slot);
            assert!(taken.is_none(), "the slot was taken");
        }
        for append in plan.append {
            for &block in &append.blocks {
                let own = self.slots[&append.slot].tables.get(&append.group);
                assert!(!own.is_some_and(|table| table.contains(&block)), "block {block} twice in a table");
            }
            let slot = self.slots.get_mut(&append.slot).expect("the slot is taken");
            slot.tables.entry(append.group).or_default().extend(append.blocks);
        }
        for copy in &plan.copy {
            let slot = |table: &Vec<u32>| table.contains(&copy.to);
            let tables = self.slots.values().filter_map(|slot| slot.tables.get(&copy.group));
            assert_eq!(
                tables.filter(|table| slot(table)).count(),
                1,
                "a block that is copied to has one owner"
            );
            assert!(plan.copy.iter().all(|other| (other.group, other.from) != (copy.group, copy.to)));
            let cells = self.kv.get(&(copy.group, copy.from)).cloned().expect("it was written");
            self.kv.insert((copy.group, copy.to), cells);
            self.inventory.written(copy.group, copy.to);
        }
        let rows = plan.run.iter().map(|run| (run.tokens + run.drafts) as usize).sum::<usize>();
        assert!(rows <= self.batch_tokens, "{rows} rows in a step of {}", self.batch_tokens);
        let last_words = released && self.slots.is_empty();
        assert!(rows > 0 || last_words, "a step without rows empties the last slots");
        let distinct: HashSet<_> = plan.run.iter().map(|run| run.slot).collect();
        assert_eq!(distinct.len(), plan.run.len(), "a slot runs once a step");
        let slots = plan.run.iter().map(|run| self.run(run)).collect();
        v1::StepResult { step_id: plan.step_id, rows: rows as u32, slots, ..Default::default() }
    }

    fn run(&mut self, run: &v1::SlotRun) -> v1::SlotResult {
        let owner = &self.slots[&run.slot];
        let written = owner.computed..owner.computed + (run.tokens + run.drafts) as usize;
        for (&group, table) in &owner.tables {
            let blocks: HashSet<_> =
                written.clone().filter_map(|position| table.get(position / self.block_tokens)).collect();
            blocks.into_iter().for_each(|&block| self.inventory.written(group, block));
        }
        for (_, other) in self.slots.iter().filter(|(slot, _)| **slot != run.slot) {
            for (group, table) in &owner.tables {
                let own = written.clone().filter_map(|position| table.get(position / self.block_tokens));
                let shared = own.filter(|block| other.tables.get(group).is_some_and(|t| t.contains(block)));
                assert_eq!(shared.count(), 0, "what is shared is never written");
            }
        }
        let slot = self.slots.get_mut(&run.slot).expect("the slot is taken");
        assert!(run.tokens > 0);
        let mut result = v1::SlotResult { slot: run.slot, ..Default::default() };
        for _ in 0..run.tokens {
            let position = slot.computed;
            let token = *slot.tokens.get(position).expect("only what is known runs");
            for (&group, table) in &slot.tables {
                let block = *table.get(position / self.block_tokens).expect("there is a block for it");
                let cells = self.kv.entry((group, block)).or_default();
                cells.resize(self.block_tokens, None);
                cells[position % self.block_tokens] = Some(token);
            }
            slot.computed += 1;
            // This row's hidden state stands for all tokens up to it.
            let past = read(&self.kv, self.block_tokens, slot);
            assert_eq!(past, slot.tokens[..slot.computed], "the KV cache holds what was computed");
            let next = slot.computed;
            let scored = slot.sequence.score.as_ref().is_some_and(|range| range.from as usize <= next);
            if scored && next < slot.sequence.prompt_tokens as usize {
                result.scored.push(score(&past, slot.tokens[next]));
            }
            if next == slot.tokens.len() && slot.sequence.kind() == Kind::Embed {
                result.embedding = past.iter().map(|&token| token as f32).collect();
            }
            if next == slot.tokens.len() && slot.sequence.kind() == Kind::Generate {
                // A guided draw is deferred now and then, as if its grammar were not compiled yet.
                if slot.sequence.grammar.is_some() && hash(&past, self.last_step).is_multiple_of(3) {
                    slot.computed -= 1;
                    result.deferred = true;
                    continue;
                }
                slot.draw(&past, &mut result);
                slot.guess(run.drafts, &mut self.kv, (self.block_tokens, self.last_step), &mut result);
                break; // it was the last row
            }
        }
        result
    }
}

impl Slot {
    fn let_go(&self, inventory: &mut inventory::Inventory) {
        self.tables.iter().for_each(|(&group, table)| inventory.let_go(group, table.iter().copied()));
    }

    /// Draws the token after `past`, and keeps it.
    fn draw(&mut self, past: &[u32], result: &mut v1::SlotResult) {
        let sampling = self.sequence.sampling.clone().unwrap_or_default();
        let mut token = draw(past, sampling.seed, self.sequence.choice, self.mirostat);
        let generated = past.len() - self.sequence.prompt_tokens as usize;
        if generated < self.sequence.min_tokens as usize && self.sequence.banned.contains(&token) {
            token += 1;
        }
        result.tokens.push(token);
        self.tokens.push(token);
        self.mirostat = self.mirostat.map(|state| next_state(state, token));
        result.mirostat = self.mirostat;
        if sampling.logprobs.is_some() {
            result.logprobs.push(score(past, token));
        }
    }

    /// Guesses some of the `most` tokens that it may, and runs a row for each; some are right.
    fn guess(
        &mut self,
        most: u32,
        kv: &mut HashMap<(u32, u32), Vec<Option<u32>>>,
        (block_tokens, step): (usize, u64),
        result: &mut v1::SlotResult,
    ) {
        let guesses = hash(&self.tokens, step) % (u64::from(most) + 1);
        let mut drafted = v1::Drafted { tokens: guesses as u32, ..Default::default() };
        for nth in 0..guesses {
            let position = self.computed + (guesses - nth) as usize - 1;
            for (&group, table) in &self.tables {
                let block = *table.get(position / block_tokens).expect("there is a block for a guess");
                let cells = kv.entry((group, block)).or_default();
                cells.resize(block_tokens, None);
                cells[position % block_tokens] = Some(u32::MAX);
            }
        }
        for nth in 0..guesses {
            if hash(&self.tokens, step ^ nth << 20).is_multiple_of(3) {
                break; // this one is wrong
            }
            for (&group, table) in &self.tables {
                let cells =
                    kv.get_mut(&(group, table[self.computed / block_tokens])).expect("it was written");
                cells[self.computed % block_tokens] = Some(self.tokens[self.computed]);
            }
            self.computed += 1;
            drafted.accepted += 1;
            let past = self.tokens[..self.computed].to_vec();
            self.draw(&past, result);
        }
        result.drafted = (guesses > 0).then_some(drafted);
    }
}

fn read(kv: &HashMap<(u32, u32), Vec<Option<u32>>>, block_tokens: usize, slot: &Slot) -> Vec<u32> {
    let groups = slot.tables.iter().map(|(&group, table)| {
        let cell =
            |i: usize| kv[&(group, table[i / block_tokens])][i % block_tokens].expect("it was written");
        (0..slot.computed).map(cell).collect::<Vec<_>>()
    });
    let groups: Vec<_> = groups.collect();
    assert!(groups.windows(2).all(|pair| pair[0] == pair[1]), "all groups hold the same tokens");
    groups.into_iter().next().expect("there is a group")
}

fn hash(tokens: &[u32], salt: u64) -> u64 {
    tokens.iter().fold(salt ^ 0x9e37_79b9_7f4a_7c15, |h, &token| {
        (h ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

fn draw(past: &[u32], seed: u64, choice: u32, mirostat: Option<f32>) -> u32 {
    let state = mirostat.map_or(0, f32::to_bits);
    (hash(past, seed ^ u64::from(choice) << 32 ^ u64::from(state) << 16) >> 17) as u32 % VOCABULARY
}

/// A sampler's state before the first draw here.
fn start(moved: Option<f32>, sampling: Option<&v1::Sampling>) -> Option<f32> {
    let target = sampling.and_then(|sampling| sampling.mirostat_target);
    target.map(|target| moved.unwrap_or(2.0 * target))
}

fn next_state(state: f32, token: u32) -> f32 {
    (state * 31.0 + token as f32) % 1009.0
}

fn score(past: &[u32], token: u32) -> v1::Logprobs {
    let logprob = -((hash(past, u64::from(token)) >> 40) as f32);
    v1::Logprobs { logprob, ..Default::default() }
}

/// What a request should get: its stream when it is alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stream {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    /// The sampler's state after each token.
    pub states: Vec<f32>,
    pub scored: Vec<f32>,
    pub finish: FinishReason,
}

/// The stream of `choice` of a submission with this prompt.
pub fn alone(prompt: &[u32], submission: &v1::Submission, choice: u32, context: usize) -> Stream {
    let mut stream = Stream { finish: FinishReason::Length, ..Default::default() };
    if let Some(range) = &submission.score {
        let from = (range.from as usize).max(1);
        stream.scored = (from..prompt.len()).map(|at| score(&prompt[..at], prompt[at]).logprob).collect();
    }
    let sampling = submission.sampling.clone().unwrap_or_default();
    let mut mirostat = start(None, Some(&sampling));
    let mut tokens = prompt.to_vec();
    let limit = context.min(prompt.len() + submission.max_tokens as usize);
    while submission.kind() == Kind::Generate && tokens.len() < limit {
        let generated = tokens.len() - prompt.len();
        let mut token = draw(&tokens, sampling.seed, choice, mirostat);
        let early = generated < submission.min_tokens as usize;
        if early && submission.stop_tokens.contains(&token) {
            token += 1;
        }
        stream.tokens.push(token);
        mirostat = mirostat.map(|state| next_state(state, token));
        stream.states.extend(mirostat);
        if sampling.logprobs.is_some() {
            stream.logprobs.push(score(&tokens, token).logprob);
        }
        tokens.push(token);
        if !early && submission.stop_tokens.contains(&token) {
            stream.finish = FinishReason::Stop;
            break;
        }
    }
    stream
}

impl Stream {
    /// Adds an output; nothing may follow the finish.
    pub fn extend(&mut self, output: v1::SequenceOutput) {
        assert_eq!(self.finish, FinishReason::Unspecified, "nothing follows the end");
        self.finish = output.finish();
        self.tokens.extend(output.tokens);
        self.logprobs.extend(output.logprobs.iter().map(|l| l.logprob));
        self.states.extend(output.mirostat);
        self.scored.extend(output.scored.iter().map(|l| l.logprob));
    }

    /// Whether this is what `whole` begins with.
    pub fn begins(&self, whole: &Stream) -> bool {
        whole.tokens.starts_with(&self.tokens)
            && whole.logprobs.starts_with(&self.logprobs)
            && whole.states.starts_with(&self.states)
            && whole.scored.starts_with(&self.scored)
    }
}
