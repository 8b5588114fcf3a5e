//! `[f(a=1, b="x"), g()]`: Llama 3.2 and 4, and others that call in Python's words. A list that begins with no
//! call of a function that there is, is an answer like any other.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Part, Step, skip_space, take};

/// The deepest nesting of a literal.
const DEPTH: usize = 64;

/// Reads content and calls.
pub(super) struct Pythonic {
    names: Arc<[String]>,
    state: State,
    calls: u32,
}

#[derive(Clone, Copy)]
enum State {
    /// Before anything.
    Start,
    /// Behind the bracket, or behind a call.
    Name,
    /// In a call's parentheses.
    Arguments,
    Text,
    /// Behind the list.
    After,
}

/// Reads literals.
struct Literals<'a> {
    text: &'a str,
}

// === impl Pythonic ===

impl Pythonic {
    pub(super) fn new(names: Arc<[String]>) -> Self {
        Self { names, state: State::Start, calls: 0 }
    }

    pub(super) fn step(&mut self, buffer: &mut String, end: bool, out: &mut Vec<Part>) -> Step {
        match self.state {
            State::Start => return self.start(buffer, end),
            State::Name => {
                let rest = buffer.trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
                buffer.drain(..buffer.len() - rest);
                if buffer.starts_with(']') {
                    take(buffer, "]".len());
                    self.state = State::After;
                } else if let Some(open) = buffer.find('(') {
                    let name = take(buffer, open + 1);
                    out.push(Part::Call { index: self.calls, name: name[..open].trim().to_owned() });
                    self.state = State::Arguments;
                } else {
                    return Step::Wait;
                }
            }
            State::Arguments => {
                let Some(close) = closing(buffer) else {
                    if end && !buffer.is_empty() {
                        // Cut in the middle: what is there is all that can be told.
                        let text = buffer.split_off(0);
                        out.push(Part::Arguments { index: self.calls, text });
                    }
                    return Step::Wait;
                };
                let inside = take(buffer, close + 1);
                let inside = &inside[..close];
                let text =
                    arguments(inside).map_or_else(|| inside.to_owned(), |map| Value::Object(map).to_string());
                out.push(Part::Arguments { index: self.calls, text });
                self.calls += 1;
                self.state = State::Name;
            }
            State::Text | State::After => {
                if matches!(self.state, State::After) {
                    skip_space(buffer);
                }
                if !buffer.is_empty() {
                    self.state = State::Text;
                }
                super::say(buffer.split_off(0), out);
                return Step::Wait;
            }
        }
        Step::On
    }

    /// Whether the text begins with `[name(`.
    fn start(&mut self, buffer: &mut String, end: bool) -> Step {
        let text = buffer.trim_start();
        let is_call = match text.strip_prefix('[').map(str::trim_start) {
            None if text.is_empty() && !end => None,
            None => Some(false),
            Some(rest) => match rest.split_once('(') {
                Some((name, _)) => Some(self.names.iter().any(|known| known == name.trim_end())),
                None if end => Some(false),
                None if self.names.iter().any(|known| known.starts_with(rest.trim_end())) => None,
                None => Some(false),
            },
        };
        self.state = match is_call {
            None => return Step::Wait,
            Some(false) => State::Text,
            Some(true) => {
                skip_space(buffer);
                take(buffer, "[".len());
                State::Name
            }
        };
        Step::On
    }
}

/// Where the parenthesis is that closes the arguments.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0u32, None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')') if depth == 0 => return Some(at),
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// `a=1, b="x"` as an object; none if it is something else.
fn arguments(text: &str) -> Option<Map<String, Value>> {
    let mut literals = Literals { text };
    let mut map = Map::new();
    literals.space();
    while !literals.text.is_empty() {
        let (name, rest) = literals.text.split_once('=')?;
        literals.text = rest;
        map.insert(name.trim().to_owned(), literals.value(0)?);
        literals.separator()?;
    }
    Some(map)
}

// === impl Literals ===

impl Literals<'_> {
    fn space(&mut self) {
        self.text = self.text.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let rest = self.text.strip_prefix(token);
        self.text = rest.unwrap_or(self.text);
        rest.is_some()
    }

    /// A comma, or the end of what is listed.
    fn separator(&mut self) -> Option<()> {
        let comma = self.eat(",");
        self.space();
        (comma || self.text.is_empty() || self.text.starts_with([']', ')', '}'])).then_some(())
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH {
            return None;
        }
        self.space();
        for (word, value) in [
            ("True", Value::Bool(true)),
            ("true", Value::Bool(true)),
            ("False", Value::Bool(false)),
            ("false", Value::Bool(false)),
            ("None", Value::Null),
            ("null", Value::Null),
        ] {
            if self.eat(word) {
                return Some(value);
            }
        }
        match self.text.chars().next()? {
            '[' | '(' => {
                let close = if self.eat("[") { "]" } else { self.eat("(").then_some(")")? };
                let mut list = Vec::new();
                while !self.eat(close) {
                    list.push(self.value(depth + 1)?);
                    self.separator()?;
                }
                Some(Value::Array(list))
            }
            '{' => {
                self.eat("{");
                let mut map = Map::new();
                while !self.eat("}") {
                    let Value::String(key) = self.value(depth + 1)? else { return None };
                    if !self.eat(":") {
                        return None;
                    }
                    map.insert(key, self.value(depth + 1)?);
                    self.separator()?;
                }
                Some(Value::Object(map))
            }
            quote @ ('"' | '\'') => self.string(quote).map(Value::String),
            _ => {
                let end = self.text.find(|c: char| !c.is_ascii_alphanumeric() && !"+-._".contains(c));
                let (number, rest) = self.text.split_at(end.unwrap_or(self.text.len()));
                self.text = rest;
                serde_json::from_str(&number.replace('_', "")).ok().filter(Value::is_number)
            }
        }
    }

    fn string(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        let mut chars = self.text[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.text = &self.text[1 + at + 1..];
                return Some(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            match chars.next()?.1 {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                'u' => {
                    let digits: String = chars.by_ref().take(4).map(|(_, digit)| digit).collect();
                    let code = u32::from_str_radix(&digits, 16).ok()?;
                    text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                other => text.push(other),
            }
        }
        None
    }
}
