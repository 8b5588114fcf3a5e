//! The parameters that every text endpoint takes, and what they come to once they are checked.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    extras::Report,
    fields::{Integer, LogprobsField, Number, PromptField, Strings},
    format::{self, Form, ResponseFormat},
    hints::{Likely, Prediction, ServiceTier},
    reasoning::{History, Reasoning, ThinkingField},
    sampling::Draws,
};
use crate::{
    config::{Config, StopWord},
    http::error::ApiError,
};

/// As they arrive. `null` is absent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Parameters {
    /// Which model, in any of its spellings.
    pub model: Option<String>,
    /// Tokens per choice at most.
    pub max_tokens: Option<Integer>,
    /// OpenAI's newer name of `max_tokens`.
    pub max_completion_tokens: Option<Integer>,
    /// What happens when the prompt and `max_tokens` exceed the context window.
    pub context_length_exceeded_behavior: Option<OnOverflow>,
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<Number>,
    /// 0 to 1; 1 is off.
    pub top_p: Option<Number>,
    /// 0 and −1 are off.
    pub top_k: Option<Integer>,
    /// 0 to 1; 0 is off.
    pub min_p: Option<Number>,
    /// 0 to 1; 1 is off.
    pub typical_p: Option<Number>,
    /// −2 to 2, for each time that a token was generated.
    pub frequency_penalty: Option<Number>,
    /// −2 to 2, once a token was generated.
    pub presence_penalty: Option<Number>,
    /// Above 0 to 2, for tokens of prompt and output; 1 is off.
    pub repetition_penalty: Option<Number>,
    /// Bits of surprise to aim at; in place of the filters.
    pub mirostat_target: Option<Number>,
    /// How fast it is followed.
    pub mirostat_lr: Option<Number>,
    /// Token ids (as strings), and −100 to 100 to add to each one's logit.
    pub logit_bias: Option<Map<String, Value>>,
    /// Equal seeds give equal texts.
    pub seed: Option<Integer>,
    /// Choices per prompt.
    pub n: Option<Integer>,
    /// Candidates per prompt, of which the best `n` are answered.
    pub best_of: Option<Integer>,
    /// Strings that end the text.
    pub stop: Option<Strings>,
    /// Whether the text keeps the stop string (vLLM's name).
    pub include_stop_str_in_output: Option<bool>,
    /// Prompt before output.
    pub echo: Option<bool>,
    /// So many of the prompt's last tokens before output.
    pub echo_last: Option<Integer>,
    /// A boolean or a number of alternatives; the type chooses the format.
    pub logprobs: Option<LogprobsField>,
    /// Alternatives, with `logprobs: true`.
    pub top_logprobs: Option<Integer>,
    /// Whether end-of-sequence tokens are ordinary.
    pub ignore_eos: Option<bool>,
    /// End-of-sequence tokens end nothing shorter.
    pub min_tokens: Option<Integer>,
    /// Whether the answer has the ids of its tokens.
    pub return_token_ids: Option<bool>,
    /// Whether the answer has what went into the model and came out of it.
    pub raw_output: Option<bool>,
    /// Whether the body has what the headers tell of time and tokens.
    pub perf_metrics_in_response: Option<bool>,
    /// Text that is likely to be generated: a hint.
    pub speculation: Option<PromptField>,
    /// The same, as OpenAI writes it.
    pub prediction: Option<Prediction>,
    /// What the text must be.
    pub response_format: Option<ResponseFormat>,
    /// A JSON schema of the text (vLLM's name).
    pub guided_json: Option<serde_json::Value>,
    /// A regular expression of the text (vLLM's name).
    pub guided_regex: Option<String>,
    /// The texts to choose from (vLLM's name).
    pub guided_choice: Option<Vec<String>>,
    /// A grammar of the text (vLLM's name).
    pub guided_grammar: Option<String>,
    /// How much to reason: a word, a switch, or a number of tokens.
    pub reasoning_effort: Option<serde_json::Value>,
    /// Whether to reason (Anthropic's shape).
    pub thinking: Option<ThinkingField>,
    /// What becomes of the reasoning in earlier messages.
    pub reasoning_history: Option<History>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// An end user's name: one session, where nothing names another.
    pub user: Option<String>,
    /// Accepted: at most 16 pairs.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Accepted: nothing is stored.
    pub store: Option<bool>,
    /// Accepted.
    pub safety_identifier: Option<String>,
    /// Accepted.
    pub prompt_cache_retention: Option<serde_json::Value>,
    /// Accepted.
    pub prompt_cache_options: Option<serde_json::Value>,
    /// Requests with equal keys are placed where their common prefix is likely to be cached.
    pub prompt_cache_key: Option<String>,
    /// Cached prefixes are shared only between equal keys.
    pub prompt_cache_isolation_key: Option<String>,
    /// Tokens of the prompt that may come from the cache.
    pub prompt_cache_max_len: Option<Integer>,
    /// `priority` runs first.
    pub service_tier: Option<ServiceTier>,
    /// Accepted.
    pub verbosity: Option<String>,
}

/// What happens when the prompt and `max_tokens` exceed the context window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnOverflow {
    /// `max_tokens` is lowered.
    #[default]
    Truncate,
    /// 400.
    Error,
}

/// How a stream reports.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
pub struct StreamOptions {
    /// Whether the last chunk, without choices, has the usage.
    pub include_usage: Option<bool>,
    /// Accepted: padding is never sent.
    pub include_obfuscation: Option<bool>,
}

/// Where a stream tells its usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UsageAt {
    /// On the finish chunk of the choice that ends last: Fireworks' way.
    LastFinish,
    /// On a chunk of its own, without choices: OpenAI's way.
    OwnChunk,
    /// Nowhere.
    Nowhere,
}

/// Which log-probabilities the answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Logprobs {
    pub format: LogprobsFormat,
    /// Alternatives per token.
    pub top: u32,
}

/// How log-probabilities are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogprobsFormat {
    /// `{content: [{token, logprob, …}]}`.
    Content,
    /// `{tokens, token_logprobs, …}`.
    Legacy,
}

/// The parameters, checked; what the model decides is still open.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub model: String,
    pub n: u32,
    /// Candidates per prompt: `n` at least.
    pub best_of: u32,
    pub max_tokens: Option<u64>,
    pub on_overflow: OnOverflow,
    pub draws: Draws,
    pub stop: Vec<String>,
    pub include_stop: bool,
    /// So many of the prompt's last tokens; `u32::MAX`: all.
    pub echo: u32,
    pub ignore_eos: bool,
    pub min_tokens: u32,
    pub logprobs: Option<Logprobs>,
    /// What the text must be.
    pub grammar: Option<Form>,
    pub reasoning: Reasoning,
    pub report: Report,
    /// What the text may be: a hint.
    pub likely: Option<Likely>,
    pub service_tier: Option<ServiceTier>,
    pub session: Option<String>,
    pub user: Option<String>,
    pub isolation: Option<String>,
    pub max_cached_tokens: Option<u32>,
    /// `None`: answer in one piece.
    pub stream: Option<UsageAt>,
}

// === impl Parameters ===

impl Parameters {
    /// Checks everything that needs no model.
    pub(crate) fn check(self, config: &Config) -> Result<Settings, ApiError> {
        let model = self.model.clone().filter(|model| !model.is_empty());
        let model = model.ok_or_else(|| ApiError::missing("model"))?;
        self.check_metadata()?;
        let include_stop = config.stop_word == StopWord::Include;
        let (n, max_tokens, stream) = (self.n()?, self.max_tokens()?, self.stream()?);
        Ok(Settings {
            best_of: self.best_of(n, stream.is_some())?,
            min_tokens: self.min_tokens(max_tokens)?,
            n,
            max_tokens,
            on_overflow: self.context_length_exceeded_behavior.unwrap_or_default(),
            draws: Draws::check(&self, config.top_k_max)?,
            stop: self.stops()?,
            include_stop: self.include_stop_str_in_output.unwrap_or(include_stop),
            echo: self.echo()?,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs: self.logprobs(config.top_logprobs_max)?,
            grammar: format::check(&self)?,
            reasoning: Reasoning::check(&self)?,
            report: Report {
                token_ids: self.return_token_ids.unwrap_or(false),
                raw_output: self.raw_output.unwrap_or(false),
                perf_metrics: self.perf_metrics_in_response.unwrap_or(false),
            },
            max_cached_tokens: count("prompt_cache_max_len", self.prompt_cache_max_len)?,
            likely: Likely::check(self.speculation, self.prediction)?,
            service_tier: self.service_tier,
            session: self.prompt_cache_key,
            user: self.user,
            isolation: self.prompt_cache_isolation_key,
            stream,
            model,
        })
    }

    fn n(&self) -> Result<u32, ApiError> {
        self.n.map_or(Ok(1), |n| integer("n", n, 1, 128).map(|n| n as u32))
    }

    fn best_of(&self, n: u32, stream: bool) -> Result<u32, ApiError> {
        let wrong = |message| Err(ApiError::value("best_of", message));
        match self.best_of.map(|best_of| integer("best_of", best_of, 1, 128)).transpose()? {
            Some(best_of) if best_of < i64::from(n) => wrong("best_of must be at least n"),
            Some(best_of) if best_of > i64::from(n) && stream => {
                wrong("best_of must be n in a stream: the best is only known at the end")
            }
            best_of => Ok(best_of.map_or(n, |best_of| best_of as u32)),
        }
    }

    fn min_tokens(&self, max_tokens: Option<u64>) -> Result<u32, ApiError> {
        let min_tokens = count("min_tokens", self.min_tokens)?.unwrap_or(0);
        if max_tokens.is_some_and(|max_tokens| max_tokens < u64::from(min_tokens)) {
            return Err(ApiError::value("min_tokens", "min_tokens must not be above max_tokens"));
        }
        Ok(min_tokens)
    }

    fn echo(&self) -> Result<u32, ApiError> {
        let last = count("echo_last", self.echo_last)?;
        Ok(if self.echo == Some(true) { u32::MAX } else { last.unwrap_or(0) })
    }

    fn max_tokens(&self) -> Result<Option<u64>, ApiError> {
        let (name, given) = match (self.max_tokens, self.max_completion_tokens) {
            (Some(_), Some(_)) => {
                let message = "max_tokens and max_completion_tokens exclude each other";
                return Err(ApiError::value("max_completion_tokens", message));
            }
            (None, given) => ("max_completion_tokens", given),
            (given, None) => ("max_tokens", given),
        };
        let Some(Integer(given)) = given else { return Ok(None) };
        let tokens = u64::try_from(given)
            .map_err(|_| ApiError::value(name, format!("{name} must not be negative: {given}")))?;
        Ok(Some(tokens))
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let Some(Strings(stops)) = &self.stop else { return Ok(Vec::new()) };
        if stops.len() > 4 {
            let message = format!("stop may have at most 4 entries: {}", stops.len());
            return Err(ApiError::value("stop", message));
        }
        if stops.iter().any(|stop| stop.is_empty() || stop.len() > 1024) {
            return Err(ApiError::value("stop", "each stop string must have 1 to 1024 bytes"));
        }
        Ok(stops.clone())
    }

    fn logprobs(&self, max: u32) -> Result<Option<Logprobs>, ApiError> {
        let top = match self.top_logprobs {
            Some(Integer(top)) if !(0..=i64::from(max)).contains(&top) => {
                let message = format!("top_logprobs must be between 0 and {max}: {top}");
                return Err(ApiError::value("top_logprobs", message));
            }
            top => top.map_or(0, |top| top.0 as u32),
        };
        match self.logprobs {
            None | Some(LogprobsField::Flag(false)) if top > 0 => {
                Err(ApiError::value("top_logprobs", "top_logprobs needs logprobs: true"))
            }
            None | Some(LogprobsField::Flag(false)) => Ok(None),
            Some(LogprobsField::Flag(true)) => Ok(Some(Logprobs { format: LogprobsFormat::Content, top })),
            Some(LogprobsField::Count(count @ 0..=5)) => {
                Ok(Some(Logprobs { format: LogprobsFormat::Legacy, top: top.max(count as u32) }))
            }
            Some(LogprobsField::Count(count)) => {
                let message = format!("logprobs must be between 0 and 5: {count}");
                Err(ApiError::value("logprobs", message))
            }
        }
    }

    fn stream(&self) -> Result<Option<UsageAt>, ApiError> {
        match (self.stream.unwrap_or(false), self.stream_options) {
            (false, None) => Ok(None),
            (false, Some(_)) => {
                Err(ApiError::value("stream_options", "stream_options is only allowed with stream: true"))
            }
            (true, None) => Ok(Some(UsageAt::LastFinish)),
            (true, Some(StreamOptions { include_usage: Some(true), .. })) => Ok(Some(UsageAt::OwnChunk)),
            (true, Some(_)) => Ok(Some(UsageAt::Nowhere)),
        }
    }

    fn check_metadata(&self) -> Result<(), ApiError> {
        let Some(metadata) = &self.metadata else { return Ok(()) };
        let long = |text: &String, limit| text.chars().nth(limit).is_some();
        if metadata.len() > 16 || metadata.iter().any(|(key, value)| long(key, 64) || long(value, 512)) {
            let message = "metadata may have 16 pairs, keys of 64 and values of 512 characters";
            return Err(ApiError::value("metadata", message));
        }
        Ok(())
    }
}

/// `value` if it is in `low..=high`.
pub(super) fn integer(name: &str, value: Integer, low: i64, high: i64) -> Result<i64, ApiError> {
    if (low..=high).contains(&value.0) {
        return Ok(value.0);
    }
    Err(ApiError::value(name, format!("{name} must be between {low} and {high}")))
}

/// A number from 0; what 32 bits don't hold is more than there can be anyway.
fn count(name: &str, value: Option<Integer>) -> Result<Option<u32>, ApiError> {
    let Some(Integer(value)) = value else { return Ok(None) };
    if value < 0 {
        return Err(ApiError::value(name, format!("{name} must not be negative: {value}")));
    }
    Ok(Some(u32::try_from(value).unwrap_or(u32::MAX)))
}

pub(super) fn between(
    name: &str,
    value: Option<Number>,
    low: f64,
    high: f64,
) -> Result<Option<f64>, ApiError> {
    match value {
        Some(Number(value)) if !(low..=high).contains(&value) => {
            Err(ApiError::value(name, format!("{name} must be between {low} and {high}")))
        }
        value => Ok(value.map(|value| value.0)),
    }
}

// === impl Settings ===

impl Settings {
    /// Tokens per choice, given the prompts' lengths and the window: what the shortest prompt has room for. A
    /// longer one ends at the window.
    pub(crate) fn clip_max_tokens(
        &self,
        default: u32,
        prompts: &[usize],
        window: usize,
        param: &str,
    ) -> Result<u32, ApiError> {
        let prompt = prompts.iter().copied().max().unwrap_or(0);
        let shortest = prompts.iter().copied().min().unwrap_or(0);
        let advice = format!("Please reduce the length of the {param}.");
        if prompt >= window {
            let message = format!(
                "The prompt is too long: {prompt}, model maximum context length: {window}. This model's maximum \
                 context length is {window} tokens. However, your {param} resulted in {prompt} tokens. {advice}"
            );
            return Err(ApiError::with_code("context_length_exceeded", param, message));
        }
        let room = (window - prompt) as u64;
        match self.max_tokens {
            Some(wanted) if wanted > room && self.on_overflow == OnOverflow::Error => {
                let total = wanted.saturating_add(prompt as u64);
                let message = format!(
                    "The prompt is too long: {prompt} with max_tokens {wanted}, model maximum context length: \
                     {window}. This model's maximum context length is {window} tokens. However, you requested \
                     {total} tokens ({prompt} in the {param}, {wanted} in the completion). {advice}"
                );
                Err(ApiError::with_code("context_length_exceeded", param, message))
            }
            wanted => Ok(wanted.unwrap_or(u64::from(default)).min((window - shortest) as u64) as u32),
        }
    }
}
