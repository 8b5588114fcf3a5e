//! A client: what it asks for, what it must get, and what it got.
//!
//! Its oracle is the undisturbed run: the model's tokens, one after the other, through an assembler of its own.

use std::sync::Arc;

use volley_grammar::Grammar;
use volley_proto::v1::{Logprobs, Sampling as Wire};
use volley_router::{
    assembler::{Assembler, Rules, Step},
    engine::StreamError,
    generation::{Delta, Generation, Mirostat, Prompt, Reason, Sampling, Task},
    stop::Stops,
};

use super::net::{MILLI, Micros, SECOND};
use crate::{
    model::{self, CONTEXT, END},
    random::Random,
};

#[derive(Debug, PartialEq)]
pub(super) enum State {
    /// Not there yet, or between two calls.
    Waits,
    /// A router has its call.
    Reads { router: usize, call: u64 },
    /// It has everything.
    Done,
    /// It was told that there is no more.
    Failed(StreamError),
    /// It went away by itself.
    Left,
}

pub(super) struct Client {
    pub(super) generation: Generation,
    /// By choice, what it must get, event for event.
    expected: Vec<Vec<Delta>>,
    /// By choice, how many of them it has.
    seen: Vec<usize>,
    /// Of these, how many its router is going to repeat.
    repeated: Vec<usize>,
    pub(super) state: State,
    pub(super) arrival: Micros,
    /// Between two reads.
    pub(super) pace: Micros,
    /// Once it reads nothing for so long.
    pub(super) stall: Option<Micros>,
    /// When it goes away.
    pub(super) leaves: Option<Micros>,
    /// A read is under way.
    pub(super) reading: bool,
}

// === impl Client ===

impl Client {
    pub(super) fn new(number: usize, span: Micros, random: &mut Random) -> Self {
        let generation = generation(number, random);
        let arrival = random.between(0, span);
        let pace = if random.chance(0.3) { random.between(1, 40) * MILLI } else { 0 };
        let stall = random.chance(0.1).then(|| random.between(100 * MILLI, 5 * SECOND));
        let leaves = random.chance(0.1).then(|| arrival + random.between(0, 1500 * MILLI));
        let choices = generation.n;
        Self {
            expected: (0..choices).map(|choice| undisturbed(&generation, choice)).collect(),
            seen: vec![0; choices as usize],
            repeated: vec![0; choices as usize],
            generation,
            state: State::Waits,
            arrival,
            pace,
            stall,
            leaves,
            reading: false,
        }
    }

    /// Its router is gone: another will say everything again. What it has is left out.
    pub(super) fn resumes(&mut self) {
        self.repeated.clone_from(&self.seen);
        self.state = State::Waits;
    }

    /// Takes a batch in: the next events of the undisturbed run.
    pub(super) fn read(&mut self, batch: Vec<Delta>) -> Result<(), String> {
        for mut delta in batch {
            let choice = delta.choice as usize;
            let Some(expected) = self.expected.get(choice) else {
                return Err(format!("there is no choice {choice}"));
            };
            if let Some(finish) = &mut delta.finish {
                finish.cached_tokens = 0; // these may differ
                delta.guessed = Default::default();
            }
            let repeated = self.repeated[choice] > 0;
            let at = self.seen[choice] - self.repeated[choice];
            if expected.get(at) != Some(&delta) {
                let expected = expected.get(at);
                return Err(format!("event {at} of choice {choice} is {delta:?}, undisturbed {expected:?}"));
            }
            match repeated {
                true => self.repeated[choice] -= 1,
                false => self.seen[choice] += 1,
            }
        }
        if self.seen.iter().zip(&self.expected).all(|(seen, expected)| *seen == expected.len()) {
            self.state = State::Done;
        }
        Ok(())
    }

    /// Its stream ended early. One that has nothing yet calls again if it may, as SDKs do.
    pub(super) fn fail(&mut self, error: StreamError, again: bool) {
        let began = self.seen.iter().any(|&seen| seen > 0);
        self.state = if began || !again { State::Failed(error) } else { State::Waits };
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Failed(_) | State::Left)
    }
}

fn generation(number: usize, random: &mut Random) -> Generation {
    let prompt = random.between(1, 40);
    let tokens = (0..prompt).map(|_| *random.pick(&[97, 98, 99, 32, 256, 258])).collect();
    let embeds = random.chance(0.04);
    let longest = (CONTEXT as u64 - prompt).min(40);
    let max_tokens = match embeds || random.chance(0.05) {
        true => 0,
        false => random.between(1, longest) as u32,
    };
    let echo = if embeds || random.chance(0.8) { 0 } else { *random.pick(&[3, u32::MAX]) };
    let stops = ["ab", "the end", ". ", "\n\n", "é", "<|im_start|>", "cd"];
    let stop = (0..random.below(3)).map(|_| (*random.pick(&stops)).to_owned()).collect();
    Generation {
        id: format!("client-{number}"),
        task: if embeds { Task::Embed } else { Task::Generate },
        prompts: vec![Prompt { tokens }],
        n: if embeds || random.chance(0.7) { 1 } else { random.between(2, 3) as u32 },
        max_tokens,
        stop,
        include_stop: random.chance(0.3),
        ignore_eos: random.chance(0.2),
        min_tokens: if random.chance(0.2) {
            random.between(0, 8).min(u64::from(max_tokens)) as u32
        } else {
            0
        },
        echo,
        logprobs: random.chance(0.3).then_some(0),
        // What it says is nothing to simulated workers; that it is there, is.
        grammar: random.chance(0.1).then(|| Grammar::from_wire("start: /.*/".into())),
        prediction: Vec::new(),
        shown: Vec::new(),
        sampling: Sampling {
            seed: random.bits(),
            mirostat: random.chance(0.1).then_some(Mirostat { target: 5.0, rate: 0.1 }),
            ..Sampling::default()
        },
        tenant: format!("tenant-{}", random.below(3)),
        priority: random.between(0, 1) as i32,
        session: random.chance(0.3).then(|| random.bits() % 3),
        cache_salt: String::new(),
        max_cached_tokens: None,
        traceparent: String::new(),
        deadline: None,
    }
}

/// What a choice says when nothing happens: its events.
fn undisturbed(generation: &Generation, choice: u32) -> Vec<Delta> {
    let model = model::model();
    let stops = Stops::new(&generation.stop, model.tokenizer());
    let mut ends: Vec<u32> = stops.tokens().to_vec();
    ends.extend((!generation.ignore_eos).then_some(END));
    let rules = Rules {
        tokenizer: model.tokenizer().clone(),
        stops,
        include_stop: generation.include_stop,
        shown: generation.shown.clone(),
        max_tokens: generation.max_tokens,
    };
    let mut assembler = Assembler::new(choice, Arc::new(rules));
    let prompt = &generation.prompts[0].tokens;
    let mut events = Vec::new();
    let mut digest = model::digest_all(prompt);
    if generation.echo > 0 {
        let from = prompt.len().saturating_sub(generation.echo as usize);
        let scores: Vec<Logprobs> = match generation.logprobs {
            None => Vec::new(),
            Some(_) => (from.max(1)..prompt.len())
                .map(|at| model::score(model::digest_all(&prompt[..at]), prompt[at]))
                .collect(),
        };
        assembler.echo(prompt, from, None, &scores);
    }
    if generation.max_tokens == 0 {
        events.extend(assembler.push(Step::default()));
    }
    if generation.task == Task::Embed {
        events.iter_mut().for_each(|event| event.embedding = vec![(digest >> 40) as f32]);
    }
    let wire = Wire { mirostat_target: generation.sampling.mirostat.map(|m| m.target), ..Default::default() };
    let mut mirostat = model::first_state(None, &wire);
    let mut generated = 0;
    while !assembler.is_finished() {
        let banned = generated < generation.min_tokens && !ends.is_empty();
        let token = model::draw(digest, generation.sampling.seed, choice, mirostat, banned);
        let logprobs: Vec<_> = generation.logprobs.map(|_| model::score(digest, token)).into_iter().collect();
        generated += 1;
        let stops = generated > generation.min_tokens && ends.contains(&token);
        let end = match (stops, prompt.len() + generated as usize >= CONTEXT) {
            (true, _) => Some(Reason::Stop),
            (false, true) => Some(Reason::Length),
            (false, false) => None,
        };
        events.extend(assembler.push(Step {
            tokens: &[token],
            logprobs: &logprobs,
            end,
            cached_tokens: None,
        }));
        digest = model::digest(digest, token);
        mirostat = mirostat.map(|state| model::next_state(state, token));
    }
    events
}
