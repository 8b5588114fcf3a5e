//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes: what a prompt or a conversation is to the model.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App,
    common::{
        fields::Integer,
        generate::Caller,
        messages::{self, Message},
        parse, prompts,
        tools::{ToolField, ToolFields, Tools},
    },
};
use crate::{
    engine::{ChatOptions, Generate, Model, Special},
    http::{body, error::ApiError},
};

/// A text or a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct TokenizeRequest {
    /// Which model; may be left out where only one is served.
    pub model: Option<String>,
    /// A text.
    pub prompt: Option<String>,
    /// A conversation, in place of `prompt`.
    pub messages: Option<Vec<Message>>,
    /// Functions that the conversation's model may call.
    pub tools: Option<Vec<ToolField>>,
    /// Whether the BOS token comes first where the model wants it. By default as the endpoints do: for a text, not for
    /// a conversation, whose template brings its own.
    pub add_special_tokens: Option<bool>,
    /// Whether a conversation ends with the opening of the assistant's turn (the default).
    pub add_generation_prompt: Option<bool>,
    /// Whether the answer also has each token's text.
    pub return_token_strs: Option<bool>,
}

/// Tokens.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct DetokenizeRequest {
    /// Which model; may be left out where only one is served.
    pub model: Option<String>,
    /// Token ids.
    pub tokens: Option<Vec<Integer>>,
}

/// The answer to a [`TokenizeRequest`].
#[derive(Serialize)]
pub(crate) struct Tokens {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// The answer to a [`DetokenizeRequest`].
#[derive(Serialize)]
pub(crate) struct Text {
    prompt: String,
}

pub(crate) async fn tokenize<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Json<Tokens>, ApiError> {
    let caller = Caller::of(&request)?;
    let body = body::read(request, &app.config).await?;
    let request: TokenizeRequest = parse::only(body, app.config.unknown_fields).await?;
    let model = app.only_model(caller.named(request.model.clone())).await?;
    let strings = request.return_token_strs.unwrap_or(false);
    let tokens = request.tokens(&model).await?;
    let name = |id: &u32| String::from_utf8_lossy(model.token_bytes(*id)).into_owned();
    Ok(Json(Tokens {
        count: tokens.len(),
        max_model_len: model.card.context_length,
        token_strs: strings.then(|| tokens.iter().map(name).collect()),
        tokens,
    }))
}

pub(crate) async fn detokenize<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Json<Text>, ApiError> {
    let caller = Caller::of(&request)?;
    let body = body::read(request, &app.config).await?;
    let request: DetokenizeRequest = parse::only(body, app.config.unknown_fields).await?;
    let model = app.only_model(caller.named(request.model)).await?;
    let ids = request.tokens.ok_or_else(|| ApiError::missing("tokens"))?;
    let tokens = prompts::known(&model, ids.into_iter().map(|id| id.0).collect(), "tokens")?;
    Ok(Json(Text { prompt: model.decode(&tokens) }))
}

// === impl App ===

impl<E: Generate> App<E> {
    /// The model of that name; without one, the only one that is served.
    async fn only_model(&self, name: Option<String>) -> Result<Arc<Model>, ApiError> {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            return self.model(&name).await;
        }
        match self.engine.models().as_slice() {
            [card] => self.model(&card.name).await,
            _ => Err(ApiError::missing("model")),
        }
    }
}

// === impl TokenizeRequest ===

impl TokenizeRequest {
    async fn tokens(self, model: &Model) -> Result<Vec<u32>, ApiError> {
        match (self.prompt, self.messages) {
            (Some(_), Some(_)) => Err(ApiError::value("messages", "prompt and messages exclude each other")),
            (None, None) => Err(ApiError::missing("prompt")),
            (Some(text), None) => {
                let tokens = if self.add_special_tokens.unwrap_or(true) {
                    model.encode_prompt(text).await
                } else {
                    model.encode(text, Special::Parse).await
                };
                tokens.map_err(|error| ApiError::text(error, "prompt"))
            }
            (None, Some(messages)) => {
                let messages = messages::check(messages)?;
                let add_generation_prompt = self.add_generation_prompt.unwrap_or(true);
                let tools = Tools::check(ToolFields { tools: self.tools, ..ToolFields::default() })?.told();
                let options = ChatOptions { add_generation_prompt, tools, ..ChatOptions::default() };
                let failed = |error| ApiError::text(error, "messages");
                let rendered = model.render_chat(messages, options).await.map_err(failed)?;
                let mut tokens = model.encode_chat(rendered).await.map_err(failed)?;
                if self.add_special_tokens == Some(true) {
                    model.begin(&mut tokens);
                }
                Ok(tokens)
            }
        }
    }
}
