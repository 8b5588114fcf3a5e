//! What clients of Anthropic's API send, and as templates take it.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    api::common::{
        fields::{Integer, Number, Strings, TextOr},
        format::ResponseFormat,
        messages::Accepted,
        parameters::Parameters,
        reasoning::{ThinkingField, ThinkingType},
        tools::{FunctionField, ToolField, ToolFields, Tools},
    },
    http::error::ApiError,
};

/// A conversation to go on with.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct MessagesRequest {
    /// Which model.
    pub model: Option<String>,
    /// The conversation so far.
    pub messages: Option<Vec<Message>>,
    /// Instructions.
    pub system: Option<TextOr<Block>>,
    /// Tokens of the answer at most. Required.
    pub max_tokens: Option<Integer>,
    /// Strings that end the answer; they are not part of it.
    pub stop_sequences: Option<Vec<String>>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// 0 is greedy.
    pub temperature: Option<Number>,
    /// 1 is off.
    pub top_p: Option<Number>,
    /// 0 is off.
    pub top_k: Option<Integer>,
    /// Accepted.
    pub metadata: Option<Metadata>,
    /// Accepted.
    pub service_tier: Option<String>,
    /// Functions that the model may call.
    pub tools: Option<Vec<ToolDefinition>>,
    /// Whether it may or must call some.
    pub tool_choice: Option<ToolChoice>,
    /// How it reasons.
    pub thinking: Option<Thinking>,
    /// The answer's format, and how much to reason for it.
    pub output_config: Option<OutputConfig>,
    /// Not supported.
    pub container: Option<Value>,
    /// Not supported.
    pub context_management: Option<Value>,
    /// Not supported.
    pub mcp_servers: Option<Vec<Value>>,
}

/// Who asks, in the client's own terms.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Metadata {
    /// Accepted.
    pub user_id: Option<String>,
}

/// How a model reasons.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Thinking {
    /// `enabled`, `disabled`, or `adaptive`: as the model does by itself.
    pub r#type: Option<String>,
    /// Tokens.
    pub budget_tokens: Option<Integer>,
    /// Accepted.
    pub display: Option<Accepted>,
}

/// A function that the model may call.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ToolDefinition {
    /// `custom`, or nothing: the server has no tools of its own.
    pub r#type: Option<String>,
    /// Letters, digits, `_` and `-`, at most 64.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of its arguments, an object.
    pub input_schema: Option<Value>,
    /// Accepted: forced calls are always valid.
    pub strict: Option<bool>,
    /// Accepted.
    pub cache_control: Option<Accepted>,
}

/// Whether the model may or must call a function.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicToolChoice")]
pub struct ToolChoice {
    /// `auto`, `any`, `tool`, `none`.
    pub r#type: Option<String>,
    /// Of `tool`: which.
    pub name: Option<String>,
    /// Whether it calls one function at most.
    pub disable_parallel_tool_use: Option<bool>,
}

/// The answer's format, and how much to reason for it.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct OutputConfig {
    /// `{type: "json_schema", schema}`.
    pub format: Option<OutputFormat>,
    /// `low`, `medium`, `high`, `max`.
    pub effort: Option<String>,
}

/// The answer's format.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct OutputFormat {
    /// `json_schema`.
    pub r#type: Option<String>,
    /// A JSON schema.
    pub schema: Option<Value>,
}

/// A message.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicMessage")]
pub struct Message {
    /// `user` or `assistant`.
    pub role: Option<Role>,
    /// What is said.
    pub content: Option<TextOr<Block>>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "AnthropicRole")]
pub enum Role {
    /// The one who asks, or what a tool answered.
    User,
    /// The model.
    Assistant,
}

/// A part of what is said. Whatever an answer's blocks have is accepted back.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ContentBlock")]
pub struct Block {
    /// Which of the others count.
    pub r#type: Option<String>,
    /// Of `text`.
    pub text: Option<String>,
    /// Of `thinking`.
    pub thinking: Option<String>,
    /// Accepted.
    pub signature: Option<Accepted>,
    /// Of `redacted_thinking`: nobody here can read it.
    pub data: Option<Accepted>,
    /// Of `tool_use`: the call's.
    pub id: Option<String>,
    /// Of `tool_use`: the function's.
    pub name: Option<String>,
    /// Of `tool_use`: the arguments.
    pub input: Option<Value>,
    /// Accepted.
    pub caller: Option<Accepted>,
    /// Of `tool_result`: the call that it answers.
    pub tool_use_id: Option<String>,
    /// Of `tool_result`.
    pub content: Option<TextOr<Block>>,
    /// Of `tool_result`.
    pub is_error: Option<bool>,
    /// Recognised, and refused.
    pub source: Option<Accepted>,
    /// Accepted: prefixes are found by themselves.
    pub cache_control: Option<Accepted>,
    /// Accepted.
    pub citations: Option<Accepted>,
    /// Accepted.
    pub title: Option<Accepted>,
    /// Accepted.
    pub context: Option<Accepted>,
}

/// What the model is shown.
pub(super) struct Conversation {
    messages: Option<Vec<Message>>,
    system: Option<TextOr<Block>>,
}

/// A message in the making: blocks of one message may become several.
#[derive(Default)]
struct Draft {
    text: String,
    has_text: bool,
    reasoning: String,
    calls: Vec<Value>,
    done: Vec<Value>,
}

// === impl MessagesRequest ===

impl MessagesRequest {
    /// What is meant, in the words that all text endpoints share.
    pub(super) fn parameters(&mut self) -> Result<Parameters, ApiError> {
        self.refuse()?;
        let max_tokens = self.max_tokens.ok_or_else(|| ApiError::missing("max_tokens"))?;
        if max_tokens.0 < 1 {
            return Err(ApiError::value("max_tokens", "max_tokens must be at least 1"));
        }
        let stops = self.stop_sequences.take();
        if stops.as_ref().is_some_and(|stops| stops.len() > 4 || stops.iter().any(String::is_empty)) {
            let message = "stop_sequences may have at most 4 entries, none of them empty";
            return Err(ApiError::value("stop_sequences", message));
        }
        Ok(Parameters {
            model: self.model.take(),
            max_tokens: Some(max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: stops.map(Strings),
            include_stop_str_in_output: Some(false),
            user: self.metadata.take().and_then(|metadata| metadata.user_id),
            thinking: self.thinking()?,
            reasoning_effort: self.effort(),
            response_format: self.format(),
            ..Parameters::default()
        })
    }

    fn refuse(&self) -> Result<(), ApiError> {
        let empty = |list: &Option<Vec<Value>>| list.as_ref().is_none_or(Vec::is_empty);
        for (name, harmless) in [
            ("container", self.container.is_none()),
            ("context_management", self.context_management.is_none()),
            ("mcp_servers", empty(&self.mcp_servers)),
        ] {
            if !harmless {
                return Err(ApiError::unsupported(name));
            }
        }
        Ok(())
    }

    fn thinking(&self) -> Result<Option<ThinkingField>, ApiError> {
        let Some(thinking) = &self.thinking else { return Ok(None) };
        let r#type = match thinking.r#type.as_deref() {
            Some("enabled") => ThinkingType::Enabled,
            Some("disabled") => ThinkingType::Disabled,
            Some("adaptive") => return Ok(None),
            None => return Err(ApiError::missing("thinking.type")),
            Some(_) => {
                let message = "thinking.type must be enabled, disabled or adaptive";
                return Err(ApiError::value("thinking.type", message));
            }
        };
        Ok(Some(ThinkingField { r#type, budget_tokens: thinking.budget_tokens }))
    }

    /// How much to reason; what `thinking` says goes before it.
    fn effort(&self) -> Option<Value> {
        let thinking = self.thinking.as_ref().and_then(|thinking| thinking.r#type.as_deref());
        let effort = self.output_config.as_ref().and_then(|config| config.effort.as_deref());
        effort.filter(|_| matches!(thinking, None | Some("adaptive"))).map(Value::from)
    }

    fn format(&self) -> Option<ResponseFormat> {
        let format = self.output_config.as_ref()?.format.as_ref()?;
        Some(ResponseFormat {
            r#type: format.r#type.clone(),
            schema: format.schema.clone(),
            json_schema: None,
            grammar: None,
            regex: None,
            choice: None,
        })
    }

    pub(super) fn tools(&mut self) -> Result<Tools, ApiError> {
        tools(self.tools.take(), self.tool_choice.take())
    }

    pub(super) fn conversation(self) -> Conversation {
        Conversation { messages: self.messages, system: self.system }
    }
}

fn tools(tools: Option<Vec<ToolDefinition>>, choice: Option<ToolChoice>) -> Result<Tools, ApiError> {
    let fields = |(index, tool): (usize, ToolDefinition)| match tool.r#type.as_deref() {
        None | Some("custom") => Ok(ToolField {
            r#type: Some("function".into()),
            function: Some(FunctionField {
                name: tool.name,
                description: tool.description,
                parameters: tool.input_schema,
                strict: tool.strict,
            }),
        }),
        Some(_) => Err(ApiError::unsupported(format!("tools[{index}].type"))),
    };
    let tools = tools.map(|tools| tools.into_iter().enumerate().map(fields).collect());
    let single = choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use);
    Tools::check(ToolFields {
        tools: tools.transpose()?,
        tool_choice: choice.map(ToolChoice::word).transpose()?,
        parallel_tool_calls: single.map(|single| !single),
        ..ToolFields::default()
    })
}

// === impl ToolChoice ===

impl ToolChoice {
    /// As chats say it.
    fn word(self) -> Result<Value, ApiError> {
        match self.r#type.as_deref() {
            Some(word @ ("auto" | "any" | "none")) => Ok(word.into()),
            Some("tool") => {
                let name = self.name.ok_or_else(|| ApiError::missing("tool_choice.name"))?;
                Ok(json!({"type": "function", "name": name}))
            }
            None => Err(ApiError::missing("tool_choice.type")),
            Some(_) => {
                let message = "tool_choice.type must be auto, any, tool or none";
                Err(ApiError::value("tool_choice.type", message))
            }
        }
    }
}

// === impl Conversation ===

impl Conversation {
    /// The messages as templates take them, or what is wrong with one.
    pub(super) fn template(self) -> Result<Vec<Value>, ApiError> {
        let messages = self.messages.ok_or_else(|| ApiError::missing("messages"))?;
        if messages.is_empty() {
            return Err(ApiError::value("messages", "messages must contain at least one message"));
        }
        let mut all = Vec::with_capacity(messages.len() + 1);
        if let Some(system) = self.system {
            all.push(json!({"role": "system", "content": text(system, "system")?}));
        }
        for (index, message) in messages.into_iter().enumerate() {
            let path = format!("messages[{index}]");
            let role = message.role.ok_or_else(|| ApiError::missing(format!("{path}.role")))?;
            let content = message.content.ok_or_else(|| ApiError::missing(format!("{path}.content")))?;
            all.extend(draft(role, content, &format!("{path}.content"))?);
        }
        Ok(all)
    }
}

fn draft(role: Role, content: TextOr<Block>, path: &str) -> Result<Vec<Value>, ApiError> {
    let mut draft = Draft::default();
    match content {
        TextOr::Text(text) => draft.say(&text),
        TextOr::Parts(blocks) if blocks.is_empty() => {
            return Err(ApiError::value(path, "content must have at least one block"));
        }
        TextOr::Parts(blocks) => {
            for (index, block) in blocks.into_iter().enumerate() {
                draft.add(role, block, &format!("{path}[{index}]"))?;
            }
        }
    }
    draft.close(role);
    Ok(draft.done)
}

/// Text that may only be text.
fn text(content: TextOr<Block>, path: &str) -> Result<String, ApiError> {
    let blocks = match content {
        TextOr::Text(text) => return Ok(text),
        TextOr::Parts(blocks) => blocks,
    };
    let mut whole = String::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        match block.r#type.as_deref() {
            Some("text") => whole += &block.text.ok_or_else(|| ApiError::missing(format!("{path}.text")))?,
            other => return Err(unknown(other, &path)),
        }
    }
    Ok(whole)
}

fn unknown(kind: Option<&str>, path: &str) -> ApiError {
    let path = format!("{path}.type");
    match kind {
        None => ApiError::missing(path),
        Some(media @ ("image" | "document" | "search_result" | "container_upload")) => {
            ApiError::value(path, format!("This model takes text only, not {media}"))
        }
        Some(other) => {
            let name: String = other.chars().take(32).collect();
            ApiError::value(path, format!("unknown content block type '{name}' here"))
        }
    }
}

// === impl Draft ===

impl Draft {
    fn add(&mut self, role: Role, block: Block, path: &str) -> Result<(), ApiError> {
        let missing = |field: &str| ApiError::missing(format!("{path}.{field}"));
        match (block.r#type.as_deref(), role) {
            (Some("text"), _) => self.say(&block.text.ok_or_else(|| missing("text"))?),
            (Some("thinking"), Role::Assistant) => {
                self.reasoning += &block.thinking.ok_or_else(|| missing("thinking"))?;
            }
            (Some("redacted_thinking"), Role::Assistant) => {}
            (Some("tool_use"), Role::Assistant) => {
                let name = block.name.ok_or_else(|| missing("name"))?;
                let arguments = block.input.unwrap_or_else(|| json!({})).to_string();
                self.calls.push(json!({"id": block.id, "type": "function",
                    "function": {"name": name, "arguments": arguments}}));
            }
            (Some("tool_result"), Role::User) => {
                // A result is a message of its own; what was said before it stays before it.
                self.close(role);
                let id = block.tool_use_id.ok_or_else(|| missing("tool_use_id"))?;
                let content = block.content.map(|content| text(content, &format!("{path}.content")));
                let content = content.transpose()?.unwrap_or_default();
                self.done.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            (kind, _) => return Err(unknown(kind, path)),
        }
        Ok(())
    }

    fn say(&mut self, text: &str) {
        self.text += text;
        self.has_text = true;
    }

    /// Ends the message, if anything is in it.
    fn close(&mut self, role: Role) {
        let Self { text, has_text, reasoning, calls, done } = self;
        if !std::mem::take(has_text) && calls.is_empty() && reasoning.is_empty() {
            return;
        }
        let role = if role == Role::User { "user" } else { "assistant" };
        let mut message = json!({"role": role, "content": std::mem::take(text)});
        if !calls.is_empty() {
            message["tool_calls"] = std::mem::take(calls).into();
        }
        if !reasoning.is_empty() {
            message["reasoning_content"] = std::mem::take(reasoning).into();
        }
        done.push(message);
    }
}
