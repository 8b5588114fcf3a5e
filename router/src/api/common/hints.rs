//! Fields that say how to serve a request, and change nothing about its text.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::error::ApiError;

/// What the client pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Deserialize)]
pub struct Prediction {
    /// `content`.
    pub r#type: Option<String>,
    /// A string or text parts.
    pub content: Option<Value>,
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
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        match self.r#type.as_deref() {
            Some("content") => {}
            None => return Err(ApiError::missing("prediction.type")),
            Some(_) => return Err(ApiError::value("prediction.type", "prediction.type must be 'content'")),
        }
        let text = |part: &Value| part["type"] == "text" && part["text"].is_string();
        match &self.content {
            Some(Value::String(_)) => Ok(()),
            Some(Value::Array(parts)) if parts.iter().all(text) => Ok(()),
            None => Err(ApiError::missing("prediction.content")),
            Some(_) => {
                let message = "prediction.content must be a string or a list of text parts";
                Err(ApiError::with_code("invalid_type", "prediction.content", message))
            }
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
