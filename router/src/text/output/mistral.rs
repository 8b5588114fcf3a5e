//! `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, and the newer `[TOOL_CALLS]name[ARGS]{…}`: Mistral.

use super::{
    Part, Step, content_until,
    object::{Fed, Object, Value},
    skip_space, take,
};

const OPEN: &str = "[TOOL_CALLS]";
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

/// Reads content and calls.
#[derive(Default)]
pub(super) struct Mistral {
    state: State,
    calls: u32,
    /// Nothing but white space came since the last call.
    fresh: bool,
}

#[derive(Default)]
enum State {
    #[default]
    Text,
    /// Behind the tag.
    Open,
    /// Between the calls of a list.
    List,
    Call {
        object: Box<Object>,
        in_list: bool,
    },
    /// The arguments of a call whose name came before them.
    Arguments(Option<Value>),
}

// === impl Mistral ===

impl Mistral {
    pub(super) fn step(&mut self, buffer: &mut String, end: bool, out: &mut Vec<Part>) -> Step {
        match &mut self.state {
            State::Text => {
                if self.fresh {
                    skip_space(buffer);
                    self.fresh = buffer.is_empty();
                }
                if content_until(buffer, OPEN, end, self.calls > 0, out).is_none() {
                    return Step::Wait;
                }
                self.state = State::Open;
            }
            State::Open => return self.open(buffer, end, out),
            State::List => {
                let rest = buffer.trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
                buffer.drain(..buffer.len() - rest);
                match buffer.chars().next() {
                    None => return Step::Wait,
                    Some('{') => self.state = State::Call { object: Box::default(), in_list: true },
                    Some(']') => {
                        take(buffer, "]".len());
                        self.state = State::Text;
                    }
                    Some(_) => self.state = State::Text,
                }
            }
            State::Call { object, in_list } => {
                let taken = object.read(buffer, self.calls, None, out);
                buffer.drain(..taken);
                if object.is_done() || (object.is_broken() && object.is_call()) {
                    self.calls += 1;
                    self.fresh = true;
                    self.state = if *in_list { State::List } else { State::Text };
                } else if object.is_broken() || (end && !object.is_call()) {
                    super::say(object.raw(), out);
                    self.state = State::Text;
                } else {
                    return Step::Wait;
                }
            }
            State::Arguments(value) => {
                let index = self.calls;
                let mut text = String::new();
                let mut over = None;
                for (at, c) in buffer.char_indices() {
                    if value.is_none() && c.is_whitespace() {
                        continue;
                    }
                    let fed = value.get_or_insert_with(|| Value::starting(c)).feed(c);
                    if fed != Fed::After {
                        text.push(c);
                    }
                    if fed != Fed::In {
                        over = Some(if fed == Fed::Last { at + c.len_utf8() } else { at });
                        break;
                    }
                }
                if !text.is_empty() {
                    out.push(Part::Arguments { index, text });
                }
                take(buffer, over.unwrap_or(buffer.len()));
                if over.is_none() {
                    return Step::Wait;
                }
                self.calls += 1;
                self.fresh = true;
                self.state = State::Text;
            }
        }
        Step::On
    }

    fn open(&mut self, buffer: &mut String, end: bool, out: &mut Vec<Part>) -> Step {
        skip_space(buffer);
        match buffer.chars().next() {
            None => return Step::Wait,
            Some('[') => {
                take(buffer, "[".len());
                self.state = State::List;
            }
            Some('{') => self.state = State::Call { object: Box::default(), in_list: false },
            Some(_) => {
                // A name goes on until its arguments: a tag, or their brace.
                let Some(brace) = buffer.find('{') else {
                    if end {
                        super::say(buffer.split_off(0), out);
                    }
                    return Step::Wait;
                };
                let before = take(buffer, brace);
                let name = before.split(ARGS).next().unwrap_or_default();
                let name = name.split(CALL_ID).next().unwrap_or_default().trim().to_owned();
                out.push(Part::Call { index: self.calls, name });
                self.state = State::Arguments(None);
            }
        }
        Step::On
    }
}
