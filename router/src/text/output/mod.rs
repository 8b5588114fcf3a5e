//! What a model's text says: reasoning, content and tool calls.
//!
//! ```text
//!  text ─▶ reasoning.rs: <think>…</think> ─▶ a format's reader: content, calls ─▶ Parts
//!                                            hermes.rs  llama.rs  pythonic.rs  mistral.rs
//!                                              └ object.rs: a call's JSON, as it comes
//!  format.rs   which format a template speaks, and the grammar that forces calls in it
//! ```
//!
//! A reader is a pure state machine: what it decides hangs on the characters so far, never on where the text
//! was cut into pieces. So any split of a text gives the same parts, once neighbours are joined.

mod format;
mod hermes;
mod llama;
mod mistral;
mod object;
mod pythonic;
mod reasoning;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use volley_grammar::Vocabulary;

pub use self::format::{Format, Thinking, Tool};
pub(crate) use self::format::{as_text, instructions, parse_arguments};
use self::{hermes::Hermes, llama::Llama, mistral::Mistral, pythonic::Pythonic, reasoning::Reasoning};

/// A piece of what a model says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Thought before the answer.
    Reasoning(String),
    /// The answer.
    Content(String),
    /// A call begins: the choice's `index`-th.
    Call {
        /// Counts from 0.
        index: u32,
        /// The function.
        name: String,
    },
    /// More of a call's arguments: pieces of JSON text.
    Arguments {
        /// Of the call.
        index: u32,
        /// The piece.
        text: String,
    },
}

/// How to read a choice's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Whether there is a reasoning section; its tags are in the text.
    pub reasoning: Thinking,
    /// The format of tool calls, where some are expected.
    pub calls: Option<Format>,
    /// The functions that there are.
    pub names: Arc<[String]>,
    /// Nothing but calls is said: where the text was cut, the beginning of one isn't content.
    pub forced: bool,
}

/// Reads one choice's text.
pub struct Reader {
    /// Not read yet: it may be part of something.
    buffer: String,
    reasoning: Option<Reasoning>,
    calls: Calls,
    /// Characters taken in.
    characters: u32,
    /// Where the reasoning ended, counted so.
    reasoned: Option<u32>,
    forced: bool,
}

enum Calls {
    None,
    Hermes(Hermes),
    Llama(Llama),
    Pythonic(Pythonic),
    Mistral(Mistral),
}

/// What a step of a reader came to.
#[derive(PartialEq, Eq)]
enum Step {
    /// It took something in: go on.
    On,
    /// It needs more text.
    Wait,
}

// === impl Reading ===

impl Reading {
    /// The special tokens of a vocabulary whose names a reader must see.
    pub(crate) fn markers(&self, vocabulary: &Vocabulary) -> Vec<u32> {
        let thinking: &[&str] = if self.reasoning == Thinking::Never { &[] } else { &reasoning::TAGS };
        let names = thinking.iter().chain(self.calls.map_or(&[][..], Format::markers));
        names.filter_map(|name| vocabulary.special(name)).collect()
    }
}

// === impl Reader ===

impl Reader {
    /// At the start of a text.
    pub fn new(reading: &Reading) -> Self {
        let calls = match reading.calls {
            None => Calls::None,
            Some(Format::Hermes) => Calls::Hermes(Hermes::default()),
            Some(Format::Llama) => Calls::Llama(Llama::new(reading.names.clone())),
            Some(Format::Pythonic) => Calls::Pythonic(Pythonic::new(reading.names.clone())),
            Some(Format::Mistral) => Calls::Mistral(Mistral::default()),
        };
        let reasoning = Reasoning::new(reading.reasoning);
        let reasoned = reasoning.is_none().then_some(0);
        Self { buffer: String::new(), reasoning, calls, characters: 0, reasoned, forced: reading.forced }
    }

    /// Takes more text in; what is certain goes to `out`.
    pub fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        if self.reasoning.is_none() && matches!(self.calls, Calls::None) {
            if !text.is_empty() {
                out.push(Part::Content(text.to_owned()));
            }
            return;
        }
        self.buffer.push_str(text);
        self.characters += text.chars().count() as u32;
        self.read(false, out);
    }

    /// The text is over: what was held is what it looks like.
    pub fn end(&mut self, out: &mut Vec<Part>) {
        let mut held = Vec::new();
        self.read(true, &mut held);
        held.retain(|part| !self.forced || !matches!(part, Part::Content(_)));
        out.append(&mut held);
        if self.reasoned.is_none() {
            self.reasoned = Some(self.characters);
        }
    }

    /// Whether a token whose text starts at that character of the text was reasoning.
    pub fn is_reasoning(&self, character: u32) -> bool {
        self.reasoned.is_none_or(|end| character < end)
    }

    fn read(&mut self, end: bool, out: &mut Vec<Part>) {
        if let Some(reasoning) = &mut self.reasoning {
            while reasoning.step(&mut self.buffer, end, out) == Step::On {}
            if !reasoning.is_over() {
                return;
            }
            self.reasoning = None;
            self.reasoned = Some(self.characters - self.buffer.chars().count() as u32);
        }
        let buffer = &mut self.buffer;
        loop {
            let step = match &mut self.calls {
                Calls::None => {
                    say(buffer.split_off(0), out);
                    Step::Wait
                }
                Calls::Hermes(reader) => reader.step(buffer, end, out),
                Calls::Llama(reader) => reader.step(buffer, end, out),
                Calls::Pythonic(reader) => reader.step(buffer, end, out),
                Calls::Mistral(reader) => reader.step(buffer, end, out),
            };
            if step == Step::Wait {
                return;
            }
        }
    }
}

// === What readers share ===

fn say(text: String, out: &mut Vec<Part>) {
    if !text.is_empty() {
        out.push(Part::Content(text));
    }
}

/// Cuts the first `at` bytes off.
fn take(buffer: &mut String, at: usize) -> String {
    let rest = buffer.split_off(at);
    std::mem::replace(buffer, rest)
}

/// Drops the white space that the text goes on with.
fn skip_space(buffer: &mut String) {
    let kept = buffer.trim_start().len();
    buffer.drain(..buffer.len() - kept);
}

/// Where a tag is: all of it, or at the text's end a beginning of it.
enum Tag {
    At(usize),
    Perhaps(usize),
    Nowhere,
}

fn find(text: &str, tag: &str) -> Tag {
    if let Some(at) = text.find(tag) {
        return Tag::At(at);
    }
    let tails =
        (text.len().saturating_sub(tag.len() - 1)..text.len()).filter(|at| text.is_char_boundary(*at));
    tails.into_iter().find(|at| tag.starts_with(&text[*at..])).map_or(Tag::Nowhere, Tag::Perhaps)
}

/// Content up to a tag: says it, less the white space before the tag, and gives that space if the tag came. White
/// space at the end waits, since a tag may follow; at the text's end it is content like any other, unless calls
/// came before.
fn content_until(
    buffer: &mut String,
    tag: &str,
    end: bool,
    calls: bool,
    out: &mut Vec<Part>,
) -> Option<String> {
    let (until, found) = match find(buffer, tag) {
        Tag::At(at) => (at, true),
        Tag::Perhaps(at) if !end => (at, false),
        Tag::Perhaps(_) | Tag::Nowhere => (buffer.len(), false),
    };
    let text = buffer[..until].trim_end().len();
    if found || !end || calls {
        say(take(buffer, text), out);
    } else {
        say(buffer.split_off(0), out);
    }
    found.then(|| {
        let space = take(buffer, until - text);
        buffer.drain(..tag.len());
        space
    })
}
