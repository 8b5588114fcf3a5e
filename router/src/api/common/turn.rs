//! The next turn of a conversation, for the APIs that have exactly one answer to it.

use futures::TryStreamExt;
use serde_json::Value;

use super::{generate::Ask, parameters::Settings, usage::Tally};
use crate::{
    api::App,
    engine::{ChatOptions, Deltas, Generate, Model},
    generation::Finish,
    http::{error::ApiError, exchange::Exchange},
};

/// A conversation to go on with.
pub(crate) struct Turn {
    pub settings: Settings,
    /// As templates take them.
    pub messages: Vec<Value>,
    /// The field that they came from.
    pub param: &'static str,
}

/// What the model answered.
pub(crate) struct Whole {
    pub text: String,
    pub finish: Finish,
}

// === impl App ===

impl<E: Generate> App<E> {
    /// What is asked of the model.
    pub(crate) async fn ask(&self, turn: Turn) -> Result<Ask, ApiError> {
        let Turn { settings, messages, param } = turn;
        let model = self.model(&settings.model).await?;
        let prompts = vec![tokens(&model, messages, param).await?];
        let default_max_tokens = self.config.chat_max_tokens;
        Ok(Ask { settings, model, prompts, param, default_max_tokens })
    }
}

/// The conversation as the model sees it, with the assistant's turn opened.
pub(crate) async fn tokens(model: &Model, messages: Vec<Value>, param: &str) -> Result<Vec<u32>, ApiError> {
    let failed = |error| ApiError::text(error, param);
    let rendered = model.render_chat(messages, ChatOptions::default()).await.map_err(failed)?;
    model.encode_chat(rendered).await.map_err(failed)
}

/// Waits for all of the one answer.
pub(crate) async fn whole(
    mut deltas: Deltas,
    tally: &mut Tally,
    exchange: &Exchange,
) -> Result<Whole, ApiError> {
    let mut text = String::new();
    while let Some(batch) = deltas.try_next().await? {
        for delta in batch {
            text.push_str(&delta.text);
            if let Some(finish) = delta.finish {
                exchange.generated(finish.completion_tokens.into());
                tally.finish(0, finish);
                tally.record();
                return Ok(Whole { text, finish });
            }
        }
    }
    Err(ApiError::Internal("the output ended early".into()))
}
