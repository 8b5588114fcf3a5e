//! What clients of the Responses API send, and as templates take it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    api::common::{
        fields::{Integer, Number, TextOr},
        format::ResponseFormat,
        messages::{Accepted, Role},
        parameters::Parameters,
        tools::{FunctionField, ToolField, ToolFields, Tools},
    },
    http::error::ApiError,
};

/// A response to make.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ResponsesRequest {
    /// Which model.
    pub model: Option<String>,
    /// A text, or the conversation's new items.
    pub input: Option<TextOr<Item>>,
    /// A system message before everything, for this response alone.
    pub instructions: Option<String>,
    /// The response whose conversation goes on.
    pub previous_response_id: Option<String>,
    /// Tokens of the response at most.
    pub max_output_tokens: Option<Integer>,
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<Number>,
    /// 0 to 1; 1 is off.
    pub top_p: Option<Number>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// Accepted: padding is never sent.
    pub stream_options: Option<StreamOptions>,
    /// Whether the response can be asked for again and gone on from, for a while (the default).
    pub store: Option<bool>,
    /// At most 16 pairs, given back with the response.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The output's format.
    pub text: Option<TextConfig>,
    /// Functions that the model may call.
    pub tools: Option<Vec<FunctionTool>>,
    /// Whether it may or must call some.
    pub tool_choice: Option<Value>,
    /// Whether it may call several.
    pub parallel_tool_calls: Option<bool>,
    /// Accepted.
    pub max_tool_calls: Option<Integer>,
    /// How it reasons.
    pub reasoning: Option<Reasoning>,
    /// What happens to a conversation that is too long.
    pub truncation: Option<Truncation>,
    /// What the response has beside its output.
    pub include: Option<Vec<String>>,
    /// Not supported.
    pub top_logprobs: Option<Integer>,
    /// An end user's name: requests of one are likely to share a prefix.
    pub user: Option<String>,
    /// Accepted.
    pub safety_identifier: Option<String>,
    /// Without effect here.
    pub service_tier: Option<String>,
    /// Requests of one are likely to share a prefix.
    pub prompt_cache_key: Option<String>,
    /// Accepted.
    pub prompt_cache_retention: Option<Accepted>,
    /// Accepted.
    pub prompt_cache_options: Option<Accepted>,
    /// Not supported.
    pub background: Option<bool>,
    /// Not supported.
    pub conversation: Option<Value>,
    /// Not supported.
    pub prompt: Option<Value>,
    /// Not supported.
    pub moderation: Option<Value>,
    /// Not supported.
    pub context_management: Option<Value>,
}

/// How a stream is sent.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseStreamOptions")]
pub struct StreamOptions {
    /// Accepted.
    pub include_obfuscation: Option<bool>,
}

/// The output's format.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct TextConfig {
    /// Text, or JSON.
    pub format: Option<Format>,
    /// Accepted.
    pub verbosity: Option<String>,
}

/// Text, or JSON.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[schemars(rename = "TextFormat")]
pub struct Format {
    /// `text`, `json_object`, `json_schema`.
    pub r#type: Option<String>,
    /// Of `json_schema`: accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of `json_schema`: accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Of `json_schema`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Of `json_schema`: accepted, the output is always valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// What happens to a conversation that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// Its oldest turns are left out.
    Auto,
    /// 400.
    Disabled,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct FunctionTool {
    /// `function`.
    pub r#type: Option<String>,
    /// Letters, digits, `_` and `-`, at most 64.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of its arguments, an object.
    pub parameters: Option<Value>,
    /// Accepted: forced calls are always valid.
    pub strict: Option<bool>,
}

/// How a model reasons.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Reasoning {
    /// How much.
    pub effort: Option<String>,
    /// Accepted.
    pub summary: Option<Accepted>,
    /// Accepted.
    pub generate_summary: Option<Accepted>,
}

/// An item of a conversation. Whatever a response's items have is accepted back.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Item {
    /// Which of the others count; `message` where it is left out.
    pub r#type: Option<String>,
    /// Of a message.
    pub role: Option<Role>,
    /// Of a message, or of `reasoning`.
    pub content: Option<TextOr<Part>>,
    /// Accepted.
    pub id: Option<Accepted>,
    /// Accepted.
    pub status: Option<Accepted>,
    /// Accepted.
    pub phase: Option<Accepted>,
    /// Of `function_call` and `function_call_output`.
    pub call_id: Option<String>,
    /// Of `function_call`.
    pub name: Option<String>,
    /// Of `function_call`: JSON.
    pub arguments: Option<String>,
    /// Of `function_call_output`.
    pub output: Option<TextOr<Part>>,
    /// Of `reasoning`: accepted.
    pub summary: Option<Accepted>,
    /// Of `reasoning`: nobody here can read it.
    pub encrypted_content: Option<Accepted>,
}

/// A part of an item's content.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ItemPart")]
pub struct Part {
    /// `input_text`, `output_text`, `reasoning_text`, `refusal`.
    pub r#type: Option<String>,
    /// The text.
    pub text: Option<String>,
    /// Of `refusal`.
    pub refusal: Option<String>,
    /// Accepted.
    pub annotations: Option<Accepted>,
    /// Accepted.
    pub logprobs: Option<Accepted>,
    /// Recognised, and refused.
    pub image_url: Option<Accepted>,
    /// Recognised, and refused.
    pub file_id: Option<Accepted>,
    /// Recognised, and refused.
    pub detail: Option<Accepted>,
}

// === impl ResponsesRequest ===

impl ResponsesRequest {
    /// What is meant, in the words that all text endpoints share.
    pub(super) fn parameters(&self) -> Result<Parameters, ApiError> {
        self.refuse()?;
        if let Some(Integer(tokens)) = self.max_output_tokens.filter(|tokens| tokens.0 < 1) {
            let message = format!("max_output_tokens must be at least 1: {tokens}");
            return Err(ApiError::value("max_output_tokens", message));
        }
        Ok(Parameters {
            model: self.model.clone(),
            max_tokens: self.max_output_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            metadata: self.metadata.clone(),
            user: self.user.clone(),
            prompt_cache_key: self.prompt_cache_key.clone(),
            response_format: self.text.as_ref().and_then(|text| text.format.clone()).map(Format::into_chats),
            reasoning_effort: self.reasoning.as_ref().and_then(|it| it.effort.clone()).map(Value::from),
            ..Parameters::default()
        })
    }

    fn refuse(&self) -> Result<(), ApiError> {
        let listed = |name: &str| self.include.iter().flatten().any(|one| one == name);
        for (name, harmless) in [
            ("background", self.background != Some(true)),
            ("conversation", self.conversation.is_none()),
            ("prompt", self.prompt.is_none()),
            ("moderation", self.moderation.is_none()),
            ("context_management", self.context_management.is_none()),
            ("top_logprobs", self.top_logprobs.is_none_or(|top| top.0 == 0)),
            ("include", !listed("message.output_text.logprobs")),
        ] {
            if !harmless {
                return Err(ApiError::unsupported(name));
            }
        }
        Ok(())
    }

    pub(super) fn tools(&self) -> Result<Tools, ApiError> {
        let fields = |(index, tool): (usize, FunctionTool)| match tool.r#type.as_deref() {
            Some(kind) if kind != "function" => Err(ApiError::unsupported(format!("tools[{index}].type"))),
            _ => Ok(ToolField {
                r#type: tool.r#type,
                function: Some(FunctionField {
                    name: tool.name,
                    description: tool.description,
                    parameters: tool.parameters,
                    strict: tool.strict,
                }),
            }),
        };
        let tools = self.tools.clone().map(|tools| tools.into_iter().enumerate().map(fields).collect());
        Tools::check(ToolFields {
            tools: tools.transpose()?,
            tool_choice: self.tool_choice.clone(),
            parallel_tool_calls: self.parallel_tool_calls,
            ..ToolFields::default()
        })
    }

    /// The new items as templates take them, or what is wrong with one.
    pub(super) fn messages(&mut self) -> Result<Vec<Value>, ApiError> {
        let items = match self.input.take().ok_or_else(|| ApiError::missing("input"))? {
            TextOr::Text(text) => return Ok(vec![json!({"role": "user", "content": text})]),
            TextOr::Parts(items) => items,
        };
        if items.is_empty() && self.previous_response_id.is_none() {
            return Err(ApiError::value("input", "input must have at least one item"));
        }
        let mut messages = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            item.add_to(&mut messages, &format!("input[{index}]"))?;
        }
        Ok(messages)
    }
}

// === impl Format ===

impl Format {
    fn into_chats(self) -> ResponseFormat {
        ResponseFormat {
            r#type: self.r#type,
            schema: self.schema,
            json_schema: None,
            grammar: None,
            regex: None,
            choice: None,
        }
    }
}

// === impl Item ===

impl Item {
    fn add_to(self, messages: &mut Vec<Value>, path: &str) -> Result<(), ApiError> {
        let missing = |field: &str| ApiError::missing(format!("{path}.{field}"));
        match self.r#type.as_deref() {
            None | Some("message") => {
                let role = self.role.ok_or_else(|| missing("role"))?;
                let name = match role {
                    Role::User => "user",
                    Role::Assistant => "assistant",
                    Role::System | Role::Developer => "system",
                    Role::Tool | Role::Function => {
                        let message = "role must be user, assistant, system or developer";
                        return Err(ApiError::value(format!("{path}.role"), message));
                    }
                };
                let content = self.content.ok_or_else(|| missing("content"))?;
                let text = text(content, &format!("{path}.content"))?;
                match messages.last_mut().filter(|last| name == "assistant" && is_open(last)) {
                    Some(last) => last["content"] = text.into(),
                    None => messages.push(json!({"role": name, "content": text})),
                }
            }
            Some("reasoning") => {
                let content = self.content.map(|content| text(content, &format!("{path}.content")));
                let content = content.transpose()?.unwrap_or_default();
                messages.push(json!({"role": "assistant", "content": "", "reasoning_content": content}));
            }
            Some("function_call") => {
                let id = self.call_id.ok_or_else(|| missing("call_id"))?;
                let name = self.name.ok_or_else(|| missing("name"))?;
                let arguments = self.arguments.ok_or_else(|| missing("arguments"))?;
                let call = json!({"id": id, "type": "function",
                    "function": {"name": name, "arguments": arguments}});
                add_call(messages, call);
            }
            Some("function_call_output") => {
                let id = self.call_id.ok_or_else(|| missing("call_id"))?;
                let output = self.output.ok_or_else(|| missing("output"))?;
                let output = text(output, &format!("{path}.output"))?;
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
            }
            Some(other) => {
                let name: String = other.chars().take(32).collect();
                let message = format!("items of type '{name}' are not supported");
                return Err(ApiError::with_code("unsupported_parameter", format!("{path}.type"), message));
            }
        }
        Ok(())
    }
}

/// Whether an assistant's message has only reasoning yet.
fn is_open(message: &Value) -> bool {
    message["role"] == "assistant" && message["content"] == "" && message.get("tool_calls").is_none()
}

/// Calls follow the message that they belong to, as items of their own.
fn add_call(messages: &mut Vec<Value>, call: Value) {
    if messages.last().is_none_or(|last| last["role"] != "assistant") {
        messages.push(json!({"role": "assistant", "content": ""}));
    }
    let Some(last) = messages.last_mut() else { return };
    match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
        Some(calls) => calls.push(call),
        None => last["tool_calls"] = json!([call]),
    }
}

/// The text of a content; parts are joined without a separator.
fn text(content: TextOr<Part>, path: &str) -> Result<String, ApiError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text),
        TextOr::Parts(parts) => parts,
    };
    let mut whole = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let missing = |field: &str| ApiError::missing(format!("{path}.{field}"));
        whole += &match part.r#type.as_deref() {
            None => return Err(missing("type")),
            Some("input_text" | "output_text" | "reasoning_text") => {
                part.text.ok_or_else(|| missing("text"))?
            }
            Some("refusal") => part.refusal.ok_or_else(|| missing("refusal"))?,
            Some(media @ ("input_image" | "input_file" | "input_audio")) => {
                let message = format!("This model takes text only, not {media}");
                return Err(ApiError::value(format!("{path}.type"), message));
            }
            Some(other) => {
                let name: String = other.chars().take(32).collect();
                return Err(ApiError::value(
                    format!("{path}.type"),
                    format!("unknown content part type '{name}'"),
                ));
            }
        };
    }
    Ok(whole)
}
