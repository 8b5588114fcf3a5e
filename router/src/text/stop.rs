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
    /// Beside `tokens`: which of the strings names each.
    names: Vec<u32>,
}

/// A stop string in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it ends, bytes.
    pub end: usize,
    /// Its own bytes.
    pub length: usize,
    /// Which it is, as the request lists them.
    pub index: u32,
}

#[derive(Clone, Debug)]
struct StopString {
    bytes: Vec<u8>,
    index: u32,
    /// `fallback[i]`: length of the longest proper prefix that the first `i + 1` bytes end with.
    fallback: Vec<u32>,
}

// === impl Stops ===

impl Stops {
    /// Stops at these strings; one that is the name of a special token also stops at that token, which
    /// gives no text to find.
    pub fn new(strings: &[String], tokenizer: &Tokenizer) -> Self {
        let numbered = (0..).zip(strings);
        let special = |(index, name): (u32, &String)| Some((tokenizer.vocabulary().special(name)?, index));
        let (tokens, names) = numbered.clone().filter_map(special).unzip();
        let strings = numbered.filter(|(_, text)| !text.is_empty());
        let strings = strings.map(|(index, text)| StopString::new(text, index)).collect();
        Self { strings, tokens, names }
    }

    /// Which of the strings names that special token.
    pub fn naming(&self, token: u32) -> Option<u32> {
        let at = self.tokens.iter().position(|stop| *stop == token)?;
        self.names.get(at).copied()
    }

    /// The special tokens named.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The states before any text.
    pub fn start(&self) -> Vec<u32> {
        vec![0; self.strings.len()]
    }

    /// Reads more text. Gives the stop string that ends first in it; of several that end there, the one listed
    /// first. The states are of no more use then.
    pub fn advance(&self, states: &mut [u32], text: &[u8]) -> Option<Found> {
        if self.strings.is_empty() {
            return None;
        }
        for (i, byte) in text.iter().enumerate() {
            let mut found = None;
            for (string, state) in self.strings.iter().zip(states.iter_mut()) {
                *state = string.advance(*state, *byte);
                if *state as usize == string.bytes.len() {
                    let (length, index) = (string.bytes.len(), string.index);
                    found = found.or(Some(Found { end: i + 1, length, index }));
                }
            }
            if found.is_some() {
                return found;
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
    fn new(text: &str, index: u32) -> Self {
        let mut string = Self { bytes: text.as_bytes().to_vec(), index, fallback: vec![0] };
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
