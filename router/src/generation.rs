//! The one internal request that every API translates to, and the deltas that come back.

use std::{sync::Arc, time::Instant};

use volley_grammar::Grammar;
use volley_proto::v1::Drafted;

/// A request for text, or for embeddings: some prompts, `n` choices of each, one way of sampling.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The client-visible id, such as `chatcmpl-…`.
    pub id: String,
    /// What is made of the prompts.
    pub task: Task,
    /// At least one. Choice `p * n + j` is the `j`-th answer to prompt `p`.
    pub prompts: Vec<Prompt>,
    /// Choices per prompt.
    pub n: u32,
    /// Tokens to generate per choice at most; already clipped to the context window.
    pub max_tokens: u32,
    /// Ends a choice on decoded text; the earliest end wins, then the listed order.
    pub stop: Vec<String>,
    /// Whether the text keeps the stop string that ended it.
    pub include_stop: bool,
    /// Whether end-of-sequence tokens are ordinary tokens.
    pub ignore_eos: bool,
    /// End-of-sequence tokens end no choice that has fewer tokens.
    pub min_tokens: u32,
    /// So many of the prompt's last tokens come before the output; `u32::MAX`: all.
    pub echo: u32,
    /// Report log-probabilities, with this many alternatives.
    pub logprobs: Option<u32>,
    /// What a choice may say.
    pub grammar: Option<Grammar>,
    /// Tokens that a choice is likely to have: for speed alone.
    pub prediction: Vec<u32>,
    /// Special tokens whose names are part of the text.
    pub shown: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Who asks: separates caches and queues.
    pub tenant: String,
    /// Higher runs first.
    pub priority: i32,
    /// Requests of one session are likely to share a prefix.
    pub session: Option<u64>,
    /// Requests share cached prefixes only within one salt.
    pub cache_salt: String,
    /// Tokens of the prompt that may come from the prefix cache.
    pub max_cached_tokens: Option<u32>,
    /// W3C trace context.
    pub traceparent: String,
    /// No use for an answer after this.
    pub deadline: Option<Instant>,
}

/// What is made of prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Text that goes on from them.
    #[default]
    Generate,
    /// One embedding of each; `max_tokens` is 0.
    Embed,
}

/// How tokens are drawn. The default changes nothing about the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 = greedy.
    pub temperature: f32,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub top_k: u32,
    /// 0 = off.
    pub min_p: f32,
    /// 1 = off.
    pub typical_p: f32,
    /// In place of the filters above.
    pub mirostat: Option<Mirostat>,
    /// Per time that a token was generated; 0 = off.
    pub frequency_penalty: f32,
    /// Once a token was generated; 0 = off.
    pub presence_penalty: f32,
    /// For tokens of prompt and output; 1 = off.
    pub repetition_penalty: f32,
    /// Added to the logits of tokens, each of which is there once.
    pub bias: Arc<[(u32, f32)]>,
    /// Drawn at admission when the client gave none.
    pub seed: u64,
}

/// Mirostat's two numbers, both above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mirostat {
    /// Wanted surprise of a token, bits.
    pub target: f32,
    /// Learning rate.
    pub rate: f32,
}

/// A tokenized prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// At least one.
    pub tokens: Vec<u32>,
}

/// New output of one choice. The first delta of an echoed choice carries the prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Which choice.
    pub choice: u32,
    /// Text that is final: whole UTF-8 characters, never part of a stop string that may still complete.
    pub text: String,
    /// The tokens that this delta accounts for, prompt tokens of an echo included.
    pub tokens: Vec<Token>,
    /// The prompt's embedding, on the only delta of a [`Task::Embed`].
    pub embedding: Vec<f32>,
    /// Set on the choice's last delta.
    pub finish: Option<Finish>,
    /// What was guessed of the choice's tokens before they were drawn, on its last delta.
    pub guessed: Guessed,
}

/// Guesses, and how many were right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guessed {
    /// By how many guessed tokens came before in the same step: (right, made).
    pub places: [(u32, u32); Guessed::PLACES],
    /// Of the client's own prediction: (right, made).
    pub predicted: (u32, u32),
}

/// A token and, when asked for, its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its own bytes (may be part of a character).
    pub bytes: Vec<u8>,
    /// Where its text starts: characters from the start of the choice's text.
    pub text_offset: u32,
    /// Of the prompt, not generated.
    pub echoed: bool,
    /// `None` where there is none: not asked for, or an echoed prompt's first token.
    pub logprob: Option<f32>,
    /// The best alternatives: id, bytes, log-probability; best first.
    pub top: Vec<(u32, Vec<u8>, f32)>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// End of sequence, or a stop string.
    Stop,
    /// `max_tokens` or the context window.
    Length,
}

/// The end of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: Reason,
    /// Generated tokens that count: up to and with the one that completed a stop string, without an end token.
    pub completion_tokens: u32,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// Which of the stop strings ended it, if one did.
    pub stop: Option<u32>,
}

// === impl Guessed ===

impl Guessed {
    /// Places that are told apart; what is guessed beyond counts at the last.
    pub const PLACES: usize = 8;

    /// Counts the guesses of a step.
    pub fn count(&mut self, step: Drafted) {
        for nth in 0..step.tokens {
            let (right, made) = &mut self.places[(nth as usize).min(Self::PLACES - 1)];
            *made += 1;
            *right += u32::from(nth < step.accepted);
        }
        if step.predicted {
            self.predicted.0 += step.accepted;
            self.predicted.1 += step.tokens;
        }
    }

    /// Counts another choice's.
    pub fn add(&mut self, other: &Self) {
        let all = self.places.iter_mut().zip(other.places);
        for ((right, made), (more_right, more_made)) in all.chain([(&mut self.predicted, other.predicted)]) {
            *right += more_right;
            *made += more_made;
        }
    }
}

// === impl Sampling ===

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            mirostat: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            bias: Arc::default(),
            seed: 0,
        }
    }
}
