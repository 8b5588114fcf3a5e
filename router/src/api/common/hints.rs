//! Fields that say how to serve a request, and change nothing about its text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{PromptField, PromptItem};
use crate::{engine::Model, http::error::ApiError, text::model::Special};

/// What the client pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are the documentation
pub enum ServiceTier {
    Auto,
    Default,
    Flex,
    Priority,
}

/// The tier that an answer names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ServedTier {
    Default,
    Priority,
}

/// Text that the answer is likely to repeat.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Prediction {
    /// `content`.
    pub r#type: Option<String>,
    /// A string or text parts.
    pub content: Option<Value>,
}

/// What the answer is likely to be, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Likely {
    Text(String),
    Tokens(Vec<u32>),
}

// === impl Likely ===

impl Likely {
    /// What `speculation` says, or else `prediction`.
    pub(crate) fn check(
        speculation: Option<PromptField>,
        prediction: Option<Prediction>,
    ) -> Result<Option<Self>, ApiError> {
        let predicted = prediction.map(Prediction::check).transpose()?.map(Self::Text);
        let items = match speculation {
            None => return Ok(predicted),
            Some(PromptField::Text(text)) => return Ok(Some(Self::Text(text))),
            Some(PromptField::List(items)) => items,
        };
        let token = |item| match item {
            // One that isn't in any vocabulary is left out: it is a hint.
            PromptItem::Token(id) => Ok(u32::try_from(id).ok()),
            _ => {
                let message = "speculation must be a string or a list of token ids";
                Err(ApiError::with_code("invalid_type", "speculation", message))
            }
        };
        let tokens = items.into_iter().map(token).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Self::Tokens(tokens.into_iter().flatten().collect())))
    }

    /// Its tokens, as many as an answer can have; none where there is no room to make them.
    pub(crate) async fn tokens(self, model: &Model) -> Vec<u32> {
        let mut tokens = match self {
            Self::Tokens(tokens) => tokens,
            Self::Text(text) => model.encode(text, Special::Literal).await.unwrap_or_default(),
        };
        tokens.retain(|&token| token < model.card.vocab_size);
        tokens.truncate(model.card.context_length as usize);
        tokens
    }
}

// === impl ServiceTier ===

impl ServiceTier {
    /// Higher runs first.
    pub(crate) fn priority(self) -> i32 {
        match self {
            Self::Flex => -1,
            Self::Auto | Self::Default => 0,
            Self::Priority => 1,
        }
    }

    pub(crate) fn served(self) -> ServedTier {
        match self {
            Self::Auto | Self::Default | Self::Flex => ServedTier::Default,
            Self::Priority => ServedTier::Priority,
        }
    }
}

// === impl Prediction ===

impl Prediction {
    /// Its text.
    fn check(self) -> Result<String, ApiError> {
        match self.r#type.as_deref() {
            Some("content") => {}
            None => return Err(ApiError::missing("prediction.type")),
            Some(_) => return Err(ApiError::value("prediction.type", "prediction.type must be 'content'")),
        }
        let part = |part: &Value| part["text"].as_str().filter(|_| part["type"] == "text").map(str::to_owned);
        let parts = |parts: &[Value]| parts.iter().map(part).collect::<Option<String>>();
        match self.content {
            Some(Value::String(text)) => Ok(text),
            None => Err(ApiError::missing("prediction.content")),
            Some(content) => content.as_array().and_then(|content| parts(content)).ok_or_else(|| {
                let message = "prediction.content must be a string or a list of text parts";
                ApiError::with_code("invalid_type", "prediction.content", message)
            }),
        }
    }
}

/// A short number in place of a key of any length, which one tenant can't choose to be another's.
pub(crate) fn session(tenant: &str, key: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(tenant.len() as u64).to_le_bytes()).update(tenant.as_bytes()).update(key);
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    u64::from_le_bytes(first)
}

/// What separates the caches of isolation keys, of a length that a block hash can bear.
pub(crate) fn cache_salt(isolation: &[u8]) -> String {
    blake3::hash(isolation).to_hex()[..32].to_string()
}
