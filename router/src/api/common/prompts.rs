//! Prompts in any of their four shapes, and the tokens that they come to.

use super::fields::{PromptField, PromptItem};
use crate::{engine::Model, http::error::ApiError};

/// One prompt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Text(String),
    Tokens(Vec<i64>),
}

/// The prompts in the field `param`.
pub(crate) fn sources(prompt: PromptField, param: &str) -> Result<Vec<Source>, ApiError> {
    let items = match prompt {
        PromptField::Text(text) => return Ok(vec![Source::Text(text)]),
        PromptField::List(items) => items,
    };
    let mixed =
        || ApiError::with_code("invalid_type", param, format!("{param} must not mix texts and tokens"));
    match items.first() {
        None => Err(ApiError::value(param, format!("{param} must not be empty"))),
        Some(PromptItem::Token(_)) => {
            let tokens = items.into_iter().map(|item| match item {
                PromptItem::Token(id) => Ok(id),
                _ => Err(mixed()),
            });
            Ok(vec![Source::Tokens(tokens.collect::<Result<_, _>>()?)])
        }
        Some(first) => {
            let of_text = matches!(first, PromptItem::Text(_));
            let sources = items.into_iter().map(|item| match item {
                PromptItem::Text(text) if of_text => Ok(Source::Text(text)),
                PromptItem::Tokens(tokens) if !of_text => Ok(Source::Tokens(tokens)),
                _ => Err(mixed()),
            });
            sources.collect()
        }
    }
}

// === impl Source ===

impl Source {
    /// At least one token, or what is wrong with the field `param`.
    pub(crate) async fn tokens(self, model: &Model, param: &str) -> Result<Vec<u32>, ApiError> {
        let tokens = match self {
            Self::Text(text) => {
                model.encode_prompt(text).await.map_err(|error| ApiError::text(error, param))?
            }
            Self::Tokens(ids) => known(model, ids, param)?,
        };
        if tokens.is_empty() {
            return Err(ApiError::value(param, format!("{param} has no tokens")));
        }
        Ok(tokens)
    }
}

/// The ids as tokens of the model's vocabulary.
pub(crate) fn known(model: &Model, ids: Vec<i64>, param: &str) -> Result<Vec<u32>, ApiError> {
    let size = model.card.vocab_size;
    let check = |id: i64| {
        let token = u32::try_from(id).ok().filter(|id| *id < size);
        let unknown = || format!("token id {id} is not in the vocabulary (0 to {})", size - 1);
        token.ok_or_else(|| ApiError::value(param, unknown()))
    };
    ids.into_iter().map(check).collect()
}
