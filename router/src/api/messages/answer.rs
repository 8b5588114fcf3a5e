//! An answer in Anthropic's shapes: whole, or as the events of its blocks.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    api::common::{
        listen::{Call, Hearing, Listener, Saying},
        turn::Whole,
        usage::Tally,
    },
    generation::{Delta, Finish, Reason},
    http::{
        error::ApiError,
        json::{line, pieces},
        sse::{self, Outbox},
    },
    text::output::Part,
};

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
    listener: Listener,
    /// The block that is open.
    open: Option<Kind>,
    /// Blocks that have begun.
    blocks: u32,
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

/// A piece of what is said, whole or as it begins.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Thinking { thinking: &'a str, signature: &'static str },
    Text { text: &'a str, citations: () },
    ToolUse { id: &'a str, name: &'a str, input: Value },
}

/// What goes on in the block that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    Call(u32),
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
        let Saying { reasoning, content, calls } = &whole.saying;
        let mut blocks = Vec::new();
        if !reasoning.is_empty() {
            blocks.push(Block::Thinking { thinking: reasoning, signature: "" });
        }
        if !content.is_empty() {
            blocks.push(Block::Text { text: content, citations: () });
        }
        blocks.extend(calls.iter().map(|Call { id, name, arguments }| Block::ToolUse {
            id,
            name,
            input: input(arguments),
        }));
        let (stop_reason, stop_sequence) = self.reason(whole.finish, !calls.is_empty());
        line(&Message { stop_reason: Some(stop_reason), stop_sequence, ..self.frame(&blocks, tally) })
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
    fn reason(&self, finish: Finish, called: bool) -> (&'static str, Option<&str>) {
        let stop = finish.stop.and_then(|stop| self.stops.get(stop as usize));
        match (finish.reason, stop) {
            (Reason::Length, _) => ("max_tokens", None),
            (Reason::Stop, _) if called => ("tool_use", None),
            (Reason::Stop, Some(stop)) => ("stop_sequence", Some(stop)),
            (Reason::Stop, None) => ("end_turn", None),
        }
    }
}

/// A call's arguments. What the model got wrong is shown as Anthropic's documentation tells clients to show it.
fn input(arguments: &str) -> Value {
    let parsed = serde_json::from_str(arguments).ok().filter(Value::is_object);
    parsed.unwrap_or_else(|| match arguments.trim() {
        "" => json!({}),
        wrong => json!({"INVALID_JSON": wrong}),
    })
}

fn usage(tally: &Tally) -> Usage {
    let usage = tally.usage();
    Usage {
        input_tokens: usage.prompt_tokens.saturating_sub(tally.cached_tokens()),
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: tally.cached_tokens(),
        output_tokens: usage.completion_tokens,
    }
}

// === impl Events ===

impl Events {
    pub(super) fn new(head: Head, tally: Tally, hearing: &Hearing) -> Self {
        Self { head, tally, listener: Listener::new(hearing), open: None, blocks: 0 }
    }

    fn part(&mut self, part: &Part, out: &mut Outbox) {
        match part {
            Part::Reasoning(text) => {
                let block = Block::Thinking { thinking: "", signature: "" };
                self.more(Kind::Thinking, block, text, ["thinking_delta", "thinking"], out);
            }
            Part::Content(text) => {
                let block = Block::Text { text: "", citations: () };
                self.more(Kind::Text, block, text, ["text_delta", "text"], out);
            }
            Part::Call { index, name } => {
                let id = self.listener.id(*index);
                let block = Block::ToolUse { id: &id, name, input: json!({}) };
                self.begin(Kind::Call(*index), &block, out);
            }
            Part::Arguments { text, .. } => self.say(text, ["input_json_delta", "partial_json"], out),
        }
    }

    /// Goes on with a block of that kind; a new one unless it is open.
    fn more(&mut self, kind: Kind, block: Block<'_>, text: &str, names: [&str; 2], out: &mut Outbox) {
        if self.open != Some(kind) && !text.is_empty() {
            self.begin(kind, &block, out);
        }
        self.say(text, names, out);
    }

    fn begin(&mut self, kind: Kind, block: &Block<'_>, out: &mut Outbox) {
        self.close(out);
        self.open = Some(kind);
        send(out, "content_block_start", json!({"index": self.blocks, "content_block": block}));
        self.blocks += 1;
    }

    /// Adds to the open block.
    fn say(&self, text: &str, [kind, field]: [&str; 2], out: &mut Outbox) {
        for piece in pieces(text) {
            let delta = json!({"type": kind, field: piece});
            send(out, "content_block_delta", json!({"index": self.blocks.saturating_sub(1), "delta": delta}));
        }
    }

    fn close(&mut self, out: &mut Outbox) {
        if self.open.take().is_some() {
            send(out, "content_block_stop", json!({"index": self.blocks - 1}));
        }
    }

    fn finish(&mut self, finish: Finish, out: &mut Outbox) {
        self.tally.close(finish, self.listener.reasoning_tokens());
        self.close(out);
        let (stop_reason, stop_sequence) = self.head.reason(finish, self.listener.called());
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

    fn delta(&mut self, mut delta: Delta, out: &mut Outbox) {
        for part in self.listener.hear(&mut delta) {
            self.part(&part, out);
        }
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
