//! `POST /chat/completions`: the next turn of a conversation, by way of the model's template.

mod messages;
mod shape;
mod tools;

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
};
use super::{
    App,
    common::{
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
    let tools = Tools::check(&mut parsed.own)?;
    if let (true, Some((_, param))) = (tools.forced(), &settings.grammar) {
        let message = format!("{param} and a tool_choice that forces a call exclude each other");
        return Err(ApiError::value(*param, message));
    }
    let messages = parsed.own.messages.ok_or_else(|| ApiError::missing("messages"))?;
    let mut messages = messages::check(messages)?;
    app.check_choices(1, settings.n)?;
    let model = app.model(&settings.model).await?;
    settings.reasoning.check_model(model.knows())?;
    settings.reasoning.forget(&mut messages);
    let options = ChatOptions {
        safe: parsed.own.safe_tokenization.unwrap_or(true),
        tools: tools.told(),
        variables: settings.reasoning.variables(settings.grammar.is_some()),
        ..ChatOptions::default()
    };
    let (prompt, thinking) =
        render(&model, messages, options).await.map_err(|error| ApiError::text(error, "messages"))?;
    let legacy = tools.legacy;
    let ask = ask(settings, model, prompt, &tools, thinking, &app.config)?;
    match legacy {
        true => app.generate::<Legacy>(caller, ask).await,
        false => app.generate::<Chat>(caller, ask).await,
    }
}

async fn render(
    model: &Model,
    messages: Vec<Value>,
    options: ChatOptions,
) -> Result<(Vec<u32>, Thinking), crate::engine::TextError> {
    let rendered = model.render_chat(messages, options).await?;
    let thinking = model.thinking(&rendered);
    Ok((model.encode_chat(rendered).await?, thinking))
}

fn ask(
    settings: Settings,
    model: Arc<Model>,
    prompt: Vec<u32>,
    tools: &Tools,
    thinking: Thinking,
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
        true => Default::default(),
        false => tools.hearing(format, thinking),
    };
    let default_max_tokens = config.chat_max_tokens;
    Ok(Ask {
        settings,
        model,
        prompts: vec![prompt],
        param: "messages",
        default_max_tokens,
        grammar,
        hearing,
    })
}
