//! What an answer tells of speculation: how many tokens were guessed before they were drawn, and were right.

use serde::Serialize;

use super::usage::Tally;
use crate::generation::Guessed;

/// For those who can't read headers; what there is nothing to tell of is left out.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SpeculationMetrics {
    /// Tokens of the client's prediction.
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation_prompt_tokens: Option<u64>,
    /// Of them, those that were drawn as predicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation_prompt_matched_tokens: Option<u64>,
    /// Tokens that were guessed, wherever from.
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation_generated_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation_acceptance: Option<String>,
}

/// How many guesses were right of how many, by how many came before in the same step: `0:12/30,1:5/30`.
pub(crate) fn acceptance(guessed: &Guessed) -> Option<String> {
    let places = guessed.places.iter().enumerate().filter(|(_, (_, made))| *made > 0);
    let told: Vec<_> = places.map(|(place, (right, made))| format!("{place}:{right}/{made}")).collect();
    (!told.is_empty()).then(|| told.join(","))
}

// === impl SpeculationMetrics ===

impl SpeculationMetrics {
    pub(crate) fn of(tally: &Tally) -> Self {
        let guessed = tally.guessed();
        let made = guessed.places.iter().map(|(_, made)| u64::from(*made)).sum();
        Self {
            speculation_prompt_tokens: tally.predicted(),
            speculation_prompt_matched_tokens: tally.predicted().map(|_| guessed.predicted.0.into()),
            speculation_generated_tokens: (made > 0).then_some(made),
            speculation_acceptance: acceptance(guessed),
        }
    }
}

#[cfg(test)]
mod tests {
    use volley_proto::v1::Drafted;

    use super::*;

    #[test]
    fn acceptance_is_told_by_place() {
        let mut guessed = Guessed::default();
        assert_eq!(acceptance(&guessed), None);
        guessed.count(Drafted { tokens: 3, accepted: 1, predicted: true });
        guessed.count(Drafted { tokens: 2, accepted: 2, predicted: false });
        let mut all = guessed;
        all.add(&guessed);
        assert_eq!(acceptance(&guessed).as_deref(), Some("0:2/2,1:1/2,2:0/1"));
        assert_eq!(acceptance(&all).as_deref(), Some("0:4/4,1:2/4,2:0/2"));
        assert_eq!((guessed.predicted, all.predicted), ((1, 3), (2, 6)));
    }
}
