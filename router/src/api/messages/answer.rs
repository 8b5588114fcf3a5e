//! An answer in Anthropic's shapes: whole, or as the events of its blocks.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    api::common::{turn::Whole, usage::Tally},
    generation::{Delta, Finish, Reason},
    http::{
        error::ApiError,
        json::{line, split},
        sse::{self, Outbox},
    },
};

/// The most text in an event, bytes.
const TEXT: usize = 4 << 10;

/// What is known of an answer before it begins.
pub(super) struct Head {
    pub id: String,
    /// As the request spelled it.
    pub model: String,
    /// The stop sequences.
    pub stops: Vec<String>,
}

/// Turns deltas into events.
pub(super) struct Events {
    head: Head,
    tally: Tally,
    /// Whether the text's block has begun.
    open: bool,
}

#[derive(Serialize)]
struct Message<'a> {
    id: &'a str,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: &'a [Block<'a>],
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: Usage,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Text { text: &'a str, citations: () },
}

/// What was read from the cache is counted apart.
#[derive(Serialize)]
struct Usage {
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    output_tokens: u64,
}

// === impl Head ===

impl Head {
    /// The whole answer.
    pub(super) fn message(&self, whole: &Whole, tally: &Tally) -> String {
        let block = Block::Text { text: &whole.text, citations: () };
        let content = if whole.text.is_empty() { &[][..] } else { std::slice::from_ref(&block) };
        let (stop_reason, stop_sequence) = self.reason(whole.finish);
        line(&Message { stop_reason: Some(stop_reason), stop_sequence, ..self.frame(content, tally) })
    }

    fn frame<'a>(&'a self, content: &'a [Block<'a>], tally: &Tally) -> Message<'a> {
        Message {
            id: &self.id,
            r#type: "message",
            role: "assistant",
            model: &self.model,
            content,
            stop_reason: None,
            stop_sequence: None,
            usage: usage(tally),
        }
    }

    /// Why it ended, and by which stop sequence.
    fn reason(&self, finish: Finish) -> (&'static str, Option<&str>) {
        let stop = finish.stop.and_then(|stop| self.stops.get(stop as usize));
        match (finish.reason, stop) {
            (Reason::Length, _) => ("max_tokens", None),
            (Reason::Stop, Some(stop)) => ("stop_sequence", Some(stop)),
            (Reason::Stop, None) => ("end_turn", None),
        }
    }
}

fn usage(tally: &Tally) -> Usage {
    let usage = tally.usage();
    Usage {
        input_tokens: usage.prompt_tokens - tally.cached_tokens(),
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: tally.cached_tokens(),
        output_tokens: usage.completion_tokens,
    }
}

// === impl Events ===

impl Events {
    pub(super) fn new(head: Head, tally: Tally) -> Self {
        Self { head, tally, open: false }
    }

    fn say(&mut self, mut text: &str, out: &mut Outbox) {
        if !text.is_empty() && !std::mem::replace(&mut self.open, true) {
            let block = Block::Text { text: "", citations: () };
            send(out, "content_block_start", json!({"index": 0, "content_block": block}));
        }
        while !text.is_empty() {
            let (piece, rest) = split(text, TEXT);
            let delta = json!({"type": "text_delta", "text": piece});
            send(out, "content_block_delta", json!({"index": 0, "delta": delta}));
            text = rest;
        }
    }

    fn finish(&mut self, finish: Finish, out: &mut Outbox) {
        self.tally.finish(0, finish);
        self.tally.record();
        if self.open {
            send(out, "content_block_stop", json!({"index": 0}));
        }
        let (stop_reason, stop_sequence) = self.head.reason(finish);
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        send(out, "message_delta", json!({"delta": delta, "usage": usage(&self.tally)}));
    }
}

/// An event with its own name as its `type`.
fn send(out: &mut Outbox, name: &str, fields: Value) {
    let mut event = json!({"type": name});
    if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
        event.extend(fields);
    }
    out.named(name, &event);
}

impl sse::Events for Events {
    fn open(&mut self, out: &mut Outbox) {
        send(out, "message_start", json!({"message": self.head.frame(&[], &self.tally)}));
    }

    fn delta(&mut self, delta: Delta, out: &mut Outbox) {
        self.say(&delta.text, out);
        if let Some(finish) = delta.finish {
            self.finish(finish, out);
        }
    }

    fn silence(&mut self, out: &mut Outbox) {
        send(out, "ping", json!({}));
    }

    fn complete(&self) -> bool {
        self.tally.first_running().is_none()
    }

    fn end(&mut self, out: &mut Outbox) {
        send(out, "message_stop", json!({}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Outbox) -> bool {
        out.raw("error", &error.anthropic(None));
        true
    }
}
