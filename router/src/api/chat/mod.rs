//! `POST /chat/completions`: the next turn of a conversation, by way of the model's template.

mod messages;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::{Deserialize, Serialize};

use self::messages::Message;
use super::{
    App,
    common::{
        generate::{Ask, Caller},
        logprobs::View,
        parse,
        reply::{Piece, Shape},
    },
};
use crate::{
    engine::{ChatOptions, Generate, Model},
    http::{body, error::ApiError},
};

/// What chats take beside the shared parameters.
#[derive(Debug, Deserialize)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Option<Vec<Message>>,
    /// Whether special-token strings inside messages stay text (the default).
    pub safe_tokenization: Option<bool>,
}

/// The shapes of the answer.
struct Chat;

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Reply<'a>,
    logprobs: Option<View<'a>>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Reply<'a> {
    role: &'static str,
    content: &'a str,
    /// Typed clients want the key.
    refusal: (),
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<View<'a>>,
    finish_reason: Option<&'static str>,
}

/// The keys are absent, not null, where there is nothing: SDKs concatenate whatever they find.
#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

pub(crate) async fn create<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = Caller::of(&request)?;
    let body = body::read(request, app.config.body_limit).await?;
    let mut parsed = parse::request::<ChatRequest>(body, app.config.unknown_fields).await?;
    caller.name_model(&mut parsed.parameters);
    let settings = parsed.parameters.check(&app.config)?;
    let messages = parsed.own.messages.ok_or_else(|| ApiError::missing("messages"))?;
    let messages = messages::check(messages)?;
    app.check_choices(1, settings.n)?;
    let model = app.model(&settings.model).await?;
    let safe = parsed.own.safe_tokenization.unwrap_or(true);
    let prompts = vec![render(&model, messages, safe).await.map_err(|e| ApiError::text(e, "messages"))?];
    let default_max_tokens = app.config.chat_max_tokens;
    let ask = Ask { settings, model, prompts, param: "messages", default_max_tokens };
    app.generate::<Chat>(caller, ask).await
}

async fn render(
    model: &Model,
    messages: Vec<serde_json::Value>,
    safe: bool,
) -> Result<Vec<u32>, crate::engine::TextError> {
    let rendered = model.render_chat(messages, ChatOptions { safe, ..ChatOptions::default() }).await?;
    model.encode_chat(rendered).await
}

// === impl Chat ===

impl Shape for Chat {
    const ID: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";
    const OPENS: bool = true;
    type Choice<'a> = Choice<'a>;
    type ChunkChoice<'a> = ChunkChoice<'a>;

    fn choice<'a>(
        index: u32,
        text: &'a str,
        logprobs: Option<View<'a>>,
        finish_reason: &'static str,
    ) -> Choice<'a> {
        let message = Reply { role: "assistant", content: text, refusal: () };
        Choice { index, message, logprobs, finish_reason }
    }

    fn chunk<'a>(index: u32, piece: Piece<'a>) -> ChunkChoice<'a> {
        let silent = Delta::default();
        let (delta, logprobs, finish_reason) = match piece {
            Piece::Open => (Delta { role: Some("assistant"), ..silent }, None, None),
            Piece::Text(text, logprobs) => (Delta { content: Some(text), ..silent }, logprobs, None),
            Piece::Silence => (silent, None, None),
            Piece::Finish(reason) => (silent, None, Some(reason)),
        };
        ChunkChoice { index, delta, logprobs, finish_reason }
    }
}
