//! `POST /chat/completions`: the next turn of a conversation, by way of the model's template.

mod messages;
mod truncate;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::{Deserialize, Serialize};

use self::{messages::Message, truncate::Turns};
use super::{
    App,
    common::{
        fields::Integer,
        generate::{Ask, Caller},
        parse,
        reply::{Said, Shape},
    },
};
use crate::{
    engine::Generate,
    http::{body, error::ApiError},
};

/// What chats take beside the shared parameters.
#[derive(Debug, Deserialize)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Option<Vec<Message>>,
    /// Whether special-token strings inside messages stay text (the default).
    pub safe_tokenization: Option<bool>,
    /// Evict the oldest turns of a prompt that is longer, tokens. Without effect beside `safe_tokenization: true`.
    pub prompt_truncate_len: Option<Integer>,
}

/// The shapes of the answer.
struct Chat;

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Body<'a> {
    /// Of an answer.
    Message(Reply<'a>),
    /// Of a chunk.
    Delta(Delta<'a>),
}

#[derive(Serialize)]
struct Reply<'a> {
    role: &'static str,
    content: &'a str,
    /// Typed clients want the key.
    refusal: (),
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
    let limit = parsed.own.truncate_len()?;
    let messages = parsed.own.messages.ok_or_else(|| ApiError::missing("messages"))?;
    let messages = messages::check(messages)?;
    app.check_choices(1, settings.best_of)?;
    let model = app.model(&settings.model).await?;
    let safe = parsed.own.safe_tokenization.unwrap_or(true);
    let turns = Turns { model: &model, messages, safe };
    let prompt = match limit {
        Some(limit) => turns.fitting(limit).await,
        None => turns.all().await,
    };
    let prompts = vec![prompt.map_err(|error| ApiError::text(error, "messages"))?];
    let default_max_tokens = app.config.chat_max_tokens;
    let ask = Ask { settings, model, prompts, param: "messages", default_max_tokens };
    app.generate::<Chat>(caller, ask).await
}

// === impl ChatRequest ===

impl ChatRequest {
    fn truncate_len(&self) -> Result<Option<usize>, ApiError> {
        const NAME: &str = "prompt_truncate_len";
        match self.prompt_truncate_len {
            Some(Integer(length)) if length < 1 => {
                Err(ApiError::value(NAME, format!("{NAME} must be at least 1: {length}")))
            }
            _ if self.safe_tokenization == Some(true) => Ok(None),
            length => Ok(length.map(|Integer(length)| usize::try_from(length).unwrap_or(usize::MAX))),
        }
    }
}

// === impl Chat ===

impl Shape for Chat {
    const ID: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";
    const OPENS: bool = true;
    type Body<'a> = Body<'a>;

    fn body(said: Said<'_>) -> Body<'_> {
        const ROLE: &str = "assistant";
        Body::Delta(match said {
            Said::Whole(content) => return Body::Message(Reply { role: ROLE, content, refusal: () }),
            Said::Open => Delta { role: Some(ROLE), content: None },
            Said::More(content) => Delta { role: None, content: Some(content) },
            Said::Nothing => Delta::default(),
        })
    }
}
