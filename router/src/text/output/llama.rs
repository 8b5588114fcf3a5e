//! `{"name": …, "parameters": {…}}`, with `<|python_tag|>` before it or without: Llama 3.1 and later. Several are
//! joined by `;`. An object that names no function that there is, is an answer like any other.

use std::sync::Arc;

use super::{Part, Step, content_until, object::Object, skip_space};

const TAG: &str = "<|python_tag|>";

/// Reads content and calls.
pub(super) struct Llama {
    names: Arc<[String]>,
    state: State,
    calls: u32,
}

enum State {
    /// Before anything, or behind a call.
    Start,
    Call(Box<Object>),
    Text,
}

// === impl Llama ===

impl Llama {
    pub(super) fn new(names: Arc<[String]>) -> Self {
        Self { names, state: State::Start, calls: 0 }
    }

    pub(super) fn step(&mut self, buffer: &mut String, end: bool, out: &mut Vec<Part>) -> Step {
        match &mut self.state {
            State::Start => {
                if self.calls > 0 {
                    let rest =
                        buffer.trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == ',').len();
                    buffer.drain(..buffer.len() - rest);
                }
                let text = buffer.trim_start();
                if text.starts_with('{') {
                    skip_space(buffer);
                    self.state = State::Call(Box::default());
                } else if text.starts_with(TAG) {
                    buffer.drain(..buffer.len() - text.len() + TAG.len());
                } else if TAG.starts_with(text) && !end {
                    return Step::Wait;
                } else {
                    self.state = State::Text;
                }
            }
            State::Call(object) => {
                let taken = object.read(buffer, self.calls, Some(&self.names), out);
                buffer.drain(..taken);
                if object.is_done() {
                    self.calls += 1;
                    self.state = State::Start;
                } else if object.is_broken() || (end && !object.is_call()) {
                    // Of a call that has begun nothing can be taken back.
                    buffer.insert_str(0, &object.raw());
                    self.state = State::Text;
                } else {
                    return Step::Wait;
                }
            }
            State::Text => {
                if content_until(buffer, TAG, end, self.calls > 0, out).is_none() {
                    return Step::Wait;
                }
                self.state = State::Start;
            }
        }
        Step::On
    }
}
