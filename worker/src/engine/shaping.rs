//! What shapes a sequence's draws beyond their filters, and has state: penalties, bias, mirostat. The state
//! follows from the tokens, except mirostat's, which comes with an admission.

use std::sync::Arc;

use volley_kernels::{Draw, Drawn, History, Mirostat, Penalties};
use volley_proto::v1::{NewSequence, Sampling};

use super::Limits;

/// Mirostat's learning rate where none is asked for: usual among servers.
const MIROSTAT_RATE: f32 = 0.1;

/// Adjusts draws.
#[derive(Default)]
pub(super) struct Shaping {
    penalties: Option<Penalties>,
    bias: Arc<[(u32, f32)]>,
    mirostat: Option<Mirostat>,
}

// === impl Shaping ===

impl Shaping {
    /// As it stands after the tokens that are known.
    pub(super) fn new(new: &NewSequence, sampling: &Sampling) -> Self {
        let prompt = (new.prompt_tokens as usize).min(new.tokens.len());
        let mirostat = sampling.mirostat_target.map(|target| {
            let start = Mirostat::start(target, sampling.mirostat_rate.unwrap_or(MIROSTAT_RATE));
            Mirostat { bound: new.mirostat.unwrap_or(start.bound), ..start }
        });
        let bias = sampling.bias_tokens.iter().copied().zip(sampling.bias_values.iter().copied());
        Self {
            penalties: penalties(sampling, &new.tokens[..prompt], &new.tokens[prompt..]),
            bias: bias.collect(),
            mirostat,
        }
    }

    /// Whether a draw depends on what was drawn before.
    pub(super) fn looks_back(&self) -> bool {
        self.penalties.is_some() || self.mirostat.is_some()
    }

    /// A draw that has only its filters yet, after tokens that are known and then `guess`.
    pub(super) fn shape(&self, draw: Draw, guess: &[u32]) -> Draw {
        let mut penalties = self.penalties.clone();
        if let Some(penalties) = penalties.as_mut().filter(|_| !guess.is_empty()) {
            let history = Arc::make_mut(&mut penalties.history);
            guess.iter().for_each(|&token| history.generated(token));
        }
        Draw { penalties, bias: self.bias.clone(), mirostat: self.mirostat, ..draw }
    }

    /// Takes in what was drawn. The draw itself must be gone: it shares the history.
    pub(super) fn push(&mut self, drawn: &Drawn) {
        if let Some(penalties) = &mut self.penalties {
            Arc::make_mut(&mut penalties.history).generated(drawn.token);
        }
        if let (Some(mirostat), Some(bound)) = (&mut self.mirostat, drawn.mirostat) {
            mirostat.bound = bound;
        }
    }
}

fn penalties(sampling: &Sampling, prompt: &[u32], generated: &[u32]) -> Option<Penalties> {
    let (frequency, presence) = (sampling.frequency_penalty, sampling.presence_penalty);
    let repetition = sampling.repetition_penalty.unwrap_or(1.0);
    if frequency == 0.0 && presence == 0.0 && repetition == 1.0 {
        return None;
    }
    let mut history = History::default();
    if repetition != 1.0 {
        prompt.iter().for_each(|&token| history.prompt(token));
    }
    generated.iter().for_each(|&token| history.generated(token));
    Some(Penalties { frequency, presence, repetition, history: Arc::new(history) })
}

/// What is asked for that can't be.
pub(super) fn cannot_shape(sampling: &Sampling, limits: &Limits) -> Option<String> {
    let unit = |value: Option<f32>| value.is_none_or(|value| (0.0..=1.0).contains(&value));
    if !unit(sampling.top_p) || !unit(sampling.min_p) || !unit(sampling.typical_p) {
        return Some("top_p, min_p and typical_p are expected between 0 and 1".to_owned());
    }
    let penalties = [sampling.frequency_penalty, sampling.presence_penalty];
    if !penalties.iter().chain(&sampling.bias_values).all(|value| value.is_finite()) {
        return Some("penalties and biases are expected to be finite".to_owned());
    }
    let positive = |value: Option<f32>| value.is_none_or(|value| value > 0.0 && value.is_finite());
    if !positive(sampling.repetition_penalty)
        || !positive(sampling.mirostat_target)
        || !positive(sampling.mirostat_rate)
    {
        return Some("repetition_penalty, mirostat_target and mirostat_rate are expected above 0".to_owned());
    }
    if sampling.bias_tokens.len() != sampling.bias_values.len() {
        return Some("each bias is expected to have a token".to_owned());
    }
    let outside = sampling.bias_tokens.iter().find(|token| **token as usize >= limits.vocab)?;
    Some(format!("token {outside} is outside the vocabulary of {}", limits.vocab))
}
