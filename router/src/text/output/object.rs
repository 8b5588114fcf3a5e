//! A call as a JSON object, `{"name": …, "arguments": …}`, read as it comes: the arguments are passed on while they
//! are still being written, in the model's own spelling.

use super::Part;

/// Reads one object, a character at a time.
#[derive(Default)]
pub(super) struct Object {
    state: State,
    key: String,
    name: Option<String>,
    /// The value that is being read, where it is not passed on.
    value: String,
    /// All of it until a name is known: if none comes, it was no call.
    raw: String,
    /// Arguments that came before the name.
    early: Option<String>,
    /// Whether some of the arguments were passed on.
    spoke: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// Before a key, or the end.
    Key,
    InKey,
    Colon,
    Value,
    InValue(Value),
    /// Behind a value.
    Comma,
    Done,
    /// Not an object, or not one that is a call.
    Broken,
}

/// How far a JSON value is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value {
    depth: u32,
    in_string: bool,
    escaped: bool,
    scalar: bool,
}

/// What became of a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fed {
    /// The value goes on.
    In,
    /// It was the value's last.
    Last,
    /// The value ended before it.
    After,
}

// === impl Value ===

impl Value {
    /// A value that begins with this character; it is still to be fed.
    pub(super) fn starting(first: char) -> Self {
        Self { depth: 0, in_string: false, escaped: false, scalar: !matches!(first, '{' | '[' | '"') }
    }

    pub(super) fn feed(&mut self, c: char) -> Fed {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_string = false;
                    if self.depth == 0 {
                        return Fed::Last;
                    }
                }
                _ => {}
            }
            return Fed::In;
        }
        if self.scalar && (matches!(c, ',' | '}' | ']') || c.is_whitespace()) {
            return Fed::After;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    return Fed::Last;
                }
            }
            _ => {}
        }
        Fed::In
    }
}

// === impl Object ===

impl Object {
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Whether the call was begun in `out`.
    pub(super) fn is_call(&self) -> bool {
        self.name.is_some()
    }

    /// The text of what turned out to be no call.
    pub(super) fn raw(&mut self) -> String {
        std::mem::take(&mut self.raw)
    }

    /// Takes characters in until the object ends or breaks; gives how many bytes it took. Only functions in
    /// `names` are calls; none: all are.
    pub(super) fn read(
        &mut self,
        text: &str,
        index: u32,
        names: Option<&[String]>,
        out: &mut Vec<Part>,
    ) -> usize {
        let mut arguments = String::new();
        let mut taken = text.len();
        for (at, c) in text.char_indices() {
            if self.is_done() || self.is_broken() {
                taken = at;
                break;
            }
            if self.name.is_none() {
                self.raw.push(c);
            }
            self.feed(c, index, names, &mut arguments, out);
        }
        if !arguments.is_empty() {
            self.spoke = true;
            out.push(Part::Arguments { index, text: arguments });
        }
        if self.is_done() && self.name.is_none() {
            self.state = State::Broken;
        }
        if self.is_done() && !self.spoke {
            self.spoke = true;
            out.push(Part::Arguments { index, text: "{}".to_owned() });
        }
        taken
    }

    fn feed(
        &mut self,
        c: char,
        index: u32,
        names: Option<&[String]>,
        arguments: &mut String,
        out: &mut Vec<Part>,
    ) {
        self.state = match self.state {
            State::Done | State::Broken => return,
            State::Start | State::Key | State::Colon | State::Value | State::Comma if c.is_whitespace() => {
                return;
            }
            State::Start if c == '{' => State::Key,
            State::Key if c == '"' => {
                self.key.clear();
                State::InKey
            }
            State::Key | State::Comma if c == '}' => State::Done,
            State::Comma if c == ',' => State::Key,
            State::InKey if c == '"' => match self.key.as_str() {
                "name" | "function" | "arguments" | "parameters" | "type" | "id" => State::Colon,
                _ if self.name.is_some() => State::Colon,
                _ => State::Broken,
            },
            State::InKey => {
                self.key.push(c);
                State::InKey
            }
            State::Colon if c == ':' => State::Value,
            State::Value => {
                self.value.clear();
                return self.feed_value(Value::starting(c), c, index, names, arguments, out);
            }
            State::InValue(value) => return self.feed_value(value, c, index, names, arguments, out),
            State::Start | State::Key | State::Colon | State::Comma => State::Broken,
        };
    }

    fn feed_value(
        &mut self,
        mut value: Value,
        c: char,
        index: u32,
        names: Option<&[String]>,
        arguments: &mut String,
        out: &mut Vec<Part>,
    ) {
        let fed = value.feed(c);
        if fed != Fed::After {
            let is_object = self.value.starts_with('{') || (self.value.is_empty() && c == '{');
            // An object is passed on as it comes; anything else has to be seen whole.
            if self.is_arguments() && self.name.is_some() && is_object {
                arguments.push(c);
                if self.value.is_empty() {
                    self.value.push(c);
                }
            } else {
                self.value.push(c);
            }
        }
        self.state = State::InValue(value);
        if fed != Fed::In {
            self.state = State::Comma;
            self.end_value(index, names, arguments, out);
            if fed == Fed::After && self.state == State::Comma {
                self.feed(c, index, names, arguments, out);
            }
        }
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_str(), "arguments" | "parameters")
    }

    fn end_value(
        &mut self,
        index: u32,
        names: Option<&[String]>,
        arguments: &mut String,
        out: &mut Vec<Part>,
    ) {
        let value = std::mem::take(&mut self.value);
        if matches!(self.key.as_str(), "name" | "function") && self.name.is_none() {
            let name = serde_json::from_str::<String>(&value).ok().filter(|name| !name.is_empty());
            let known = |name: &String| names.is_none_or(|names| names.contains(name));
            let Some(name) = name.filter(known) else {
                self.state = State::Broken;
                return;
            };
            self.name = Some(name.clone());
            self.raw.clear();
            out.push(Part::Call { index, name });
            if let Some(early) = self.early.take() {
                arguments.push_str(&early);
            }
        } else if self.is_arguments() && !(value == "{" && self.name.is_some()) {
            let text = spelled(value);
            match self.name {
                Some(_) => arguments.push_str(&text),
                None => self.early = Some(text),
            }
        }
    }
}

/// Arguments as the text of an object: some models write a string with the object in it, or nothing.
fn spelled(value: String) -> String {
    if value == "null" {
        return "{}".to_owned();
    }
    match serde_json::from_str::<String>(&value) {
        Ok(inner) => inner,
        Err(_) => value,
    }
}
