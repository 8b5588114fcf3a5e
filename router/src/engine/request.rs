//! A live request: one prompt, its choices, and the log of what was received for it.
//!
//! The log is what lets a request move: resubmitted with its generated tokens, it goes on elsewhere with the
//! very tokens that it would have had.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::{
    sync::mpsc,
    time::{Duration, Instant},
};
use volley_proto::v1::{
    self, Failure, FinishReason, Kind, Logprobs, ScoreRange, SequenceOutput, Submission, failure,
};

use super::{
    StartError, StreamError,
    link::{Link, Order},
};
use crate::{
    generation::{Delta, Generation, Reason, Task},
    text::{
        assembler::{Assembler, Rules, Step},
        model::Model,
        stop::Stops,
    },
};

/// What a request's outputs go to: batches, or why there are no more.
pub(crate) type Out = mpsc::Sender<Result<Vec<Delta>, StartError>>;

/// One prompt of a generation, on its way.
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) model: Arc<Model>,
    pub(crate) out: Out,
    /// Says why, where `out` was too full to.
    pub(crate) failure: Arc<OnceLock<StreamError>>,
    header: Submission,
    prompt: Arc<[u32]>,
    /// The first prompt token that is echoed, if any is.
    echo_from: usize,
    live: Mutex<Live>,
}

struct Live {
    place: Place,
    /// Outputs of older attempts are dropped.
    attempt: u32,
    /// Those that count: away from a scheduler that was lost, not from one that lost its workers.
    moves: u32,
    /// Worker deaths that it may be the reason of, by its last scheduler's account.
    deaths: u32,
    /// Since when it has been nowhere although it should be somewhere.
    placeless: Option<Instant>,
    /// What its scheduler had said of its models when it was given this: [`Link::lists`].
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
enum Place {
    /// On its way to a scheduler.
    Nowhere,
    /// Submitted there.
    On(Arc<Link>),
    /// Finished, failed or cancelled.
    Ended,
}

struct Choice {
    assembler: Assembler,
    log: Vec<u32>,
    /// The sampler's state after the log.
    mirostat: Option<f32>,
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
pub(crate) enum Taken {
    /// It goes on; `admitted`: this was the first word about it.
    Running { admitted: bool },
    /// Every choice has finished.
    Finished,
    /// The scheduler has no worker for it: another may. `unannounced`: it hasn't said meanwhile that its models
    /// changed.
    Displaced { unannounced: bool },
    /// It can't go on.
    Failed(StartError),
}

// === impl Request ===

impl Request {
    /// The request for prompt `index` of a generation.
    pub(crate) fn new(
        id: u64,
        model: Arc<Model>,
        generation: &Generation,
        index: usize,
        out: Out,
        failure: Arc<OnceLock<StreamError>>,
    ) -> Self {
        let prompt: Arc<[u32]> = generation.prompts[index].tokens.as_slice().into();
        let stops = Stops::new(&generation.stop, model.tokenizer());
        let echo_from = prompt.len().saturating_sub(generation.echo as usize);
        let header = header(&model, generation, &stops, prompt.len(), echo_from);
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
                early: Vec::new(),
                over: false,
            })
            .collect();
        let scores = header.score.map_or(0, |range| prompt.len() - range.from as usize);
        let echo = (generation.echo > 0).then(|| Echo { scores, source: None, log: Vec::new() });
        let live = Live {
            place: Place::Nowhere,
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
        Self { id, model, out, failure, header, prompt, echo_from, live: Mutex::new(live) }
    }

    /// Whether there is anything to compute.
    pub(crate) fn needs_scheduler(&self) -> bool {
        self.header.max_tokens > 0 || self.header.score.is_some() || self.header.kind() == Kind::Embed
    }

    /// Finishes what needs no scheduler.
    pub(crate) fn finish_locally(&self) -> Vec<Delta> {
        let mut live = self.live();
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
    pub(crate) fn place_on(&self, link: &Arc<Link>) -> bool {
        let mut live = self.live();
        if !matches!(live.place, Place::Nowhere) {
            return true;
        }
        let (order, lists) = (self.order(&live), link.lists());
        let placed = link.submit(order);
        if placed {
            (live.place, live.lists) = (Place::On(link.clone()), lists);
            let waited = live.placeless.take().map_or(Duration::ZERO, |since| since.elapsed());
            live.waited += waited;
        }
        placed
    }

    /// Until when it may go without a place, if it may for `bound` between two outputs.
    pub(crate) fn deadline(&self, bound: Duration) -> Instant {
        let mut live = self.live();
        let since = *live.placeless.get_or_insert_with(Instant::now);
        since + bound.saturating_sub(live.waited)
    }

    /// Takes an output of the scheduler and adds what it gives to `batch`.
    pub(crate) fn take(&self, output: SequenceOutput, batch: &mut Vec<Delta>) -> Taken {
        let mut live = self.live();
        let Place::On(link) = &live.place else { return Taken::Running { admitted: false } };
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
            live.place = Place::Ended;
            link.cancel(self.id, live.attempt, None);
            return Taken::Failed(start_error(failure));
        }
        live.waited = Duration::ZERO;
        let first = !std::mem::replace(&mut live.admitted, true);
        live.cached_tokens = live.cached_tokens.or(output.cached_tokens);
        let choice = output.choice as usize;
        live.choices[choice].over |= output.finish() != FinishReason::Unspecified;
        if live.echo.is_some() {
            if let Err(error) = self.take_echo(&mut live, output, batch) {
                live.place = Place::Ended;
                link.cancel(self.id, live.attempt, None);
                return Taken::Failed(error);
            }
        } else {
            let cached_tokens = live.cached_tokens;
            batch.extend(live.choices[choice].take(output, cached_tokens));
        }
        if live.choices.iter().all(|choice| choice.assembler.is_finished()) {
            live.place = Place::Ended;
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
    fn take_echo(
        &self,
        live: &mut Live,
        mut output: SequenceOutput,
        batch: &mut Vec<Delta>,
    ) -> Result<(), StartError> {
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
                batch.extend(choice.take(output, cached_tokens));
            }
            if self.header.kind() == Kind::Score {
                batch.extend(choice.assembler.push(Step { cached_tokens, ..Step::default() }));
            }
        }
        Ok(())
    }

    /// Takes it off `link`, where it can't go on. `None` if it isn't there; else how many moves of it count,
    /// this one if `counts`.
    pub(crate) fn leave(&self, link: &Arc<Link>, counts: bool) -> Option<u32> {
        let mut live = self.live();
        if !matches!(&live.place, Place::On(at) if Arc::ptr_eq(at, link)) {
            return None;
        }
        live.moves += u32::from(counts);
        live.unplace();
        Some(live.moves)
    }

    /// Stops its generation until [`Request::place_on`]: a slow client's sequence is not run further ahead.
    pub(crate) fn pause(&self) {
        let mut live = self.live();
        if let Place::On(link) = &live.place {
            link.cancel(self.id, live.attempt, None);
            live.unplace();
        }
    }

    /// Ends it wherever it is.
    pub(crate) fn end(&self) {
        let mut live = self.live();
        if let Place::On(link) = &live.place {
            link.cancel(self.id, live.attempt, None);
        }
        live.place = Place::Ended;
    }

    /// The submission as of now: choices that have not finished, each with its log.
    fn order(&self, live: &Live) -> Order {
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
        Order { request: self.id, attempt: live.attempt, header, prompt: self.prompt.clone() }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Live ===

impl Live {
    fn unplace(&mut self) {
        self.place = Place::Nowhere;
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
    fn take(&mut self, output: SequenceOutput, cached_tokens: Option<u32>) -> Option<Delta> {
        if self.assembler.is_finished() {
            return None;
        }
        self.log.extend_from_slice(&output.tokens);
        self.mirostat = output.mirostat.or(self.mirostat);
        let end = match output.finish() {
            FinishReason::Unspecified => None,
            FinishReason::Stop => Some(Reason::Stop),
            FinishReason::Length => Some(Reason::Length),
        };
        let step = Step { tokens: &output.tokens, logprobs: &output.logprobs, end, cached_tokens };
        let delta = self.assembler.push(step)?;
        Some(Delta { embedding: output.embedding, ..delta })
    }
}

fn header(
    model: &Model,
    generation: &Generation,
    stops: &Stops,
    prompt_tokens: usize,
    echo_from: usize,
) -> Submission {
    let card = &model.card;
    let end_tokens = if generation.ignore_eos { &[] } else { card.stop_tokens.as_slice() };
    // The prompt's first token has no log-probability.
    let from = echo_from.max(1);
    let alternatives = generation.logprobs.filter(|_| generation.echo > 0 && from < prompt_tokens);
    Submission {
        request_id: generation.id.clone(),
        model_hash: card.hash.clone(),
        kind: match generation.task {
            Task::Embed => Kind::Embed,
            Task::Generate if generation.max_tokens == 0 => Kind::Score,
            Task::Generate => Kind::Generate,
        }
        .into(),
        sampling: Some(sampling(generation)),
        max_tokens: generation.max_tokens,
        min_tokens: generation.min_tokens,
        stop_tokens: end_tokens.iter().chain(stops.tokens()).copied().collect(),
        score: alternatives.map(|alternatives| ScoreRange { from: from as u32, alternatives }),
        tenant: generation.tenant.clone(),
        priority: generation.priority,
        session: generation.session,
        cache_salt: generation.cache_salt.clone(),
        max_cached_tokens: generation.max_cached_tokens,
        traceparent: generation.traceparent.clone(),
        grammar: generation.grammar.as_ref().map(|grammar| grammar.text().to_owned()),
        ..Submission::default()
    }
}

fn sampling(generation: &Generation) -> v1::Sampling {
    let sampling = &generation.sampling;
    let (bias_tokens, bias_values) = sampling.bias.iter().copied().unzip();
    v1::Sampling {
        temperature: sampling.temperature,
        top_p: (sampling.top_p < 1.0).then_some(sampling.top_p),
        top_k: (sampling.top_k > 0).then_some(sampling.top_k),
        min_p: (sampling.min_p > 0.0).then_some(sampling.min_p),
        typical_p: (sampling.typical_p < 1.0).then_some(sampling.typical_p),
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        repetition_penalty: (sampling.repetition_penalty != 1.0).then_some(sampling.repetition_penalty),
        bias_tokens,
        bias_values,
        mirostat_target: sampling.mirostat.map(|mirostat| mirostat.target),
        mirostat_rate: sampling.mirostat.map(|mirostat| mirostat.rate),
        seed: sampling.seed,
        logprobs: generation.logprobs,
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
