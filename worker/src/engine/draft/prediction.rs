//! A text that the client expects: followed as long as it is right, and found again after it wasn't.

use super::{ByGram, LONGEST, SHORTEST, gram};

/// After a difference, so many tokens are taken for replaced ones: the text goes on beside them.
const REPLACED: usize = 4;
/// As long as that isn't certain, a guess is short.
const UNCERTAIN: usize = 2;

/// The text, and where in it the answer is.
#[derive(Debug)]
pub(super) struct Prediction {
    text: Vec<u32>,
    /// What each run of tokens is followed by, in order.
    followed: ByGram<Vec<u32>>,
    /// The place that comes next, if no more than replacements lie between.
    at: usize,
    /// Tokens that differed since the last that didn't.
    differing: usize,
    /// Tokens of the answer that are known.
    seen: usize,
}

// === impl Prediction ===

impl Prediction {
    pub(super) fn new(text: Vec<u32>) -> Self {
        let mut followed = ByGram::<Vec<u32>>::default();
        for length in SHORTEST..=LONGEST {
            for (first, run) in text.windows(length).enumerate() {
                followed.entry(gram(run)).or_default().push((first + length) as u32);
            }
        }
        Self { text, followed, at: 0, differing: 0, seen: 0 }
    }

    /// Takes in what is new of the answer, which only grows.
    pub(super) fn follow(&mut self, answer: &[u32]) {
        for end in self.seen + 1..=answer.len() {
            if self.differing == 0 && self.text.get(self.at) == answer.get(end - 1) {
                self.at += 1;
            } else if let Some(place) = self.find(&answer[..end]) {
                (self.at, self.differing) = (place, 0);
            } else {
                (self.at, self.differing) = (self.at + 1, self.differing + 1);
            }
        }
        self.seen = answer.len();
    }

    /// Up to `most` tokens that follow, if it is known where the answer is.
    pub(super) fn guess(&self, most: usize) -> Option<Vec<u32>> {
        let most = match self.differing {
            0 => most,
            1..=REPLACED => most.min(UNCERTAIN),
            _ => return None,
        };
        let end = (self.at + most).min(self.text.len());
        self.text.get(self.at..end).filter(|guess| !guess.is_empty()).map(<[u32]>::to_vec)
    }

    /// The place after the answer's last tokens: the first from where it was lost, or else the last before.
    fn find(&self, answer: &[u32]) -> Option<usize> {
        let lost = self.at.saturating_sub(self.differing);
        (SHORTEST..=LONGEST.min(answer.len())).rev().find_map(|length| {
            let places = self.followed.get(&gram(&answer[answer.len() - length..]))?;
            let next = places.partition_point(|&place| (place as usize) < lost);
            places.get(next).or(places.last()).map(|&place| place as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &[u32], answer: &[u32], most: usize) -> Option<Vec<u32>> {
        let mut prediction = Prediction::new(text.to_vec());
        prediction.follow(answer);
        prediction.guess(most)
    }

    #[test]
    fn a_prediction_is_followed_from_its_beginning_to_its_end() {
        let text = [1, 2, 3, 4];
        assert_eq!(after(&text, &[], 3), Some(vec![1, 2, 3]));
        assert_eq!(after(&text, &[1, 2], 3), Some(vec![3, 4]));
        assert_eq!(after(&text, &[1, 2, 3, 4], 3), None);
    }

    #[test]
    fn it_is_found_again_after_a_replacement_an_insertion_and_a_deletion() {
        let text: Vec<u32> = (1..30).collect();
        assert_eq!(after(&text, &[1, 2, 3, 99], 8), Some(vec![5, 6]), "perhaps it replaces 4");
        assert_eq!(after(&text, &[1, 2, 3, 99, 5, 6], 3), Some(vec![7, 8, 9]));
        assert_eq!(after(&text, &[90, 91, 92, 93, 94], 3), None, "it is lost");
        assert_eq!(after(&text, &[90, 91, 92, 93, 94, 1, 2], 3), Some(vec![3, 4, 5]));
        assert_eq!(after(&text, &[1, 2, 10, 11], 3), Some(vec![12, 13, 14]));
    }

    #[test]
    fn of_equal_places_the_next_one_is_taken() {
        let text = [7, 8, 1, 7, 8, 2, 7, 8, 3];
        assert_eq!(after(&text, &[7, 8, 1, 5, 7, 8], 1), Some(vec![2]));
        assert_eq!(
            after(&text, &[7, 8, 1, 7, 8, 2, 7, 8, 5, 7, 8], 1),
            Some(vec![3]),
            "the last, if none is next"
        );
    }
}
