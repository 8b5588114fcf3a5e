//! Guesses at what a sequence will draw next: drafts.
//!
//! A guess that is drawn indeed saves its sequence a step; any other costs a row. It never changes a stream:
//! each row draws what would be drawn there without it, and draws behind a wrong guess don't count.
//!
//! | file | guesses from |
//! | --- | --- |
//! | `lookup.rs` | the sequence itself: what followed its last tokens before |
//! | `prediction.rs` | the text that the client expects |
//! | `model.rs` | a small model, where neither has anything |

mod lookup;
mod model;
mod prediction;

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

pub(crate) use self::model::DraftModel;
use self::{lookup::Lookup, prediction::Prediction};

/// Longest and shortest run of tokens that is looked up.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// Guesses for one sequence. It learns of tokens when it is asked: without drafts it costs nothing.
#[derive(Debug)]
pub(super) struct Drafter {
    lookup: Lookup,
    prediction: Option<Prediction>,
}

/// Tokens that may come next, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guess {
    pub(super) tokens: Vec<u32>,
    /// They are from the request's prediction.
    pub(super) predicted: bool,
}

/// A map by hashes of tokens, which need no other hash.
type ByGram<V> = HashMap<u64, V, BuildHasherDefault<Same>>;

/// The hash of a number is the number.
#[derive(Default)]
struct Same(u64);

// === impl Drafter ===

impl Drafter {
    /// `prediction` may be empty.
    pub(super) fn new(prediction: Vec<u32>) -> Self {
        let prediction = (!prediction.is_empty()).then(|| Prediction::new(prediction));
        Self { lookup: Lookup::default(), prediction }
    }

    /// Up to `most` tokens after `tokens`, of which `prompt` are the prompt.
    pub(super) fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize) -> Option<Guess> {
        if most == 0 {
            return None;
        }
        let predicted = self.prediction.as_mut().and_then(|prediction| {
            prediction.follow(tokens.get(prompt..).unwrap_or_default());
            prediction.guess(most)
        });
        if let Some(tokens) = predicted {
            return Some(Guess { tokens, predicted: true });
        }
        self.lookup.follow(tokens);
        let tokens = self.lookup.guess(tokens, most)?;
        Some(Guess { tokens, predicted: false })
    }
}

/// The hash of some tokens in a row.
fn gram(tokens: &[u32]) -> u64 {
    tokens.iter().fold(tokens.len() as u64, |hash, &token| {
        // FNV's prime with a rotation: it spreads, and needn't be safe, since a collision costs a row.
        (hash.rotate_left(29) ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

// === impl Same ===

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(prediction: &[u32], tokens: &[u32], prompt: usize, most: usize) -> Option<Guess> {
        Drafter::new(prediction.to_vec()).guess(tokens, prompt, most)
    }

    #[test]
    fn the_prediction_comes_before_what_the_text_repeats() {
        let tokens = [1, 2, 3, 9, 1, 2];
        let predicted = guess(&[1, 2, 7, 8], &tokens, 4, 3).unwrap();
        assert_eq!((predicted.tokens.as_slice(), predicted.predicted), (&[7, 8][..], true));
        let repeated = guess(&[5, 5], &tokens, 4, 3).unwrap();
        assert_eq!((repeated.tokens.as_slice(), repeated.predicted), (&[3, 9][..], false));
        assert_eq!(guess(&[], &tokens, 4, 0), None);
        assert_eq!(guess(&[], &[1, 2, 3, 4], 4, 3), None, "nothing repeats");
    }

    #[test]
    fn a_drafter_that_hears_all_at_once_knows_what_one_knows_that_hears_each_token() {
        let text: Vec<u32> = (0..200u32).map(|i| (i * i / 7) % 11).collect();
        let prediction: Vec<u32> = text[60..160].iter().map(|&token| token ^ u32::from(token == 3)).collect();
        let mut steadily = Drafter::new(prediction.clone());
        for end in 50..text.len() {
            let heard = steadily.guess(&text[..end], 50, 8);
            assert_eq!(heard, guess(&prediction, &text[..end], 50, 8), "after {end} tokens");
        }
    }
}
