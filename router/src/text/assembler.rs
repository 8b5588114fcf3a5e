//! Tokens in, text out: the pure state machine of one choice.
//!
//! ```text
//!  tokens ─▶ bytes ─▶ characters ─▶ stop strings ─▶ deltas
//!             (an incomplete      (a tail that may still
//!              one is held)        become one is held)
//! ```
//!
//! Its output is a function of the token log alone: however the tokens are split into steps, the joined text,
//! the finish and the counts are the same. So replaying a log after a move restores its state.

use std::{collections::VecDeque, sync::Arc};

use volley_proto::v1::Logprobs;

use super::{stop::Stops, tokenizer::Tokenizer};
use crate::generation::{Delta, Finish, Reason, Token};

/// What a request's choices have in common.
#[derive(Clone)]
pub struct Rules {
    /// Says what tokens mean.
    pub tokenizer: Arc<Tokenizer>,
    /// What ends a choice.
    pub stops: Stops,
    /// Whether the text keeps the stop string that ended it.
    pub include_stop: bool,
    /// Special tokens whose names are part of the text.
    pub shown: Vec<u32>,
    /// Generated tokens at most.
    pub max_tokens: u32,
}

/// New tokens of a choice, of one step or more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step<'a> {
    /// In order.
    pub tokens: &'a [u32],
    /// Beside `tokens`, when asked for.
    pub logprobs: &'a [Logprobs],
    /// Set when the scheduler ended the choice; [`Reason::Stop`]: the last token is the one that ended it.
    pub end: Option<Reason>,
    /// Prompt tokens from the prefix cache, when reported.
    pub cached_tokens: Option<u32>,
}

/// One choice.
pub struct Assembler {
    choice: u32,
    rules: Arc<Rules>,
    /// Bytes of a character that is not complete.
    partial: Vec<u8>,
    /// Characters that are decoded but not sent.
    tail: String,
    /// Progress towards each stop string.
    stop_states: Vec<u32>,
    /// Tokens whose text is not sent, each with the text position that it needs sent.
    pending: VecDeque<(u64, Token)>,
    /// Bytes of text decoded, and sent.
    decoded: u64,
    sent: u64,
    /// Characters decoded.
    characters: u32,
    generated: u32,
    cached_tokens: u32,
    finished: bool,
}

// === impl Assembler ===

impl Assembler {
    /// The assembler of choice `choice`: the number that its deltas carry.
    pub fn new(choice: u32, rules: Arc<Rules>) -> Self {
        Self {
            choice,
            stop_states: rules.stops.start(),
            rules,
            partial: Vec::new(),
            tail: String::new(),
            pending: VecDeque::new(),
            decoded: 0,
            sent: 0,
            characters: 0,
            generated: 0,
            cached_tokens: 0,
            finished: false,
        }
    }

    /// Whether the last delta was given.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Puts the prompt, from its token `from` on, in front: once, before any output. `scored` are the
    /// log-probabilities of these tokens, when asked for; the prompt's first token has none. Special tokens show
    /// their names, but for a `bos` that starts the prompt.
    pub fn echo(&mut self, prompt: &[u32], from: usize, bos: Option<u32>, scored: &[Logprobs]) {
        let rules = self.rules.clone();
        let vocabulary = rules.tokenizer.vocabulary();
        let mut at_start = from == 0;
        for (i, &id) in prompt.iter().enumerate().skip(from) {
            let mut bytes = vocabulary.bytes(id);
            if i == 0 && Some(id) == bos {
                bytes = &[];
            } else if at_start {
                at_start = false;
                if vocabulary.leading_space() && !vocabulary.is_special(id) {
                    bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                }
            }
            let logprobs = i.checked_sub(from.max(1)).and_then(|nth| scored.get(nth));
            self.add(id, true, logprobs, bytes);
        }
    }

    /// Takes new tokens; gives what is final of their text. After the finish there is nothing more: later
    /// tokens are dropped.
    pub fn push(&mut self, step: Step<'_>) -> Option<Delta> {
        if self.finished {
            return None;
        }
        self.cached_tokens = step.cached_tokens.unwrap_or(self.cached_tokens);
        let mut reason = None;
        for (i, &id) in step.tokens.iter().enumerate() {
            let last = i + 1 == step.tokens.len();
            let ends = last && step.end == Some(Reason::Stop);
            reason = self.generate(id, step.logprobs.get(i), ends);
            if reason.is_some() {
                break;
            }
        }
        let reason = reason.or(step.end).or_else(|| (self.rules.max_tokens == 0).then_some(Reason::Length));
        self.flush(reason)
    }

    /// Takes one generated token; says whether the choice ends with it. An end token is no output: it has no text
    /// and no log-probability, and usage doesn't count it.
    fn generate(&mut self, id: u32, logprobs: Option<&Logprobs>, ends: bool) -> Option<Reason> {
        let rules = self.rules.clone();
        if ends || rules.stops.tokens().contains(&id) {
            return Some(Reason::Stop);
        }
        self.generated += 1;
        let vocabulary = rules.tokenizer.vocabulary();
        let text = if rules.shown.contains(&id) { vocabulary.bytes(id) } else { vocabulary.text(id) };
        let new = self.add(id, false, logprobs, text);
        if self.find_stop(new) {
            Some(Reason::Stop)
        } else if self.generated >= rules.max_tokens {
            Some(Reason::Length)
        } else {
            None
        }
    }

    /// Decodes a token's bytes into the tail; returns where the new characters start in it.
    fn add(&mut self, id: u32, echoed: bool, logprobs: Option<&Logprobs>, bytes: &[u8]) -> usize {
        let new = self.tail.len();
        let text_offset = self.characters;
        if self.partial.is_empty() {
            self.decode(bytes);
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(bytes);
            self.decode(&joined);
        }
        // A token that leaves a character open needs at least the next byte of text.
        let open = !self.partial.is_empty() && !bytes.is_empty();
        let token = Token { echoed, ..self.token(id, text_offset, logprobs) };
        self.pending.push_back((self.decoded + u64::from(open), token));
        new
    }

    /// Appends whole characters to the tail, U+FFFD for what is none, and keeps an incomplete last one.
    fn decode(&mut self, mut bytes: &[u8]) {
        let before = self.tail.len();
        while !bytes.is_empty() {
            let error = match std::str::from_utf8(bytes) {
                Ok(text) => {
                    self.tail.push_str(text);
                    break;
                }
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            self.tail.push_str(std::str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                Some(len) => {
                    self.tail.push(char::REPLACEMENT_CHARACTER);
                    bytes = &rest[len..];
                }
                None => {
                    self.partial.extend_from_slice(rest);
                    break;
                }
            }
        }
        self.count(before);
    }

    /// Accounts for the characters of the tail from `before` on.
    fn count(&mut self, before: usize) {
        let text = &self.tail[before..];
        self.decoded += text.len() as u64;
        self.characters += text.chars().count() as u32;
    }

    /// Looks for a stop string that ends in the tail from `new` on; cuts the tail there.
    fn find_stop(&mut self, new: usize) -> bool {
        let found = self.rules.stops.advance(&mut self.stop_states, &self.tail.as_bytes()[new..]);
        let Some((end, length)) = found else { return false };
        let end = new + end;
        self.tail.truncate(if self.rules.include_stop { end } else { end - length });
        self.partial.clear();
        true
    }

    /// Sends what is final: all of it when the choice ends.
    fn flush(&mut self, reason: Option<Reason>) -> Option<Delta> {
        let mut reason = reason;
        if reason.is_some() && !self.partial.is_empty() {
            self.partial.clear();
            let new = self.tail.len();
            self.tail.push(char::REPLACEMENT_CHARACTER);
            self.count(new);
            if self.find_stop(new) {
                reason = Some(Reason::Stop);
            }
        }
        let held = if reason.is_some() { 0 } else { Stops::held(&self.stop_states) };
        let rest = self.tail.split_off(self.tail.len() - held);
        let text = std::mem::replace(&mut self.tail, rest);
        self.sent += text.len() as u64;
        let ready = match reason {
            Some(_) => self.pending.len(),
            None => self.pending.iter().take_while(|(end, _)| *end <= self.sent).count(),
        };
        let tokens: Vec<Token> = self.pending.drain(..ready).map(|(_, token)| token).collect();
        self.finished = reason.is_some();
        let finish = reason.map(|reason| Finish {
            reason,
            completion_tokens: self.generated,
            cached_tokens: self.cached_tokens,
        });
        if text.is_empty() && tokens.is_empty() && finish.is_none() {
            return None;
        }
        Some(Delta { choice: self.choice, text, tokens, finish })
    }

    fn token(&self, id: u32, text_offset: u32, logprobs: Option<&Logprobs>) -> Token {
        let vocabulary = self.rules.tokenizer.vocabulary();
        let top = logprobs.map_or_else(Vec::new, |logprobs| {
            let pairs = logprobs.top_tokens.iter().zip(&logprobs.top_logprobs);
            pairs.map(|(id, logprob)| (*id, vocabulary.bytes(*id).to_vec(), *logprob)).collect()
        });
        Token {
            id,
            bytes: vocabulary.bytes(id).to_vec(),
            text_offset,
            echoed: false,
            logprob: logprobs.map(|logprobs| logprobs.logprob),
            top,
        }
    }
}

#[cfg(test)]
mod tests;
