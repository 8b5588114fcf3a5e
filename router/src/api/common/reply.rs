//! What all text endpoints' answers have in common: their frame, and how they are filled, at once or in chunks.

use std::marker::PhantomData;

use serde::Serialize;

use super::{
    extras::{Extras, PerfMetrics, PromptIds, RawOutput, generated},
    hints::ServedTier,
    logprobs::{self, View},
    parameters::{LogprobsFormat, UsageAt},
    usage::{Tally, Usage},
};
use crate::{
    generation::{Delta, Finish, Reason, Token},
    http::sse::{Events, Outbox},
};

/// The most text in a chunk, bytes: escaped it may be six times as long, and old clients fail at long lines.
const TEXT: usize = 4 << 10;
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
    /// The keys of a choice that are the endpoint's own.
    type Body<'a>: Serialize;

    /// Words a choice's text.
    fn body(said: Said<'_>) -> Self::Body<'_>;
}

/// What an answer or a chunk says of a choice's text.
#[derive(Clone, Copy)]
pub(crate) enum Said<'a> {
    /// All of it: an answer.
    Whole(&'a str),
    /// It begins.
    Open,
    /// It goes on (perhaps by no text, with log-probabilities).
    More(&'a str),
    /// Nothing: a sign of life, or the end.
    Nothing,
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
#[derive(Debug, Default)]
pub(crate) struct Answer {
    text: String,
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
    /// Per choice all its tokens, where something tells of them at its end.
    kept: Vec<Vec<Token>>,
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
                finish_reason: Some(spell(answer.reason)),
                token_ids: self.extras.token_ids(&answer.tokens),
                raw_output: self.extras.raw_output(
                    index as usize / per_prompt,
                    &answer.tokens,
                    self.logprobs,
                ),
                ..choice::<S>(index, Said::Whole(&answer.text))
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

/// An answer is only sent when every choice has a reason.
fn spell(reason: Option<Reason>) -> &'static str {
    match reason {
        Some(Reason::Stop) | None => "stop",
        Some(Reason::Length) => "length",
    }
}

// === impl Answer ===

impl Answer {
    /// Takes a delta in, and says how the choice ended if it did.
    pub(crate) fn extend(&mut self, delta: Delta, keep_tokens: bool) -> Option<Finish> {
        self.text.push_str(&delta.text);
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
    pub(crate) fn new(head: Head, usage_at: UsageAt, tally: Tally) -> Self {
        let keeping = if head.extras.report().keeps_tokens() { tally.choices() } else { 0 };
        let kept = (0..keeping).map(|_| Vec::new()).collect();
        Self { head, usage_at, tally, kept, shape: PhantomData }
    }

    fn chunk(&self, choice: Choice<'_, S::Body<'_>>, usage: Option<Usage>, out: &mut Outbox) {
        out.event(&self.head.frame(S::CHUNK, &[choice], usage));
    }

    /// A delta's text and log-probabilities, in as many chunks as keep each line short.
    fn text(&self, delta: &Delta, out: &mut Outbox) {
        let tokens: &[Token] = if self.head.tells_tokens() { &delta.tokens } else { &[] };
        let (mut text, mut tokens) = (delta.text.as_str(), tokens);
        while !text.is_empty() || !tokens.is_empty() {
            let (piece, rest) = crate::http::json::split(text, TEXT);
            let (some, more) = tokens.split_at(fitting(tokens));
            (text, tokens) = (rest, more);
            let logprobs = if some.is_empty() { None } else { View::new(self.head.logprobs, some) };
            let token_ids = self.head.extras.token_ids(some);
            let said = choice::<S>(delta.choice, Said::More(piece));
            self.chunk(Choice { logprobs, token_ids, ..said }, None, out);
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
        let end = Choice {
            finish_reason: Some(spell(Some(finish.reason))),
            raw_output: extras.raw_output(self.tally.prompt_of(index), kept, *logprobs),
            ..choice::<S>(index, Said::Nothing)
        };
        let perf_metrics = if last { extras.perf_metrics(&self.tally) } else { None };
        out.event(&Frame { perf_metrics, ..self.head.frame(S::CHUNK, &[end], usage) });
        if last && self.usage_at == UsageAt::OwnChunk {
            let none: [Choice<'_, S::Body<'_>>; 0] = [];
            out.event(&self.head.frame(S::CHUNK, &none, Some(self.tally.usage())));
        }
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
            out.event(&Frame { prompt_token_ids, ..self.head.frame(S::CHUNK, &open, None) });
        }
    }

    fn delta(&mut self, delta: Delta, out: &mut Outbox) {
        self.text(&delta, out);
        let Delta { choice, tokens, finish, .. } = delta;
        if let Some(kept) = self.kept.get_mut(choice as usize) {
            kept.extend(tokens);
        }
        if let Some(finish) = finish {
            self.finish(choice, finish, out);
        }
    }

    fn silence(&mut self, out: &mut Outbox) {
        if let Some(index) = self.tally.first_running() {
            self.chunk(choice::<S>(index, Said::Nothing), None, out);
        }
    }

    fn complete(&self) -> bool {
        self.tally.first_running().is_none()
    }
}
