//! A response as the events of its making. Each has a number, and the last has all of it.

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Keeping,
    object::{self, Object, Status},
    store::Running,
};
use crate::{
    api::common::usage::Tally,
    generation::{Delta, Finish},
    http::{
        error::ApiError,
        json::split,
        sse::{self, Outbox},
    },
};

/// The most text in a delta, bytes.
const TEXT: usize = 4 << 10;

/// Turns deltas into events.
pub(super) struct Events {
    object: Object,
    tally: Tally,
    keeping: Keeping,
    running: Running,
    sequence_number: u64,
    /// The message, once it has begun.
    message: Option<Message>,
}

struct Message {
    id: String,
    text: String,
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'a str,
    sequence_number: u64,
    #[serde(flatten)]
    fields: Value,
}

// === impl Events ===

impl Events {
    pub(super) fn new(object: Object, tally: Tally, keeping: Keeping, running: Running) -> Self {
        Self { object, tally, keeping, running, sequence_number: 0, message: None }
    }

    fn send(&mut self, name: &str, fields: Value, out: &mut Outbox) {
        out.named(name, &Event { r#type: name, sequence_number: self.sequence_number, fields });
        self.sequence_number += 1;
    }

    /// An event about the whole.
    fn state(&mut self, name: &str, out: &mut Outbox) {
        self.send(name, json!({"response": self.object}), out);
    }

    fn begin(&mut self, out: &mut Outbox) {
        if self.message.is_some() {
            return;
        }
        let id = super::item_id("msg_");
        let item = object::message(id.clone(), Status::InProgress, None);
        let part = within(&id, json!({"part": object::part(String::new())}));
        self.message = Some(Message { id, text: String::new() });
        self.send("response.output_item.added", json!({"output_index": 0, "item": item}), out);
        self.send("response.content_part.added", part, out);
    }

    fn say(&mut self, mut text: &str, out: &mut Outbox) {
        while !text.is_empty() {
            self.begin(out);
            let Some(message) = &mut self.message else { return };
            let (piece, rest) = split(text, TEXT);
            message.text.push_str(piece);
            let delta = within(&message.id, json!({"delta": piece, "logprobs": []}));
            self.send("response.output_text.delta", delta, out);
            text = rest;
        }
    }

    fn finish(&mut self, finish: Finish, out: &mut Outbox) {
        self.tally.finish(0, finish);
        self.tally.record();
        self.begin(out);
        if self.running.cancel.is_cancelled() {
            self.object.cancel();
        } else {
            self.object.finish(finish, &self.tally);
        }
        if let Some(message) = self.message.take() {
            self.close(message, out);
        }
        self.keeping.keep(&self.object);
        let name = if self.object.status == Status::Completed {
            "response.completed"
        } else {
            "response.incomplete"
        };
        self.state(name, out);
    }

    fn close(&mut self, Message { id, text }: Message, out: &mut Outbox) {
        self.keeping.say(&text);
        let done = within(&id, json!({"text": text, "logprobs": []}));
        let part = within(&id, json!({"part": object::part(text.clone())}));
        self.object.say(id, text);
        self.send("response.output_text.done", done, out);
        self.send("response.content_part.done", part, out);
        let item = json!({"output_index": 0, "item": self.object.last()});
        self.send("response.output_item.done", item, out);
    }
}

/// Fields of an event about a message's text.
fn within(item: &str, more: Value) -> Value {
    let mut fields = json!({"item_id": item, "output_index": 0, "content_index": 0});
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

impl sse::Events for Events {
    fn open(&mut self, out: &mut Outbox) {
        self.state("response.created", out);
        self.state("response.in_progress", out);
    }

    fn delta(&mut self, delta: Delta, out: &mut Outbox) {
        self.say(&delta.text, out);
        if let Some(finish) = delta.finish {
            self.finish(finish, out);
        }
    }

    fn silence(&mut self, out: &mut Outbox) {
        self.state("response.in_progress", out);
    }

    fn complete(&self) -> bool {
        self.tally.first_running().is_none()
    }

    fn end(&mut self, _: &mut Outbox) {}

    /// The event says all: nothing that a client could take for the whole.
    fn fail(&mut self, error: &ApiError, out: &mut Outbox) -> bool {
        self.object.fail(error);
        if let Some(Message { id, text }) = self.message.take() {
            self.object.say(id, text);
        }
        self.state("response.failed", out);
        false
    }
}
