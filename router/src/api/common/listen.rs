//! What a choice says, part by part, as all APIs tell it: reasoning, content, tool calls.

use std::sync::Arc;

use crate::{
    generation::{Delta, Finish, Reason},
    text::output::{Part, Reader, Reading},
};

/// How a request's choices are heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hearing {
    pub reading: Reading,
    /// A choice ends with its first call.
    pub single_call: bool,
}

/// Hears one choice.
pub(crate) struct Listener {
    reader: Reader,
    single_call: bool,
    /// Whose choice it is: ids of calls come from it.
    name: String,
    /// The ids of the calls so far.
    ids: Vec<Arc<str>>,
    tokens: u32,
    reasoning_tokens: u32,
    over: bool,
}

/// What a whole choice said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Saying {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<Call>,
}

/// A tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub id: Arc<str>,
    pub name: String,
    /// JSON, if the model got it right.
    pub arguments: String,
}

// === impl Listener ===

impl Listener {
    pub(crate) fn new(hearing: &Hearing) -> Self {
        Self::of(hearing, &uuid::Uuid::new_v4().to_string(), 0)
    }

    /// Of a choice of the answer `id`: they say what the ids of its calls are.
    pub(crate) fn of(hearing: &Hearing, id: &str, choice: u32) -> Self {
        Self {
            reader: Reader::new(&hearing.reading),
            single_call: hearing.single_call,
            name: format!("{id}/{choice}"),
            ids: Vec::new(),
            tokens: 0,
            reasoning_tokens: 0,
            over: false,
        }
    }

    /// Takes a delta's text; gives its parts. Sets the delta's finish where the choice ends early.
    pub(crate) fn hear(&mut self, delta: &mut Delta) -> Vec<Part> {
        let mut parts = Vec::new();
        if self.over {
            (delta.finish, delta.tokens) = (None, Vec::new());
            return parts;
        }
        self.reader.push(&delta.text, &mut parts);
        if delta.finish.is_some() {
            self.reader.end(&mut parts);
        }
        self.tokens += delta.tokens.iter().filter(|token| !token.echoed).count() as u32;
        let reasoning = delta.tokens.iter().filter(|token| self.reader.is_reasoning(token.text_offset));
        self.reasoning_tokens += reasoning.count() as u32;
        let second = parts.iter().position(|part| matches!(part, Part::Call { index: 1, .. }));
        if let Some(second) = second.filter(|_| self.single_call) {
            parts.truncate(second);
            self.over = true;
            let finish =
                Finish { reason: Reason::Stop, completion_tokens: self.tokens, cached_tokens: 0, stop: None };
            delta.finish = Some(delta.finish.map_or(finish, |end| Finish { reason: Reason::Stop, ..end }));
        }
        for part in &parts {
            if let Part::Call { .. } = part {
                let hash = blake3::hash(format!("{}/{}", self.name, self.ids.len()).as_bytes());
                self.ids.push(format!("call_{}", &hash.to_hex()[..24]).into());
            }
        }
        parts
    }

    /// The id of a call that has begun.
    pub(crate) fn id(&self, index: u32) -> Arc<str> {
        self.ids.get(index as usize).cloned().unwrap_or_default()
    }

    /// Whether there was a call.
    pub(crate) fn called(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Tokens of reasoning so far.
    pub(crate) fn reasoning_tokens(&self) -> u32 {
        self.reasoning_tokens
    }
}

// === impl Saying ===

impl Saying {
    /// Adds what a listener heard.
    pub(crate) fn extend(&mut self, parts: Vec<Part>, listener: &Listener) {
        for part in parts {
            match part {
                Part::Reasoning(text) => self.reasoning += &text,
                Part::Content(text) => self.content += &text,
                Part::Call { index, name } => {
                    self.calls.push(Call { id: listener.id(index), name, arguments: String::new() });
                }
                Part::Arguments { index, text } => {
                    if let Some(call) = self.calls.get_mut(index as usize) {
                        call.arguments += &text;
                    }
                }
            }
        }
    }
}
