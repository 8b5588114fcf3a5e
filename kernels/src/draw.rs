//! What a draw can ask for besides filters: penalties for tokens that were there before, and mirostat.
//!
//! Both are functions of what a sequence holds: a [`History`] of its tokens alone, mirostat's bound of its
//! draws. So a sequence that is taken up elsewhere goes on exactly.

use std::{collections::HashMap, sync::Arc};

/// Penalties for tokens that a sequence has already.
#[derive(Clone, Debug, PartialEq)]
pub struct Penalties {
    /// Taken off a token's logit as often as it was generated.
    pub frequency: f32,
    /// Taken off once if it was generated at all.
    pub presence: f32,
    /// Positive logits of all tokens in the history are divided by this, others multiplied (Keskar et al.,
    /// "CTRL", 2019). Above 0; 1 = off.
    pub repetition: f32,
    /// The tokens.
    pub history: Arc<History>,
}

/// The distinct tokens of a sequence, kept up to date token by token.
#[derive(Clone, Debug, Default)]
pub struct History {
    seen: Vec<Seen>,
    places: HashMap<u32, usize>,
}

/// A token of a [`History`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub token: u32,
    /// How often it was generated; 0 if it is only in the prompt.
    pub generated: u32,
}

/// Mirostat 2 (Basu et al., "Mirostat: a neural text decoding algorithm that directly controls perplexity",
/// 2021): tokens more surprising than a bound are cut off, and the bound follows the surprise of what is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mirostat {
    /// Wanted surprise of a token, in bits.
    pub target: f32,
    /// How fast the bound follows.
    pub rate: f32,
    /// Bits of surprise that a token may have at most, in the distribution at the draw's temperature.
    pub bound: f32,
}

// === impl Penalties ===

impl Penalties {
    /// The logit of a token of the history.
    pub(crate) fn apply(&self, logit: f32, seen: Seen) -> f32 {
        let scaled = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        let present = if seen.generated > 0 { self.presence } else { 0.0 };
        scaled - self.frequency * seen.generated as f32 - present
    }
}

// === impl History ===

impl History {
    /// Adds a token of the prompt.
    pub fn prompt(&mut self, token: u32) {
        self.place(token);
    }

    /// Adds a generated token.
    pub fn generated(&mut self, token: u32) {
        let place = self.place(token);
        self.seen[place].generated += 1;
    }

    /// Its tokens, in the order of their first appearance.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    fn place(&mut self, token: u32) -> usize {
        *self.places.entry(token).or_insert_with(|| {
            self.seen.push(Seen { token, generated: 0 });
            self.seen.len() - 1
        })
    }
}

/// The places follow from what was seen.
impl PartialEq for History {
    fn eq(&self, other: &Self) -> bool {
        self.seen == other.seen
    }
}

// === impl Mirostat ===

impl Mirostat {
    /// Before the first draw.
    pub fn start(target: f32, rate: f32) -> Self {
        Self { target, rate, bound: 2.0 * target }
    }

    /// The bound after a token with so many bits of surprise.
    pub(crate) fn next_bound(self, surprise: f64) -> f32 {
        (f64::from(self.bound) - f64::from(self.rate) * (surprise - f64::from(self.target))) as f32
    }
}
