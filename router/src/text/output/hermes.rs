//! `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen, and models that were only told so.

use super::{Part, Step, content_until, object::Object, skip_space, take};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Reads content and calls.
#[derive(Default)]
pub(super) struct Hermes {
    state: State,
    calls: u32,
    /// Nothing but white space came since the last call.
    fresh: bool,
    /// The white space before the tag.
    space: String,
}

#[derive(Default)]
enum State {
    #[default]
    Text,
    Call(Box<Object>),
    /// Behind a call's object.
    Close,
    /// In a call that went wrong after it had begun.
    Lost,
}

// === impl Hermes ===

impl Hermes {
    pub(super) fn step(&mut self, buffer: &mut String, end: bool, out: &mut Vec<Part>) -> Step {
        match &mut self.state {
            State::Text => {
                if self.fresh {
                    skip_space(buffer);
                    self.fresh = buffer.is_empty();
                }
                let Some(space) = content_until(buffer, OPEN, end, self.calls > 0, out) else {
                    return Step::Wait;
                };
                self.space = space;
                self.state = State::Call(Box::default());
            }
            State::Call(object) => {
                let taken = object.read(buffer, self.calls, None, out);
                buffer.drain(..taken);
                if object.is_done() {
                    self.calls += 1;
                    self.fresh = true;
                    self.state = State::Close;
                } else if object.is_broken() && object.is_call() {
                    self.calls += 1;
                    self.fresh = true;
                    self.state = State::Lost;
                } else if object.is_broken() || (end && !object.is_call()) {
                    super::say(format!("{}{OPEN}{}", self.space, object.raw()), out);
                    self.state = State::Text;
                } else {
                    return Step::Wait;
                }
            }
            State::Close => {
                skip_space(buffer);
                if buffer.starts_with(CLOSE) {
                    take(buffer, CLOSE.len());
                } else if CLOSE.starts_with(buffer.as_str()) {
                    return Step::Wait;
                }
                self.state = State::Text;
            }
            State::Lost => {
                let Some(at) = buffer.find(CLOSE) else { return Step::Wait };
                take(buffer, at + CLOSE.len());
                self.state = State::Text;
            }
        }
        Step::On
    }
}
