//! A response as the events of its making. Each has a number, and the last has all of it.

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Keeping,
    object::{Object, Status},
    output::Output,
    store::Running,
};
use crate::{
    api::common::{
        listen::{Hearing, Listener},
        usage::Tally,
    },
    generation::{Delta, Finish},
    http::{
        error::ApiError,
        sse::{self, Outbox},
    },
};

/// Turns deltas into events.
pub(super) struct Events {
    object: Object,
    output: Output,
    listener: Listener,
    tally: Tally,
    keeping: Keeping,
    running: Running,
    sequence_number: u64,
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
    pub(super) fn new(
        object: Object,
        hearing: &Hearing,
        tally: Tally,
        keeping: Keeping,
        running: Running,
    ) -> Self {
        let (output, listener) = (Output::default(), Listener::new(hearing));
        Self { object, output, listener, tally, keeping, running, sequence_number: 0 }
    }

    fn send(&mut self, name: &str, fields: Value, out: &mut Outbox) {
        out.named(name, &Event { r#type: name, sequence_number: self.sequence_number, fields });
        self.sequence_number += 1;
    }

    /// An event about the whole.
    fn state(&mut self, name: &str, out: &mut Outbox) {
        self.send(name, json!({"response": self.object}), out);
    }

    fn end_output(&mut self, out: &mut Outbox) {
        let mut events = Vec::new();
        self.output.end(self.object.status.of_items(), &mut events);
        events.into_iter().for_each(|(name, fields)| self.send(name, fields, out));
        self.object.output.clone_from(&self.output.items);
    }

    fn finish(&mut self, finish: Finish, out: &mut Outbox) {
        self.tally.close(finish, self.listener.reasoning_tokens());
        if self.running.cancel.is_cancelled() {
            self.object.cancel();
        } else {
            self.object.finish(finish, &self.tally);
        }
        self.end_output(out);
        self.keeping.keep(&self.object, self.output.template());
        let name = match self.object.status {
            Status::Completed => "response.completed",
            _ => "response.incomplete",
        };
        self.state(name, out);
    }
}

impl sse::Events for Events {
    fn open(&mut self, out: &mut Outbox) {
        self.state("response.created", out);
        self.state("response.in_progress", out);
    }

    fn delta(&mut self, mut delta: Delta, out: &mut Outbox) {
        let (parts, mut events) = (self.listener.hear(&mut delta), Vec::new());
        self.output.take(parts, &self.listener, &mut events);
        events.into_iter().for_each(|(name, fields)| self.send(name, fields, out));
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

    /// The event says all: there is nothing that a client could take for the whole.
    fn fail(&mut self, error: &ApiError, out: &mut Outbox) -> bool {
        self.object.fail(error);
        self.end_output(out);
        self.state("response.failed", out);
        false
    }
}
