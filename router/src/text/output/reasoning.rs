//! The reasoning section that some models begin with: `<think>…</think>`.

use super::{Part, Step, Tag, Thinking, find, skip_space, take};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// The names of the tokens that the tags are.
pub(super) const TAGS: [&str; 2] = [OPEN, CLOSE];

/// Reads the section.
pub(super) struct Reasoning {
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    /// It may begin.
    Before,
    /// It has begun; nothing was said.
    Opened,
    Inside,
    /// White space between the section and the answer.
    Closed,
    Over,
}

// === impl Reasoning ===

impl Reasoning {
    /// None where there is no such section.
    pub(super) fn new(thinking: Thinking) -> Option<Self> {
        let state = match thinking {
            Thinking::Never => return None,
            Thinking::Tagged => State::Before,
            Thinking::Open => State::Opened,
        };
        Some(Self { state })
    }

    /// Whether what follows is the answer.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    pub(super) fn step(&mut self, buffer: &mut String, end: bool, out: &mut Vec<Part>) -> Step {
        self.state = match self.state {
            State::Over => return Step::Wait,
            State::Before => {
                let text = buffer.trim_start();
                if text.starts_with(OPEN) {
                    let start = buffer.len() - text.len() + OPEN.len();
                    buffer.drain(..start);
                    State::Opened
                } else if OPEN.starts_with(text) && !end {
                    return Step::Wait;
                } else {
                    State::Over
                }
            }
            State::Opened => {
                skip_space(buffer);
                // A prompt may have opened the section, and the model opens it again.
                if buffer.starts_with(OPEN) {
                    buffer.drain(..OPEN.len());
                    State::Opened
                } else if OPEN.starts_with(buffer.as_str()) && !end {
                    return Step::Wait;
                } else {
                    State::Inside
                }
            }
            State::Inside => {
                let (until, closed) = match find(buffer, CLOSE) {
                    Tag::At(at) => (at, true),
                    Tag::Perhaps(at) if !end => (at, false),
                    Tag::Perhaps(_) | Tag::Nowhere => (buffer.len(), false),
                };
                // White space before the tag is not said; it waits until more follows.
                let text = take(buffer, buffer[..until].trim_end().len());
                let said = text.len();
                if !text.is_empty() {
                    out.push(Part::Reasoning(text));
                }
                if !closed {
                    return Step::Wait;
                }
                buffer.drain(..until - said + CLOSE.len());
                State::Closed
            }
            State::Closed => {
                skip_space(buffer);
                if buffer.is_empty() && !end {
                    return Step::Wait;
                }
                State::Over
            }
        };
        Step::On
    }
}
