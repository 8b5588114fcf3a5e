//! What all text endpoints' answers have in common: their frame, and how they are filled, at once or in chunks.

use std::marker::PhantomData;

use serde::Serialize;

use super::{
    extras::{Extras, PerfMetrics, PromptIds, RawOutput, generated},
    hints::ServedTier,
    listen::{Hearing, Listener, Saying},
    logprobs::{self, View},
    parameters::{LogprobsFormat, UsageAt},
    resume::Marks,
    usage::{Tally, Usage},
};
use crate::{
    generation::{Delta, Finish, Reason, Token},
    http::sse::{Events, Outbox},
    text::output::Part,
};

/// The most log-probabilities in a chunk, bytes of JSON.
const LOGPROBS: usize = 24 << 10;

/// The shapes of one endpoint's answers.
pub(crate) trait Shape: Send + Unpin + 'static {
    /// What ids begin with.
    const ID: &'static str;
    /// The answer's `object`.
    const OBJECT: &'static str;
    /// A chunk's `object`.
    const CHUNK: &'static str;
    /// Whether a stream opens each choice with a chunk of its own.
    const OPENS: bool;
    /// The `finish_reason` of a choice that ended in tool calls.
    const CALLED: &'static str;
    /// The keys of a choice that are the endpoint's own.
    type Body<'a>: Serialize;

    /// Words a choice's text.
    fn body(said: Said<'_>) -> Self::Body<'_>;
}

/// What an answer or a chunk says of a choice's text.
#[derive(Clone, Copy)]
pub(crate) enum Said<'a> {
    /// All of it: an answer.
    Whole(&'a Saying),
    /// It begins.
    Open,
    /// It goes on.
    More(Piece<'a>),
    /// Nothing: a sign of life, or the end.
    Nothing,
}

/// How a choice goes on.
#[derive(Clone, Copy)]
pub(crate) enum Piece<'a> {
    /// Perhaps by no text, with log-probabilities.
    Content(&'a str),
    Reasoning(&'a str),
    /// The `index`-th tool call begins.
    Call {
        index: u32,
        id: &'a str,
        name: &'a str,
    },
    /// More of its arguments.
    Arguments {
        index: u32,
        text: &'a str,
    },
}

/// A choice of an answer or of a chunk.
#[derive(Serialize)]
struct Choice<'a, B> {
    index: u32,
    #[serde(flatten)]
    body: B,
    logprobs: Option<View<'a>>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_output: Option<RawOutput<'a>>,
}

/// What every chunk repeats, and what some add.
pub(crate) struct Head {
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// As the request spelled it.
    pub model: String,
    pub fingerprint: String,
    pub logprobs: Option<LogprobsFormat>,
    /// Of a request that named one.
    pub service_tier: Option<ServedTier>,
    pub extras: Extras,
}

/// An answer or a chunk.
#[derive(Serialize)]
struct Frame<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [C],
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<ServedTier>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<PromptIds<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perf_metrics: Option<PerfMetrics>,
}

/// A choice of an answer in the making.
pub(crate) struct Answer {
    listener: Listener,
    saying: Saying,
    tokens: Vec<Token>,
    reason: Option<Reason>,
    /// Sum of the log-probabilities of what was generated, and of how many tokens.
    logprobs: (f64, u32),
}

/// Turns deltas into the events of a stream.
pub(crate) struct Chunks<S> {
    head: Head,
    usage_at: UsageAt,
    tally: Tally,
    /// Of each choice.
    listeners: Vec<Listener>,
    /// Per choice all its tokens, where something tells of them at its end.
    kept: Vec<Vec<Token>>,
    /// Of a stream that can be resumed.
    marks: Option<Marks>,
    shape: PhantomData<S>,
}

// === impl Head ===

impl Head {
    fn frame<'a, C>(&'a self, object: &'static str, choices: &'a [C], usage: Option<Usage>) -> Frame<'a, C> {
        Frame {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
            service_tier: self.service_tier,
            prompt_token_ids: None,
            perf_metrics: None,
        }
    }

    /// Whether tokens are told of as they come.
    pub(crate) fn tells_tokens(&self) -> bool {
        self.logprobs.is_some() || self.extras.report().token_ids
    }

    /// The whole answer.
    pub(crate) fn answer<S: Shape>(&self, answers: &[Answer], tally: &Tally) -> String {
        let per_prompt = (answers.len() / tally.prompts()).max(1);
        let choices: Vec<_> = (0..)
            .zip(answers)
            .map(|(index, answer)| Choice {
                logprobs: View::new(self.logprobs, &answer.tokens),
                finish_reason: Some(spell::<S>(answer.reason, answer.listener.called())),
                token_ids: self.extras.token_ids(&answer.tokens),
                raw_output: self.extras.raw_output(
                    index as usize / per_prompt,
                    &answer.tokens,
                    self.logprobs,
                ),
                ..choice::<S>(index, Said::Whole(&answer.saying))
            })
            .collect();
        crate::http::json::line(&Frame {
            prompt_token_ids: self.extras.prompt_token_ids(),
            perf_metrics: self.extras.perf_metrics(tally),
            ..self.frame(S::OBJECT, &choices, Some(tally.usage()))
        })
    }
}

fn choice<'a, S: Shape>(index: u32, said: Said<'a>) -> Choice<'a, S::Body<'a>> {
    Choice {
        index,
        body: S::body(said),
        logprobs: None,
        finish_reason: None,
        token_ids: None,
        raw_output: None,
    }
}

/// An answer is only sent when every choice has a reason. Calls that were cut have arguments that are no JSON, and
/// the reason says so.
fn spell<S: Shape>(reason: Option<Reason>, called: bool) -> &'static str {
    match reason {
        Some(Reason::Length) => "length",
        Some(Reason::Stop) | None if called => S::CALLED,
        Some(Reason::Stop) | None => "stop",
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn new(listener: Listener) -> Self {
        Self { listener, saying: Saying::default(), tokens: Vec::new(), reason: None, logprobs: (0.0, 0) }
    }

    /// Tokens of reasoning in it.
    pub(crate) fn reasoning_tokens(&self) -> u32 {
        self.listener.reasoning_tokens()
    }

    /// Takes a delta in, and says how the choice ended if it did.
    pub(crate) fn extend(&mut self, mut delta: Delta, keep_tokens: bool) -> Option<Finish> {
        let parts = self.listener.hear(&mut delta);
        self.saying.extend(parts, &self.listener);
        for logprob in generated(&delta.tokens).iter().filter_map(|token| token.logprob) {
            self.logprobs.0 += f64::from(logprob);
            self.logprobs.1 += 1;
        }
        if keep_tokens {
            self.tokens.extend(delta.tokens);
        }
        self.reason = self.reason.or(delta.finish.map(|finish| finish.reason));
        delta.finish
    }

    /// How likely it was, by token.
    pub(crate) fn mean_logprob(&self) -> Option<f64> {
        let (sum, tokens) = self.logprobs;
        (tokens > 0).then(|| sum / f64::from(tokens))
    }
}

// === impl Chunks ===

impl<S: Shape> Chunks<S> {
    pub(crate) fn new(
        head: Head,
        usage_at: UsageAt,
        tally: Tally,
        hearing: &Hearing,
        marks: Option<Marks>,
    ) -> Self {
        let listeners = (0..tally.choices()).map(|choice| Listener::of(hearing, &head.id, choice)).collect();
        let keeping = if head.extras.report().keeps_tokens() { tally.choices() } else { 0 };
        let kept = (0..keeping).map(|_| Vec::new()).collect();
        Self { head, usage_at, tally, listeners, kept, marks, shape: PhantomData }
    }

    /// A delta's parts and log-probabilities, in as many chunks as keep each line short.
    fn parts(&mut self, choice_index: u32, parts: &[Part], tokens: &[Token], out: &mut Outbox) {
        let Self { head, listeners, marks, .. } = self;
        let mut tokens: &[Token] = if head.tells_tokens() { tokens } else { &[] };
        let listener = listeners.get(choice_index as usize);
        let mut said = |piece: Piece<'_>, tokens: &mut &[Token], out: &mut Outbox| {
            let (some, more) = tokens.split_at(fitting(tokens));
            *tokens = more;
            let logprobs = if some.is_empty() { None } else { View::new(head.logprobs, some) };
            let token_ids = head.extras.token_ids(some);
            let said = Choice { logprobs, token_ids, ..choice::<S>(choice_index, Said::More(piece)) };
            write(marks, choice_index, &head.frame(S::CHUNK, &[said], None), out);
        };
        for part in parts {
            let (text, index) = match part {
                Part::Reasoning(text) | Part::Content(text) => (text.as_str(), 0),
                Part::Arguments { index, text } => (text.as_str(), *index),
                Part::Call { index, name } => {
                    let id = listener.map(|listener| listener.id(*index)).unwrap_or_default();
                    said(Piece::Call { index: *index, id: &id, name }, &mut tokens, out);
                    continue;
                }
            };
            for piece in crate::http::json::pieces(text) {
                let piece = match part {
                    Part::Reasoning(_) => Piece::Reasoning(piece),
                    Part::Arguments { .. } => Piece::Arguments { index, text: piece },
                    _ => Piece::Content(piece),
                };
                said(piece, &mut tokens, out);
            }
        }
        while !tokens.is_empty() {
            said(Piece::Content(""), &mut tokens, out);
        }
    }

    fn finish(&mut self, index: u32, finish: Finish, out: &mut Outbox) {
        self.tally.finish(index, finish);
        let last = self.tally.first_running().is_none();
        if last {
            self.tally.record();
        }
        let usage = (last && self.usage_at == UsageAt::LastFinish).then(|| self.tally.usage());
        let Head { extras, logprobs, .. } = &self.head;
        let kept = self.kept.get(index as usize).map_or(&[][..], Vec::as_slice);
        let called = self.listeners.get(index as usize).is_some_and(Listener::called);
        let end = [Choice {
            finish_reason: Some(spell::<S>(Some(finish.reason), called)),
            raw_output: extras.raw_output(self.tally.prompt_of(index), kept, *logprobs),
            ..choice::<S>(index, Said::Nothing)
        }];
        let perf_metrics = if last { extras.perf_metrics(&self.tally) } else { None };
        let frame = Frame { perf_metrics, ..self.head.frame(S::CHUNK, &end, usage) };
        write(&mut self.marks, index, &frame, out);
        if last && self.usage_at == UsageAt::OwnChunk {
            let none: [Choice<'_, S::Body<'_>>; 0] = [];
            out.event(&self.head.frame(S::CHUNK, &none, Some(self.tally.usage())));
        }
    }
}

/// Writes a chunk of a choice, unless the client has it.
fn write(marks: &mut Option<Marks>, choice: u32, frame: &impl Serialize, out: &mut Outbox) {
    if marks.as_mut().is_none_or(|marks| marks.count(choice, out)) {
        out.event(frame);
    }
}

/// How many tokens' log-probabilities a chunk takes; at least one.
fn fitting(tokens: &[Token]) -> usize {
    let mut size = 0;
    let fit = tokens.iter().take_while(|token| {
        size += logprobs::size(token);
        size <= LOGPROBS
    });
    fit.count().max(1).min(tokens.len())
}

impl<S: Shape> Events for Chunks<S> {
    fn open(&mut self, out: &mut Outbox) {
        let mut prompt_token_ids = self.head.extras.prompt_token_ids();
        let opening = match (S::OPENS, &prompt_token_ids) {
            (true, _) => self.tally.choices(),
            (false, Some(_)) => 1,
            (false, None) => 0,
        };
        for index in 0..opening {
            let open = [choice::<S>(index, Said::Open)];
            let prompt_token_ids = prompt_token_ids.take();
            let frame = Frame { prompt_token_ids, ..self.head.frame(S::CHUNK, &open, None) };
            write(&mut self.marks, index, &frame, out);
        }
    }

    fn delta(&mut self, mut delta: Delta, out: &mut Outbox) {
        let Some(listener) = self.listeners.get_mut(delta.choice as usize) else { return };
        let before = listener.reasoning_tokens();
        let parts = listener.hear(&mut delta);
        self.tally.reason(listener.reasoning_tokens() - before);
        self.parts(delta.choice, &parts, &delta.tokens, out);
        let Delta { choice, tokens, finish, guessed, .. } = delta;
        self.tally.guess(&guessed);
        if let Some(kept) = self.kept.get_mut(choice as usize) {
            kept.extend(tokens);
        }
        if let Some(finish) = finish {
            self.finish(choice, finish, out);
        }
    }

    fn silence(&mut self, out: &mut Outbox) {
        if let Some(index) = self.tally.first_running() {
            out.event(&self.head.frame(S::CHUNK, &[choice::<S>(index, Said::Nothing)], None));
        }
    }

    fn complete(&self) -> bool {
        self.tally.first_running().is_none()
    }
}
