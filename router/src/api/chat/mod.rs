//! `POST /chat/completions`: the next turn of a conversation, by way of the model's template.

mod shape;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use self::shape::{Chat, Legacy};
use super::{
    App,
    common::{
        fields::Integer,
        generate::Caller,
        messages::{self, Message},
        parse,
        tools::{FunctionField, ToolField, ToolFields, Tools},
        turn::{Limit, Turn},
    },
};
use crate::{
    engine::Generate,
    http::{body, error::ApiError},
};

/// What chats take beside the shared parameters.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Option<Vec<Message>>,
    /// Whether special-token strings inside messages stay text (the default).
    pub safe_tokenization: Option<bool>,
    /// Evict the oldest turns of a prompt that is longer, tokens. Without effect beside a `safe_tokenization: true` that is written out.
    pub prompt_truncate_len: Option<Integer>,
    /// Functions that the model may call.
    pub tools: Option<Vec<ToolField>>,
    /// `none`, `auto`, `required`, `any`, or one that is named.
    pub tool_choice: Option<Value>,
    /// Whether an answer may have several calls.
    pub parallel_tool_calls: Option<bool>,
    /// `tools` as they were before; the answer is of that form too.
    pub functions: Option<Vec<FunctionField>>,
    /// `tool_choice` as it was before.
    pub function_call: Option<Value>,
}

pub(crate) async fn create<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = Caller::of(&request)?;
    let body = body::read(request, &app.config).await?;
    let mut parsed = parse::request::<ChatRequest>(body, app.config.unknown_fields).await?;
    caller.name_model(&mut parsed.parameters);
    let settings = parsed.parameters.check(&app.config)?;
    let mut own = parsed.own;
    let limit = own.limit()?;
    let tools = Tools::check(own.tool_fields())?;
    let messages = messages::check(own.messages.ok_or_else(|| ApiError::missing("messages"))?)?;
    let (legacy, safe) = (tools.legacy, own.safe_tokenization.unwrap_or(true));
    let ask = app.ask(Turn { settings, messages, tools, safe, limit, param: "messages" }).await?;
    match legacy {
        true => app.generate::<Legacy>(caller, ask).await,
        false => app.generate::<Chat>(caller, ask).await,
    }
}

// === impl ChatRequest ===

impl ChatRequest {
    fn tool_fields(&mut self) -> ToolFields {
        ToolFields {
            tools: self.tools.take(),
            tool_choice: self.tool_choice.take(),
            parallel_tool_calls: self.parallel_tool_calls,
            functions: self.functions.take(),
            function_call: self.function_call.take(),
        }
    }

    fn limit(&self) -> Result<Limit, ApiError> {
        const NAME: &str = "prompt_truncate_len";
        match self.prompt_truncate_len {
            Some(Integer(length)) if length < 1 => {
                Err(ApiError::value(NAME, format!("{NAME} must be at least 1: {length}")))
            }
            None => Ok(Limit::None),
            _ if self.safe_tokenization == Some(true) => Ok(Limit::None),
            Some(Integer(length)) => Ok(Limit::Tokens(usize::try_from(length).unwrap_or(usize::MAX))),
        }
    }
}
