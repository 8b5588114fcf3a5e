//! How much a model is to reason before it answers: three fields, one meaning.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{fields::Integer, parameters::Parameters};
use crate::{http::error::ApiError, text::template::Knows};

/// `thinking`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct ThinkingField {
    /// On or off.
    pub r#type: ThinkingType,
    /// With `enabled`: tokens of reasoning, at least 1024. Accepted; the model decides.
    pub budget_tokens: Option<Integer>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are the documentation
pub enum ThinkingType {
    Enabled,
    Disabled,
}

/// What becomes of the reasoning in earlier messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum History {
    /// It is left out.
    Disabled,
    /// The template sees it.
    Interleaved,
    /// The template sees it, and is told to keep it.
    Preserved,
}

/// What a request says of reasoning.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reasoning {
    /// Whether to, where it says so, and how much.
    effort: Option<Effort>,
    history: Option<History>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    Off,
    /// In one of OpenAI's and Fireworks' words, where one was used.
    On(Option<&'static str>),
}

/// The words for how much.
const WORDS: [&str; 6] = ["minimal", "low", "medium", "high", "xhigh", "max"];

// === impl Reasoning ===

impl Reasoning {
    /// Checks the fields.
    pub(super) fn check(parameters: &Parameters) -> Result<Self, ApiError> {
        let effort = match (&parameters.reasoning_effort, parameters.thinking) {
            (Some(_), Some(_)) => {
                return Err(ApiError::value("thinking", "reasoning_effort and thinking exclude each other"));
            }
            (Some(effort), None) => Some(Effort::of(effort)?),
            (None, Some(thinking)) => Some(Effort::thinking(thinking)?),
            (None, None) => None,
        };
        Ok(Self { effort, history: parameters.reasoning_history })
    }

    /// Refuses what the model can't: not to reason, where its template has no switch for that.
    pub(crate) fn check_model(&self, knows: Option<Knows>) -> Result<(), ApiError> {
        match (self.effort, knows) {
            (Some(Effort::Off), Some(Knows { reasoning: true, switch: false, .. })) => {
                Err(ApiError::value("reasoning_effort", "Invalid reasoning effort: none"))
            }
            _ => Ok(()),
        }
    }

    /// What templates are told. An answer that must be of some form is given at once, unless the request says
    /// otherwise.
    pub(crate) fn variables(&self, formed: bool) -> Map<String, Value> {
        let mut variables = Map::new();
        let effort = self.effort.or(formed.then_some(Effort::Off));
        if let Some(effort) = effort {
            let on = effort != Effort::Off;
            // Qwen's and GLM's name; DeepSeek's.
            variables.insert("enable_thinking".into(), on.into());
            variables.insert("thinking".into(), on.into());
        }
        if let Some(Effort::On(Some(word))) = effort {
            variables.insert("reasoning_effort".into(), word.into());
        }
        if self.history == Some(History::Preserved) {
            variables.insert("clear_thinking".into(), json!(false));
        }
        variables
    }

    /// Leaves out the reasoning of earlier messages, if it is to be.
    pub(crate) fn forget(&self, messages: &mut [Value]) {
        if self.history == Some(History::Disabled) {
            for message in messages.iter_mut().filter_map(Value::as_object_mut) {
                message.shift_remove("reasoning_content");
            }
        }
    }
}

// === impl Effort ===

impl Effort {
    fn of(value: &Value) -> Result<Self, ApiError> {
        const FIELD: &str = "reasoning_effort";
        match value {
            Value::Bool(true) => Ok(Self::On(Some("medium"))),
            Value::Bool(false) => Ok(Self::Off),
            Value::String(word) if word == "none" => Ok(Self::Off),
            Value::String(word) => match WORDS.iter().find(|known| *known == word) {
                Some(known) => Ok(Self::On(Some(known))),
                None => {
                    let word: String = word.chars().take(32).collect();
                    Err(ApiError::value(FIELD, format!("Invalid reasoning effort: {word}")))
                }
            },
            Value::Number(budget) => match budget.as_f64() {
                Some(0.0) => Ok(Self::Off),
                Some(tokens) if tokens > 0.0 && tokens.fract() == 0.0 => Ok(Self::On(None)),
                _ => Err(ApiError::value(FIELD, format!("Invalid reasoning effort: {budget}"))),
            },
            _ => Err(ApiError::with_code(
                "invalid_type",
                FIELD,
                "reasoning_effort is a word, a boolean or an integer",
            )),
        }
    }

    fn thinking(ThinkingField { r#type, budget_tokens }: ThinkingField) -> Result<Self, ApiError> {
        let budget = budget_tokens.map(|tokens| tokens.0);
        match (r#type, budget) {
            (ThinkingType::Disabled, None) => Ok(Self::Off),
            (ThinkingType::Disabled, Some(_)) => Err(ApiError::value(
                "thinking.budget_tokens",
                "budget_tokens is only allowed with type: enabled",
            )),
            (ThinkingType::Enabled, Some(..1024)) => {
                Err(ApiError::value("thinking.budget_tokens", "budget_tokens must be at least 1024"))
            }
            (ThinkingType::Enabled, _) => Ok(Self::On(None)),
        }
    }
}
