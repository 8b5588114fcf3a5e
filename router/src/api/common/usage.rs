//! Counting what a request used.

use serde::Serialize;

use crate::generation::{Finish, Guessed};

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub prompt_tokens: u64,
    pub total_tokens: u64,
    pub completion_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u64,
    /// Of the client's prediction, where it gave one.
    #[serde(flatten)]
    prediction: Option<PredictionDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct PredictionDetails {
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

/// The running count of one request. A prompt counts once, whatever `n` is.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    prompt_tokens: u64,
    completion_tokens: u64,
    /// Of these, reasoning.
    reasoning_tokens: u64,
    /// Per prompt: the most that any of its choices found in the cache.
    cached: Vec<u32>,
    /// Per choice.
    finished: Vec<bool>,
    n: u32,
    /// Over all choices.
    guessed: Guessed,
    /// Tokens of the client's prediction, if it gave one.
    predicted: Option<u64>,
}

// === impl Usage ===

impl Usage {
    pub(crate) fn reasoning_tokens(self) -> u64 {
        self.completion_tokens_details.reasoning_tokens
    }
}

// === impl Tally ===

impl Tally {
    pub(crate) fn new(prompts: &[usize], n: u32) -> Self {
        Self {
            prompt_tokens: prompts.iter().map(|length| *length as u64).sum(),
            completion_tokens: 0,
            reasoning_tokens: 0,
            cached: vec![0; prompts.len()],
            finished: vec![false; prompts.len() * n as usize],
            n,
            guessed: Guessed::default(),
            predicted: None,
        }
    }

    /// The client predicts so many tokens of the answer.
    pub(crate) fn predicting(self, tokens: Option<u64>) -> Self {
        Self { predicted: tokens, ..self }
    }

    /// Counts what was guessed of a choice.
    pub(crate) fn guess(&mut self, guessed: &Guessed) {
        self.guessed.add(guessed);
    }

    pub(crate) fn guessed(&self) -> &Guessed {
        &self.guessed
    }

    /// Tokens of the client's prediction, if it gave one.
    pub(crate) fn predicted(&self) -> Option<u64> {
        self.predicted
    }

    /// Counts the end of a choice; a second end of the same choice, or a choice that isn't, counts nothing.
    pub(crate) fn finish(&mut self, choice: u32, finish: Finish) {
        let Some(finished @ false) = self.finished.get_mut(choice as usize) else { return };
        *finished = true;
        self.completion_tokens += u64::from(finish.completion_tokens);
        if let Some(cached) = self.cached.get_mut((choice / self.n) as usize) {
            *cached = finish.cached_tokens.max(*cached);
        }
    }

    /// Counts and records an answer of one choice that is over.
    pub(crate) fn close(&mut self, finish: Finish, reasoning: u32) {
        self.finish(0, finish);
        self.reason(reasoning);
        self.record();
    }

    /// Counts tokens of reasoning; they are completion tokens too.
    pub(crate) fn reason(&mut self, tokens: u32) {
        self.reasoning_tokens += u64::from(tokens);
    }

    pub(crate) fn choices(&self) -> u32 {
        self.finished.len() as u32
    }

    pub(crate) fn prompts(&self) -> usize {
        self.cached.len()
    }

    /// Which prompt a choice answers.
    pub(crate) fn prompt_of(&self, choice: u32) -> usize {
        (choice / self.n) as usize
    }

    /// The lowest choice that goes on.
    pub(crate) fn first_running(&self) -> Option<u32> {
        self.finished.iter().position(|finished| !finished).map(|choice| choice as u32)
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    pub(crate) fn cached_tokens(&self) -> u64 {
        self.cached.iter().map(|cached| u64::from(*cached)).sum()
    }

    /// Adds a complete answer to the process's counters.
    pub(crate) fn record(&self) {
        metrics::counter!("volley_prompt_tokens_total").increment(self.prompt_tokens);
        metrics::counter!("volley_cached_prompt_tokens_total").increment(self.cached_tokens());
        metrics::counter!("volley_completion_tokens_total").increment(self.completion_tokens);
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: self.cached_tokens() },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: self.reasoning_tokens,
                prediction: self.predicted.map(|_| self.prediction()),
            },
        }
    }

    fn prediction(&self) -> PredictionDetails {
        let (right, made) = self.guessed.predicted;
        PredictionDetails {
            accepted_prediction_tokens: right.into(),
            rejected_prediction_tokens: made.saturating_sub(right).into(),
        }
    }
}
