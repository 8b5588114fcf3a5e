//! Where a text stands in its grammar.

use llguidance::{TokenParser, api::StopReason};

use crate::Error;

/// Where a text stands in its grammar: tokens in, masks out. Clones share what the grammar's tables learn.
#[derive(Clone)]
pub struct Matcher(llguidance::Matcher);

// === impl Matcher ===

impl Matcher {
    pub(crate) fn new<E: std::fmt::Display>(parser: Result<TokenParser, E>) -> Result<Self, Error> {
        match parser {
            Ok(parser) => Ok(Self(llguidance::Matcher::new(Ok(parser)))),
            Err(error) => Err(refusal(&error.to_string())),
        }
    }

    /// Takes in what was drawn. After an error the matcher is of no more use.
    pub fn advance(&mut self, tokens: &[u32]) -> Result<(), Error> {
        for &token in tokens {
            // What follows the end (a step may be ahead of it) says nothing.
            if self.0.is_stopped() && self.0.stop_reason().is_ok() {
                return Ok(());
            }
            self.0.consume_token(token).map_err(|error| self.error(&error.to_string()))?;
        }
        Ok(())
    }

    /// The tokens that may come next, a bit each, lowest first. Where the text can only end, those that end it.
    pub fn mask(&mut self) -> Result<Vec<u32>, Error> {
        let mask = self.0.compute_mask_or_eos().map_err(|error| self.error(&error.to_string()))?;
        match mask.is_zero() {
            false => Ok(mask.into()),
            true => Err(Error::Invalid("the grammar allows no token here".to_owned())),
        }
    }

    /// Whether the text may end here.
    pub fn may_end(&mut self) -> bool {
        self.0.is_stopped() || self.0.is_accepting().unwrap_or(false)
    }

    fn error(&self, message: &str) -> Error {
        match self.0.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => too_complex(message),
            _ => Error::Broken(first_line(message).to_owned()),
        }
    }
}

/// Why a grammar was not compiled.
fn refusal(message: &str) -> Error {
    let complex =
        ["fuel", "too complex", "too large", "too big", "too many", "too deeply", "limit", "exceed"];
    let lower = message.to_lowercase();
    match complex.iter().any(|sign| lower.contains(sign)) {
        true => too_complex(message),
        false => Error::Invalid(brief(message)),
    }
}

/// The first line, without the stacks and pictures behind it; where it only announces an error, that error.
fn brief(message: &str) -> String {
    let first = first_line(message);
    let error = message.lines().filter_map(|line| line.trim().strip_prefix("error: ")).next_back();
    match error.filter(|_| first.ends_with(':')) {
        Some(error) => format!("{first} {error}"),
        None => first.to_owned(),
    }
}

fn too_complex(message: &str) -> Error {
    Error::TooComplex(format!("too complex: {}", first_line(message)))
}

fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}
