//! What an answer tells beyond text, usage and log-probabilities, for those who ask: `return_token_ids`,
//! `raw_output`, `perf_metrics_in_response`. In a stream the first two make lines as long as what they tell.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::{logprobs::View, parameters::LogprobsFormat, speculation::SpeculationMetrics, usage::Tally};
use crate::{engine::Model, generation::Token, http::exchange::Exchange};

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub token_ids: bool,
    pub raw_output: bool,
    pub perf_metrics: bool,
}

/// What is needed to tell it.
pub(crate) struct Extras {
    report: Report,
    /// Empty unless something tells of them.
    prompts: Vec<Vec<u32>>,
    /// The prompts as the model sees them, for `raw_output`.
    texts: Vec<String>,
    exchange: Arc<Exchange>,
    first_token: Duration,
}

/// One prompt's tokens, or several prompts' lists.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum PromptIds<'a> {
    One(&'a [u32]),
    Several(&'a [Vec<u32>]),
}

/// What went into the model and came out of it.
#[derive(Serialize)]
pub(crate) struct RawOutput<'a> {
    prompt_fragments: [&'a str; 1],
    prompt_token_ids: &'a [u32],
    completion: String,
    completion_token_ids: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_logprobs: Option<View<'a>>,
}

/// What the headers of an answer in one piece tell, for those who can't read headers. Times in seconds.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PerfMetrics {
    prompt_tokens: u64,
    cached_prompt_tokens: u64,
    server_time_to_first_token: f64,
    server_processing_time: f64,
    #[serde(flatten)]
    speculation: SpeculationMetrics,
}

// === impl Report ===

impl Report {
    /// Whether prompts are told of.
    pub(crate) fn prompts(self) -> bool {
        self.token_ids || self.raw_output
    }

    /// Whether a choice's tokens must be kept until it ends.
    pub(crate) fn keeps_tokens(self) -> bool {
        self.raw_output
    }
}

// === impl Extras ===

impl Extras {
    /// `prompts` may be empty unless [`Report::prompts`].
    pub(crate) fn new(
        report: Report,
        prompts: Vec<Vec<u32>>,
        model: &Model,
        exchange: Arc<Exchange>,
        first_token: Duration,
    ) -> Self {
        let text = |tokens: &Vec<u32>| lossy(tokens.iter().map(|id| model.token_bytes(*id)));
        let texts = if report.raw_output { prompts.iter().map(text).collect() } else { Vec::new() };
        Self { report, prompts, texts, exchange, first_token }
    }

    pub(crate) fn report(&self) -> Report {
        self.report
    }

    pub(crate) fn prompt_token_ids(&self) -> Option<PromptIds<'_>> {
        self.report.token_ids.then_some(match self.prompts.as_slice() {
            [one] => PromptIds::One(one),
            several => PromptIds::Several(several),
        })
    }

    /// The ids of what was generated.
    pub(crate) fn token_ids(&self, tokens: &[Token]) -> Option<Vec<u32>> {
        self.report.token_ids.then(|| ids(generated(tokens)))
    }

    /// `tokens`: all of a choice; `prompt`: which it answers.
    pub(crate) fn raw_output<'a>(
        &'a self,
        prompt: usize,
        tokens: &'a [Token],
        logprobs: Option<LogprobsFormat>,
    ) -> Option<RawOutput<'a>> {
        let (text, prompt) = (self.texts.get(prompt)?, self.prompts.get(prompt)?);
        let generated = generated(tokens);
        Some(RawOutput {
            prompt_fragments: [text],
            prompt_token_ids: prompt,
            completion: lossy(generated.iter().map(|token| token.bytes.as_slice())),
            completion_token_ids: ids(generated),
            completion_logprobs: View::new(logprobs, generated),
        })
    }

    /// As of now.
    pub(crate) fn perf_metrics(&self, tally: &Tally) -> Option<PerfMetrics> {
        self.report.perf_metrics.then(|| PerfMetrics {
            prompt_tokens: tally.prompt_tokens(),
            cached_prompt_tokens: tally.cached_tokens(),
            server_time_to_first_token: seconds(self.first_token),
            server_processing_time: seconds(self.exchange.elapsed()),
            speculation: SpeculationMetrics::of(tally),
        })
    }
}

/// Without the echoed prompt, which comes first.
pub(super) fn generated(tokens: &[Token]) -> &[Token] {
    &tokens[tokens.iter().take_while(|token| token.echoed).count()..]
}

fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

fn lossy<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let bytes: Vec<u8> = pieces.flatten().copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// To a tenth of a millisecond, as the headers have it.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 1e4
}
