//! What followed the last tokens before: texts repeat their prompts and themselves.
//! (Saxena, "Prompt lookup decoding", 2023.)

use super::{ByGram, LONGEST, SHORTEST, gram};

/// Of a long text only so much is indexed, its end: the step waits meanwhile.
const INDEXED: usize = 16 << 10;

/// Where a text says what it says at its end. An index of its runs of tokens, kept token by token.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Where each run was followed by something last.
    followed: ByGram<u32>,
    /// Tokens that are known.
    seen: usize,
    /// The place whose like comes next.
    at: usize,
    /// How many tokens before it are those at the end.
    matched: usize,
}

// === impl Lookup ===

impl Lookup {
    /// Takes in what is new of `tokens`, which only grow.
    pub(super) fn follow(&mut self, tokens: &[u32]) {
        if self.seen == 0 {
            self.seen = tokens.len().saturating_sub(INDEXED);
        }
        let first = self.seen;
        for end in first + 1..=tokens.len() {
            let same = self.matched > 0 && tokens[self.at] == tokens[end - 1];
            (self.at, self.matched) = if same { (self.at + 1, self.matched + 1) } else { (0, 0) };
            for length in (SHORTEST..=LONGEST.min(end)).rev() {
                let before = self.followed.insert(gram(&tokens[end - length..end]), end as u32);
                if let Some(before) = before.filter(|_| length > self.matched) {
                    (self.at, self.matched) = (before as usize, length);
                }
            }
        }
        self.seen = tokens.len();
    }

    /// Up to `most` tokens that follow, if the text's end was there before: no more than were the same. A
    /// text that overlaps its like goes round.
    pub(super) fn guess(&self, tokens: &[u32], most: usize) -> Option<Vec<u32>> {
        let mut guess = Vec::with_capacity(most.min(self.matched));
        for at in (self.at..).take(most.min(self.matched)) {
            guess.push(*tokens.get(at).or_else(|| guess.get(at.checked_sub(tokens.len())?))?);
        }
        (!guess.is_empty()).then_some(guess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32], most: usize) -> Option<Vec<u32>> {
        let mut lookup = Lookup::default();
        lookup.follow(tokens);
        lookup.guess(tokens, most)
    }

    #[test]
    fn the_longest_and_latest_like_is_continued() {
        // "2 3" was followed by 4 last, but "1 2 3" by 5.
        assert_eq!(guess(&[1, 2, 3, 5, 6, 9, 2, 3, 4, 1, 2, 3], 3), Some(vec![5, 6, 9]));
        assert_eq!(
            guess(&[2, 3, 4, 2, 3, 5, 0, 2, 3], 8),
            Some(vec![5, 0]),
            "the latest, as long as the match"
        );
        assert_eq!(guess(&[1, 2, 3, 4, 5, 3], 8), None, "one token is no match");
    }

    #[test]
    fn a_match_that_goes_on_earns_longer_guesses_and_loops_go_round() {
        let text: Vec<u32> = (0..20).chain(0..12).collect();
        assert_eq!(guess(&text, 8), Some((12..20).collect()));
        assert_eq!(guess(&[7, 8, 9, 7, 8, 9, 7, 8, 9], 6), Some(vec![7, 8, 9, 7, 8, 9]));
    }

    #[test]
    fn the_end_of_a_long_text_is_indexed() {
        let text: Vec<u32> =
            (0..2 * INDEXED as u32).chain([5, 6, 2 * INDEXED as u32 - 9, 2 * INDEXED as u32 - 8]).collect();
        assert_eq!(guess(&text, 8).unwrap().len(), 2);
        let forgotten: Vec<u32> = (0..2 * INDEXED as u32).chain([5, 6]).collect();
        assert_eq!(guess(&forgotten, 8), None);
    }
}
