//! The parameters that every text endpoint takes, and what they come to once they are checked.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::fields::{Integer, LogprobsField, Number, Strings};
use crate::{
    config::{Config, StopWord},
    generation::Sampling,
    http::error::ApiError,
    text::model::Defaults,
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
    /// Equal seeds give equal texts.
    pub seed: Option<Integer>,
    /// Choices per prompt.
    pub n: Option<Integer>,
    /// Strings that end the text.
    pub stop: Option<Strings>,
    /// Whether the text keeps the stop string (vLLM's name).
    pub include_stop_str_in_output: Option<bool>,
    /// Prompt before output.
    pub echo: Option<bool>,
    /// A boolean or a number of alternatives; the type chooses the format.
    pub logprobs: Option<LogprobsField>,
    /// Alternatives, with `logprobs: true`.
    pub top_logprobs: Option<Integer>,
    /// Whether end-of-sequence tokens are ordinary.
    pub ignore_eos: Option<bool>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// An end user's name: accepted.
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
    /// Accepted: caches never change an answer.
    pub prompt_cache_key: Option<String>,
    /// Accepted: caches are never shared between tenants.
    pub prompt_cache_isolation_key: Option<String>,
    /// Accepted.
    pub prompt_cache_max_len: Option<Integer>,
    /// Accepted.
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

/// Accepted without effect.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are the documentation
pub enum ServiceTier {
    Auto,
    Default,
    Flex,
    Priority,
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
    pub max_tokens: Option<u64>,
    pub on_overflow: OnOverflow,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u32>,
    pub min_p: Option<f64>,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub include_stop: bool,
    pub echo: bool,
    pub ignore_eos: bool,
    pub logprobs: Option<Logprobs>,
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
        Ok(Settings {
            n: self.n.map_or(Ok(1), |n| integer("n", n, 1, 128))? as u32,
            max_tokens: self.max_tokens()?,
            on_overflow: self.context_length_exceeded_behavior.unwrap_or_default(),
            temperature: between("temperature", self.temperature, 0.0, 2.0)?,
            top_p: between("top_p", self.top_p, 0.0, 1.0)?,
            top_k: self.top_k(config.top_k_max)?,
            min_p: between("min_p", self.min_p, 0.0, 1.0)?,
            seed: self.seed.map(|seed| seed.0 as u64),
            stop: self.stops()?,
            include_stop: self.include_stop_str_in_output.unwrap_or(include_stop),
            echo: self.echo.unwrap_or(false),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs: self.logprobs(config.top_logprobs_max)?,
            stream: self.stream()?,
            model,
        })
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

    fn top_k(&self, max: u32) -> Result<Option<u32>, ApiError> {
        match self.top_k {
            Some(Integer(-1)) => Ok(Some(0)),
            Some(k) => integer("top_k", k, 0, i64::from(max)).map(|k| Some(k as u32)),
            None => Ok(None),
        }
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
fn integer(name: &str, value: Integer, low: i64, high: i64) -> Result<i64, ApiError> {
    if (low..=high).contains(&value.0) {
        return Ok(value.0);
    }
    Err(ApiError::value(name, format!("{name} must be between {low} and {high}")))
}

fn between(name: &str, value: Option<Number>, low: f64, high: f64) -> Result<Option<f64>, ApiError> {
    match value {
        Some(Number(value)) if !(low..=high).contains(&value) => {
            Err(ApiError::value(name, format!("{name} must be between {low} and {high}")))
        }
        value => Ok(value.map(|value| value.0)),
    }
}

// === impl Settings ===

/// Below this a temperature only overflows: greedy is its limit.
const GREEDY: f64 = 1e-6;

impl Settings {
    /// How tokens are drawn: what the request says, else the model, else plain sampling.
    pub(crate) fn sampling(&self, defaults: &Defaults) -> Sampling {
        let temperature = self.temperature.or(defaults.temperature.map(f64::from)).unwrap_or(1.0);
        let top_p = self.top_p.or(defaults.top_p.map(f64::from)).unwrap_or(1.0);
        // An empty nucleus still has its best token.
        let greedy = temperature < GREEDY || top_p == 0.0;
        Sampling {
            temperature: if greedy { 0.0 } else { temperature as f32 },
            top_p: if greedy { 1.0 } else { top_p as f32 },
            top_k: self.top_k.or(defaults.top_k).unwrap_or(0),
            min_p: self.min_p.or(defaults.min_p.map(f64::from)).unwrap_or(0.0) as f32,
            seed: self.seed.unwrap_or_else(random),
        }
    }

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

/// 64 random bits.
fn random() -> u64 {
    // A v4 UUID's halves have a few fixed bits each, at different places.
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}
