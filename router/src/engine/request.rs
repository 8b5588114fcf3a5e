//! A live request: one prompt, its choices, and the log of what was received for it.
//!
//! The log is what lets a request move: resubmitted with its generated tokens, it goes on elsewhere with the
//! very tokens that it would have had.
//!
//! Pure: links are behind [`Place`], the time is told. The engine runs it on real links, the cluster simulator
//! (`tests/simulator`) on simulated ones.

mod submission;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use volley_proto::v1::{self, Failure, FinishReason, Kind, Logprobs, SequenceOutput, Submission, failure};

use super::StartError;
use crate::{
    generation::{Delta, Generation, Guessed, Reason},
    text::{
        assembler::{Assembler, Rules, Step},
        model::Model,
        stop::Stops,
    },
};

/// Where a request can be: a link to a scheduler. Clones are the same one.
pub trait Place: Clone {
    /// Queues a submission. False: too much waits already, or the link is broken.
    fn submit(&self, order: Order) -> bool;
    /// Cancels a choice, or all of a request, as submitted up to `attempt`.
    fn cancel(&self, request: u64, attempt: u32, choice: Option<u32>);
    /// How often the scheduler has said what it serves.
    fn lists(&self) -> u64;
    /// Whether it is the same.
    fn is(&self, other: &Self) -> bool;
}

/// A request to submit.
pub struct Order {
    /// The router's number for it.
    pub request: u64,
    /// Grows with every submission of it.
    pub attempt: u32,
    /// All but the prompt.
    pub header: Submission,
    /// The prompt's tokens.
    pub prompt: Arc<[u32]>,
}

/// One prompt of a generation, on its way.
pub struct Request<P> {
    id: u64,
    model: Arc<Model>,
    header: Submission,
    prompt: Arc<[u32]>,
    /// The first prompt token that is echoed, if any is.
    echo_from: usize,
    /// No use for an answer after this.
    deadline: Option<Instant>,
    live: Live<P>,
}

struct Live<P> {
    at: At<P>,
    /// Outputs of older attempts are dropped.
    attempt: u32,
    /// Those that count: away from a scheduler that was lost, not from one that lost its workers.
    moves: u32,
    /// Worker deaths that it may be the reason of, by its last scheduler's account.
    deaths: u32,
    /// Since when it has been nowhere although it should be somewhere.
    placeless: Option<Instant>,
    /// What its scheduler had said of its models when it was given this: [`Place::lists`].
    lists: u64,
    /// How long it has been so before, since its last output.
    waited: Duration,
    admitted: bool,
    cached_tokens: Option<u32>,
    choices: Vec<Choice>,
    /// The prompt, until it is echoed.
    echo: Option<Echo>,
}

/// Where a request is.
enum At<P> {
    /// On its way to a scheduler.
    Nowhere,
    /// Submitted there.
    On(P),
    /// Finished, failed or cancelled.
    Ended,
}

struct Choice {
    assembler: Assembler,
    log: Vec<u32>,
    /// The sampler's state after the log.
    mirostat: Option<f32>,
    guessed: Guessed,
    /// Outputs that came before the echo was complete.
    early: Vec<SequenceOutput>,
    /// The scheduler has ended it, or was told to.
    over: bool,
}

/// An echo that waits for the first output, and for the prompt's log-probabilities where they were asked for.
struct Echo {
    /// How many there will be.
    scores: usize,
    /// Which choice reports them: they are the same for all, the first to report is taken.
    source: Option<u32>,
    log: Vec<Logprobs>,
}

/// What an output means for its request.
#[derive(Debug)]
pub enum Taken {
    /// It goes on.
    Running {
        /// This was the first word about it.
        admitted: bool,
    },
    /// Every choice has finished.
    Finished,
    /// The scheduler has no worker for it: another may.
    Displaced {
        /// It hasn't said meanwhile that its models changed.
        unannounced: bool,
    },
    /// It can't go on.
    Failed(StartError),
}

/// What became of a request that was to leave a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It wasn't there.
    Elsewhere,
    /// It needs another place.
    Moves,
    /// It has moved as often as it may.
    TooOften,
}

// === impl Request ===

impl<P: Place> Request<P> {
    /// The request for prompt `index` of a generation.
    pub fn new(id: u64, model: Arc<Model>, generation: &Generation, index: usize) -> Self {
        let prompt: Arc<[u32]> = generation.prompts[index].tokens.as_slice().into();
        let stops = Stops::new(&generation.stop, model.tokenizer());
        let echo_from = prompt.len().saturating_sub(generation.echo as usize);
        let header = submission::header(&model, generation, &stops, prompt.len(), echo_from);
        let rules = Arc::new(Rules {
            tokenizer: model.tokenizer().clone(),
            stops,
            include_stop: generation.include_stop,
            shown: generation.shown.clone(),
            max_tokens: generation.max_tokens,
        });
        let first = index as u32 * generation.n;
        let choices = (first..first + generation.n)
            .map(|choice| Choice {
                assembler: Assembler::new(choice, rules.clone()),
                log: Vec::new(),
                mirostat: None,
                guessed: Guessed::default(),
                early: Vec::new(),
                over: false,
            })
            .collect();
        let scores = header.score.map_or(0, |range| prompt.len() - range.from as usize);
        let echo = (generation.echo > 0).then(|| Echo { scores, source: None, log: Vec::new() });
        let live = Live {
            at: At::Nowhere,
            attempt: 0,
            moves: 0,
            deaths: 0,
            placeless: None,
            lists: 0,
            waited: Duration::ZERO,
            admitted: false,
            cached_tokens: None,
            choices,
            echo,
        };
        Self { id, model, header, prompt, echo_from, deadline: generation.deadline, live }
    }

    /// The router's number for it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The model that it is pinned to, by content.
    pub fn model_hash(&self) -> &str {
        &self.model.card.hash
    }

    /// Whether there is anything to compute.
    pub fn needs_scheduler(&self) -> bool {
        self.header.max_tokens > 0 || self.header.score.is_some() || self.header.kind() == Kind::Embed
    }

    /// Finishes what needs no scheduler.
    pub fn finish_locally(&mut self) -> Vec<Delta> {
        let live = &mut self.live;
        let echo = live.echo.take();
        let finish = |choice: &mut Choice| {
            if echo.is_some() {
                choice.assembler.echo(&self.prompt, self.echo_from, self.model.card.bos_token, &[]);
            }
            choice.assembler.push(Step::default())
        };
        live.choices.iter_mut().filter_map(finish).collect()
    }

    /// Submits on `link`. False if the link refused it; an ended request counts as placed.
    pub fn place_on(&mut self, link: &P, now: Instant) -> bool {
        if !matches!(self.live.at, At::Nowhere) {
            return true;
        }
        let (order, lists) = (self.order(now), link.lists());
        let placed = link.submit(order);
        if placed {
            let live = &mut self.live;
            (live.at, live.lists) = (At::On(link.clone()), lists);
            let since = live.placeless.take();
            live.waited += since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        }
        placed
    }

    /// Until when it may go without a place, if it may for `bound` between two outputs.
    pub fn deadline(&mut self, bound: Duration, now: Instant) -> Instant {
        let live = &mut self.live;
        let since = *live.placeless.get_or_insert(now);
        let patience = since + bound.saturating_sub(live.waited);
        self.deadline.map_or(patience, |deadline| deadline.min(patience))
    }

    /// Whether nobody has use for its answer any more. While it is on a link, that is for the scheduler to say.
    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Takes an output of the scheduler and adds what it gives to `batch`.
    pub fn take(&mut self, output: SequenceOutput, batch: &mut Vec<Delta>) -> Taken {
        let live = &mut self.live;
        let At::On(link) = &live.at else { return Taken::Running { admitted: false } };
        if output.attempt != live.attempt || output.choice as usize >= live.choices.len() {
            return Taken::Running { admitted: false };
        }
        let link = link.clone();
        if let Some(failure) = output.failure {
            if failure.reason() == failure::Reason::NoWorker {
                // The scheduler has counted what it was told of, and forgets what is explained.
                live.deaths = failure.deaths;
                return Taken::Displaced { unannounced: link.lists() == live.lists };
            }
            live.at = At::Ended;
            link.cancel(self.id, live.attempt, None);
            return Taken::Failed(start_error(failure));
        }
        live.waited = Duration::ZERO;
        let first = !std::mem::replace(&mut live.admitted, true);
        live.cached_tokens = live.cached_tokens.or(output.cached_tokens);
        let choice = output.choice as usize;
        live.choices[choice].over |= output.finish() != FinishReason::Unspecified;
        if live.echo.is_some() {
            if let Err(error) = self.take_echo(output, batch) {
                self.live.at = At::Ended;
                link.cancel(self.id, self.live.attempt, None);
                return Taken::Failed(error);
            }
        } else {
            let cached_tokens = live.cached_tokens;
            live.choices[choice].take(output, cached_tokens, batch);
        }
        let live = &mut self.live;
        if live.choices.iter().all(|choice| choice.assembler.is_finished()) {
            live.at = At::Ended;
            if !live.choices.iter().all(|choice| choice.over) {
                link.cancel(self.id, live.attempt, None);
            }
            return Taken::Finished;
        }
        let attempt = live.attempt;
        for (choice, index) in live.choices.iter_mut().zip(0..) {
            if choice.assembler.is_finished() && !std::mem::replace(&mut choice.over, true) {
                link.cancel(self.id, attempt, Some(index));
            }
        }
        Taken::Running { admitted: first }
    }

    /// Collects an echoed prompt's scores; when they are complete, echoes it and takes what came early.
    fn take_echo(&mut self, mut output: SequenceOutput, batch: &mut Vec<Delta>) -> Result<(), StartError> {
        let live = &mut self.live;
        let Some(echo) = &mut live.echo else { return Ok(()) };
        let from_source = *echo.source.get_or_insert(output.choice) == output.choice;
        if from_source {
            echo.log.append(&mut output.scored);
        }
        let complete = echo.log.len() >= echo.scores;
        if from_source && !complete && output.finish() != FinishReason::Unspecified {
            return Err(StartError::Internal("the prompt's log-probabilities are incomplete".into()));
        }
        live.choices[output.choice as usize].early.push(output);
        if !complete {
            return Ok(());
        }
        let log = live.echo.take().map_or_else(Vec::new, |echo| echo.log);
        let cached_tokens = live.cached_tokens;
        for choice in &mut live.choices {
            choice.assembler.echo(&self.prompt, self.echo_from, self.model.card.bos_token, &log);
            for output in std::mem::take(&mut choice.early) {
                choice.take(output, cached_tokens, batch);
            }
            if self.header.kind() == Kind::Score {
                batch.extend(choice.assembler.push(Step { cached_tokens, ..Step::default() }));
            }
        }
        Ok(())
    }

    /// Takes it off `link`, where it can't go on. Of its moves, this one if `counts`, `max_moves` may count.
    pub fn leave(&mut self, link: &P, counts: bool, max_moves: u32) -> Left {
        let live = &mut self.live;
        if !matches!(&live.at, At::On(at) if at.is(link)) {
            return Left::Elsewhere;
        }
        live.moves += u32::from(counts);
        live.unplace();
        if live.moves > max_moves { Left::TooOften } else { Left::Moves }
    }

    /// Stops its generation until [`Request::place_on`]: a slow client's sequence is not run further ahead.
    pub fn pause(&mut self) {
        let live = &mut self.live;
        if let At::On(link) = &live.at {
            link.cancel(self.id, live.attempt, None);
            live.unplace();
        }
    }

    /// Ends it wherever it is.
    pub fn end(&mut self) {
        let live = &mut self.live;
        if let At::On(link) = &live.at {
            link.cancel(self.id, live.attempt, None);
        }
        live.at = At::Ended;
    }

    /// The submission as of now: choices that have not finished, each with its log.
    fn order(&self, now: Instant) -> Order {
        let live = &self.live;
        let mut header = self.header.clone();
        let choices = live.choices.iter().zip(0..).filter(|(choice, _)| !choice.assembler.is_finished());
        let choices = choices.map(|(choice, index)| v1::Choice {
            index,
            generated: choice.log.clone(),
            mirostat: choice.mirostat,
        });
        // Scores are the same for all choices: one sequence is enough.
        let count = if header.kind() == Kind::Score { 1 } else { live.choices.len() };
        header.choices = choices.take(count).collect();
        header.score = header.score.filter(|_| live.echo.is_some());
        header.deaths = live.deaths;
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        header.timeout_ms = left.map(|left| left.as_millis() as u64);
        Order { request: self.id, attempt: live.attempt, header, prompt: self.prompt.clone() }
    }
}

// === impl Live ===

impl<P> Live<P> {
    fn unplace(&mut self) {
        self.at = At::Nowhere;
        self.attempt += 1;
        // Half a prompt's scores are of no use elsewhere: they start again, and what came early with them.
        if let Some(echo) = &mut self.echo {
            (echo.source, echo.log) = (None, Vec::new());
            for choice in &mut self.choices {
                choice.early.clear();
            }
        }
    }
}

// === impl Choice ===

impl Choice {
    /// A delta per token, so that a stream's events are a function of its tokens, not of when they came.
    fn take(&mut self, output: SequenceOutput, cached_tokens: Option<u32>, batch: &mut Vec<Delta>) {
        if self.assembler.is_finished() {
            return;
        }
        self.log.extend_from_slice(&output.tokens);
        self.mirostat = output.mirostat.or(self.mirostat);
        output.drafted.into_iter().for_each(|drafted| self.guessed.count(drafted));
        let end = match output.finish() {
            FinishReason::Unspecified => None,
            FinishReason::Stop => Some(Reason::Stop),
            FinishReason::Length => Some(Reason::Length),
        };
        let SequenceOutput { tokens, logprobs, embedding, .. } = output;
        if tokens.is_empty() && end.is_none() {
            return; // it only had scores: how many came with it is no matter of the client's
        }
        let last = tokens.len().saturating_sub(1);
        for at in 0..=last {
            let own = at..(at + 1).min(tokens.len());
            let step = Step {
                tokens: &tokens[own.clone()],
                logprobs: logprobs.get(own).unwrap_or_default(),
                end: end.filter(|_| at == last),
                cached_tokens,
            };
            let delta = self.assembler.push(step);
            let guessed = |end: bool| if end { self.guessed } else { Guessed::default() };
            batch.extend(delta.map(|delta| Delta { guessed: guessed(delta.finish.is_some()), ..delta }));
        }
        if let Some(delta) = batch.last_mut().filter(|_| !embedding.is_empty()) {
            delta.embedding = embedding;
        }
    }
}

fn start_error(failure: Failure) -> StartError {
    let retry_after = Duration::from_millis(failure.retry_after_ms.unwrap_or(1000));
    let reason = failure.reason();
    let message = failure.message;
    match reason {
        failure::Reason::Overloaded => StartError::Overloaded { message, retry_after },
        failure::Reason::TooLarge => StartError::TooLarge(message),
        failure::Reason::NoWorker | failure::Reason::GaveUp => {
            StartError::Unavailable { message, retry_after }
        }
        failure::Reason::Deadline => StartError::Deadline,
        failure::Reason::Internal | failure::Reason::Unspecified => StartError::Internal(message),
    }
}

#[cfg(test)]
mod tests;
