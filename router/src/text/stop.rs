//! Stop strings, found as the text grows: one Knuth–Morris–Pratt automaton each.
//!
//! A state is how much of the string's start the text ends with, so the largest state is also how much of
//! the text must be held back.

use super::tokenizer::Tokenizer;

/// What ends a choice beside the model's own end tokens.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    strings: Vec<StopString>,
    tokens: Vec<u32>,
}

#[derive(Clone, Debug)]
struct StopString {
    bytes: Vec<u8>,
    /// `fallback[i]`: length of the longest proper prefix that the first `i + 1` bytes end with.
    fallback: Vec<u32>,
}

// === impl Stops ===

impl Stops {
    /// Stops at these strings; one that is the name of a special token also stops at that token, which
    /// gives no text to find.
    pub fn new(strings: &[String], tokenizer: &Tokenizer) -> Self {
        let tokens = strings.iter().filter_map(|name| tokenizer.vocabulary().special(name)).collect();
        let strings =
            strings.iter().filter(|text| !text.is_empty()).map(|text| StopString::new(text)).collect();
        Self { strings, tokens }
    }

    /// The special tokens named.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The states before any text.
    pub fn start(&self) -> Vec<u32> {
        vec![0; self.strings.len()]
    }

    /// Reads more text. Gives where in it the first stop string ends, and that string's length in bytes; of
    /// several that end there, the one listed first. The states are of no more use then.
    pub fn advance(&self, states: &mut [u32], text: &[u8]) -> Option<(usize, usize)> {
        if self.strings.is_empty() {
            return None;
        }
        for (i, byte) in text.iter().enumerate() {
            let mut found = None;
            for (string, state) in self.strings.iter().zip(states.iter_mut()) {
                *state = string.advance(*state, *byte);
                if *state as usize == string.bytes.len() {
                    found = found.or(Some(string.bytes.len()));
                }
            }
            if let Some(length) = found {
                return Some((i + 1, length));
            }
        }
        None
    }

    /// How many bytes at the end of the text may still become a stop string.
    pub fn held(states: &[u32]) -> usize {
        states.iter().copied().max().unwrap_or(0) as usize
    }
}

// === impl StopString ===

impl StopString {
    fn new(text: &str) -> Self {
        let mut string = Self { bytes: text.as_bytes().to_vec(), fallback: vec![0] };
        for i in 1..string.bytes.len() {
            let state = string.advance(string.fallback[i - 1], string.bytes[i]);
            string.fallback.push(state);
        }
        string
    }

    fn advance(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            if self.bytes[state as usize] == byte {
                return state + 1;
            }
            match state.checked_sub(1) {
                None => return 0,
                Some(last) => state = self.fallback[last as usize],
            }
        }
    }
}
