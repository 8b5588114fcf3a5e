//! `POST /chat/completions`: the next turn of a conversation, by way of the model's template.

mod messages;
mod shape;
mod tools;
mod truncate;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::Deserialize;
use serde_json::Value;

use self::{
    messages::Message,
    shape::{Chat, Legacy},
    tools::{FunctionField, ToolField, Tools},
    truncate::{Prompt, Turns},
};
use super::{
    App,
    common::{
        fields::Integer,
        generate::{Ask, Caller},
        parameters::Settings,
        parse,
    },
};
use crate::{
    engine::{ChatOptions, Generate, Model},
    http::{body, error::ApiError},
    text::output::{Format, Thinking},
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
    let body = body::read(request, app.config.body_limit).await?;
    let mut parsed = parse::request::<ChatRequest>(body, app.config.unknown_fields).await?;
    caller.name_model(&mut parsed.parameters);
    let settings = parsed.parameters.check(&app.config)?;
    let limit = parsed.own.truncate_len()?;
    let tools = Tools::check(&mut parsed.own)?;
    if let (true, Some((_, param))) = (tools.forced(), &settings.grammar) {
        let message = format!("{param} and a tool_choice that forces a call exclude each other");
        return Err(ApiError::value(*param, message));
    }
    let messages = parsed.own.messages.ok_or_else(|| ApiError::missing("messages"))?;
    let mut messages = messages::check(messages)?;
    app.check_choices(1, settings.best_of)?;
    let model = app.model(&settings.model).await?;
    settings.reasoning.check_model(model.knows())?;
    settings.reasoning.forget(&mut messages);
    let options = ChatOptions {
        safe: parsed.own.safe_tokenization.unwrap_or(true),
        tools: tools.told(),
        variables: settings.reasoning.variables(settings.grammar.is_some()),
        ..ChatOptions::default()
    };
    let turns = Turns { model: &model, messages, options };
    let prompt = match limit {
        Some(limit) => turns.fitting(limit).await,
        None => turns.all().await,
    };
    let prompt = prompt.map_err(|error| ApiError::text(error, "messages"))?;
    let legacy = tools.legacy;
    let ask = ask(settings, model, prompt, &tools, &app.config)?;
    match legacy {
        true => app.generate::<Legacy>(caller, ask).await,
        false => app.generate::<Chat>(caller, ask).await,
    }
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

fn ask(
    settings: Settings,
    model: Arc<Model>,
    Prompt { tokens, thinking }: Prompt,
    tools: &Tools,
    config: &crate::config::Config,
) -> Result<Ask, ApiError> {
    let known = model.knows().and_then(|knows| knows.tools);
    let format = config.tool_format.or(known).unwrap_or(Format::Hermes);
    let grammar = match tools.forced() {
        true => Some((tools.grammar(format, &model)?, "tools")),
        false => settings.grammar.clone(),
    };
    // Where the prompt has begun to reason, the form is that of the answer behind it.
    let grammar = grammar.map(|(grammar, param)| match thinking {
        Thinking::Open => (grammar.after_reasoning(model.tokenizer().vocabulary()), param),
        Thinking::Never | Thinking::Tagged => (grammar, param),
    });
    // An echoed prompt is part of the text, and nothing that was said.
    let hearing = match settings.echo {
        0 => tools.hearing(format, thinking),
        _ => Default::default(),
    };
    let default_max_tokens = config.chat_max_tokens;
    Ok(Ask {
        settings,
        model,
        prompts: vec![tokens],
        param: "messages",
        default_max_tokens,
        grammar,
        hearing,
    })
}
