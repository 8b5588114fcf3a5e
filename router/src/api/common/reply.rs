//! What all text endpoints' answers have in common: their frame, and how they are filled, at once or in chunks.

use std::marker::PhantomData;

use serde::Serialize;

use super::{
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
}

/// What every chunk repeats.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// As the request spelled it.
    pub model: String,
    pub fingerprint: String,
    pub logprobs: Option<LogprobsFormat>,
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
}

/// A choice of an answer in the making.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    text: String,
    tokens: Vec<Token>,
    reason: Option<Reason>,
}

/// Turns deltas into the events of a stream.
pub(crate) struct Chunks<S> {
    head: Head,
    usage_at: UsageAt,
    tally: Tally,
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
        }
    }

    /// The whole answer.
    pub(crate) fn answer<S: Shape>(&self, answers: &[Answer], tally: &Tally) -> String {
        let choices: Vec<_> = (0..)
            .zip(answers)
            .map(|(index, answer)| {
                let logprobs = View::new(self.logprobs, &answer.tokens);
                let finish_reason = Some(spell(answer.reason));
                Choice { logprobs, finish_reason, ..choice::<S>(index, Said::Whole(&answer.text)) }
            })
            .collect();
        crate::http::json::line(&self.frame(S::OBJECT, &choices, Some(tally.usage())))
    }
}

fn choice<'a, S: Shape>(index: u32, said: Said<'a>) -> Choice<'a, S::Body<'a>> {
    Choice { index, body: S::body(said), logprobs: None, finish_reason: None }
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
        if keep_tokens {
            self.tokens.extend(delta.tokens);
        }
        self.reason = self.reason.or(delta.finish.map(|finish| finish.reason));
        delta.finish
    }
}

// === impl Chunks ===

impl<S: Shape> Chunks<S> {
    pub(crate) fn new(head: Head, usage_at: UsageAt, tally: Tally) -> Self {
        Self { head, usage_at, tally, shape: PhantomData }
    }

    fn chunk(&self, choice: Choice<'_, S::Body<'_>>, usage: Option<Usage>, out: &mut Outbox) {
        out.event(&self.head.frame(S::CHUNK, &[choice], usage));
    }

    /// A delta's text and log-probabilities, in as many chunks as keep each line short.
    fn text(&self, delta: &Delta, out: &mut Outbox) {
        let tokens: &[Token] = if self.head.logprobs.is_some() { &delta.tokens } else { &[] };
        let (mut text, mut tokens) = (delta.text.as_str(), tokens);
        while !text.is_empty() || !tokens.is_empty() {
            let (piece, rest) = crate::http::json::split(text, TEXT);
            let (some, more) = tokens.split_at(fitting(tokens));
            (text, tokens) = (rest, more);
            let logprobs = if some.is_empty() { None } else { View::new(self.head.logprobs, some) };
            self.chunk(Choice { logprobs, ..choice::<S>(delta.choice, Said::More(piece)) }, None, out);
        }
    }

    fn finish(&mut self, index: u32, finish: Finish, out: &mut Outbox) {
        self.tally.finish(index, finish);
        let last = self.tally.first_running().is_none();
        if last {
            self.tally.record();
        }
        let usage = (last && self.usage_at == UsageAt::LastFinish).then(|| self.tally.usage());
        let finish_reason = Some(spell(Some(finish.reason)));
        self.chunk(Choice { finish_reason, ..choice::<S>(index, Said::Nothing) }, usage, out);
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
        if S::OPENS {
            (0..self.tally.choices()).for_each(|index| self.chunk(choice::<S>(index, Said::Open), None, out));
        }
    }

    fn delta(&mut self, delta: Delta, out: &mut Outbox) {
        self.text(&delta, out);
        if let Some(finish) = delta.finish {
            self.finish(delta.choice, finish, out);
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
