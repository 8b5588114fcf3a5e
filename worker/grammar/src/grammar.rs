//! The one form that all grammars have between router and worker: text in llguidance's dialect of Lark.

use serde_json::Value;

use crate::{Error, Vocabulary, gbnf, schema};

/// The most bytes of a grammar's text. Larger ones are data, not forms.
const MAX_BYTES: usize = 1 << 20;
/// The most characters of a regular expression.
const MAX_REGEX: usize = 16 << 10;

/// What a sequence may say. Equal texts are equal grammars.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grammar(String);

// === impl Grammar ===

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self(format!("start: {}", schema::any_object()))
    }

    /// JSON that a schema describes.
    pub fn json_schema(schema: &Value) -> Result<Self, Error> {
        Self::new(format!("start: {}", schema::term(schema)?))
    }

    /// All of a text matches a regular expression.
    pub fn regex(regex: &str) -> Result<Self, Error> {
        if regex.len() > MAX_REGEX {
            let message = format!("a regular expression of {} bytes; at most {MAX_REGEX}", regex.len());
            return Err(Error::TooComplex(message));
        }
        Self::new(format!("start: {}", regex_term(regex)))
    }

    /// One of several texts.
    pub fn choice(texts: &[String]) -> Result<Self, Error> {
        let texts: Vec<_> = texts.iter().map(|text| literal(text)).collect();
        if texts.is_empty() {
            return Err(Error::Invalid("a choice needs at least one text".to_owned()));
        }
        Self::new(format!("start: {}", texts.join(" | ")))
    }

    /// A grammar in GBNF, as llama.cpp has it. Its rule `root` is the start.
    pub fn gbnf(text: &str) -> Result<Self, Error> {
        Self::new(gbnf::to_lark(text)?)
    }

    /// A grammar in llguidance's dialect of Lark, put together from [`literal`](Self::literal),
    /// [`json`](Self::json) and [`token`](Self::token).
    pub fn lark(text: String) -> Result<Self, Error> {
        Self::new(text)
    }

    /// The same, behind a reasoning section that the prompt has begun.
    pub fn after_reasoning(&self, vocabulary: &Vocabulary) -> Self {
        const CLOSE: &str = "</think>";
        let rest = self.0.strip_prefix("start: ").unwrap_or(&self.0);
        let reasoning = match vocabulary.special(CLOSE) {
            Some(id) => format!("reasoning: /(?s:.*)/ {}", Self::token(id)),
            None => format!("reasoning[suffix={}]: /(?s:.*)/", literal(CLOSE)),
        };
        Self(format!("start: reasoning SPACE answer\nSPACE: /[ \\n]{{0,4}}/\n{reasoning}\nanswer: {rest}"))
    }

    /// A grammar as it came over the wire.
    pub fn from_wire(text: String) -> Self {
        Self(text)
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// A text as a term of a Lark grammar.
    pub fn literal(text: &str) -> String {
        literal(text)
    }

    /// JSON that a schema describes as a term of a Lark grammar.
    pub fn json(schema: &Value) -> Result<String, Error> {
        schema::term(schema)
    }

    /// A single token as a term of a Lark grammar, such as a special one.
    pub fn token(id: u32) -> String {
        format!("<[{id}]>")
    }

    fn new(text: String) -> Result<Self, Error> {
        if text.len() > MAX_BYTES {
            let message = format!("a grammar of {} bytes; at most {MAX_BYTES}", text.len());
            return Err(Error::TooComplex(message));
        }
        Ok(Self(text))
    }
}

/// A text, quoted. JSON's escapes are Lark's.
pub(crate) fn literal(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// A regular expression between slashes.
pub(crate) fn regex_term(regex: &str) -> String {
    format!("/{}/", llguidance::regex_to_lark(regex, ""))
}
