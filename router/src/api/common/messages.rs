//! The messages of a conversation: what clients send, checked, and as templates take them.
//!
//! Whatever an answer's message has is accepted back, nulls included: SDK users append it to the conversation
//! as it is.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::fields::TextOr;
use crate::http::error::ApiError;

/// A message, as it arrives.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Message {
    /// Who speaks.
    pub role: Option<Role>,
    /// What is said.
    pub content: Option<TextOr<Part>>,
    /// Which of several speakers; for `function`, which function.
    pub name: Option<String>,
    /// Which call a `tool` message answers.
    pub tool_call_id: Option<String>,
    /// Calls that the assistant made.
    pub tool_calls: Option<Vec<Value>>,
    /// A call, in the form before `tool_calls`.
    pub function_call: Option<Value>,
    /// The assistant's reasoning, for templates that render it.
    pub reasoning_content: Option<String>,
    /// Accepted.
    pub reasoning: Option<Accepted>,
    /// Accepted.
    pub refusal: Option<Accepted>,
    /// Accepted.
    pub annotations: Option<Accepted>,
    /// Accepted.
    pub audio: Option<Accepted>,
    /// Accepted.
    pub parsed: Option<Accepted>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// OpenAI's newer name of `system`.
    Developer,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
    /// A tool's result, in the form before `tool`.
    Function,
}

/// A part of a message's content.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Part {
    /// `text`, and for the assistant `refusal`.
    pub r#type: Option<String>,
    /// Of a `text`.
    pub text: Option<String>,
    /// Of a `refusal`.
    pub refusal: Option<String>,
    /// Recognised, and refused.
    pub image_url: Option<Accepted>,
    /// Recognised, and refused.
    pub video_url: Option<Accepted>,
    /// Recognised, and refused.
    pub input_audio: Option<Accepted>,
    /// Recognised, and refused.
    pub file: Option<Accepted>,
}

/// Any value; it has no effect.
#[derive(Debug)]
pub struct Accepted;

// === impl Accepted ===

impl JsonSchema for Accepted {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Accepted".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({})
    }
}

impl<'de> Deserialize<'de> for Accepted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `IgnoredAny`: that would report the field as unknown.
        Value::deserialize(deserializer).map(|_| Self)
    }
}

/// The text of a content; parts are joined without a separator.
fn text(content: TextOr<Part>, path: &str, role: Role) -> Result<String, ApiError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text),
        TextOr::Parts(parts) => parts,
    };
    if parts.is_empty() {
        return Err(ApiError::value(format!("{path}.content"), "content must have at least one part"));
    }
    let mut whole = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        whole += &part.into_text(&format!("{path}.content[{index}]"), role)?;
    }
    Ok(whole)
}

impl Part {
    fn into_text(self, path: &str, role: Role) -> Result<String, ApiError> {
        let missing = |field: &str| ApiError::missing(format!("{path}.{field}"));
        match self.r#type.as_deref() {
            None => Err(missing("type")),
            Some("text") => self.text.ok_or_else(|| missing("text")),
            Some("refusal") if role == Role::Assistant => self.refusal.ok_or_else(|| missing("refusal")),
            Some(media @ ("image_url" | "video_url" | "input_audio" | "file")) => {
                let message = format!("This model takes text only, not {media}");
                Err(ApiError::value(format!("{path}.type"), message))
            }
            Some(other) => {
                let name: String = other.chars().take(32).collect();
                Err(ApiError::value(format!("{path}.type"), format!("unknown content part type '{name}'")))
            }
        }
    }
}

// === impl Message ===

/// The messages as templates take them, or what is wrong with one.
pub(crate) fn check(messages: Vec<Message>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::value("messages", "messages must contain at least one message"));
    }
    let numbered = messages.into_iter().enumerate();
    numbered.map(|(index, message)| message.into_template(&format!("messages[{index}]"))).collect()
}

impl Message {
    fn into_template(self, path: &str) -> Result<Value, ApiError> {
        let missing = |field: &str| ApiError::missing(format!("{path}.{field}"));
        let role = self.role.ok_or_else(|| missing("role"))?;
        let content = match self.content {
            Some(content) => text(content, path, role)?,
            // An assistant that only called tools has none.
            None if role == Role::Assistant => String::new(),
            None => return Err(missing("content")),
        };
        if role == Role::Tool && self.tool_call_id.is_none() {
            return Err(missing("tool_call_id"));
        }
        if role == Role::Function && self.name.is_none() {
            return Err(missing("name"));
        }
        let call = self.function_call.filter(|call| !call.is_null());
        let call = call.map(|call| vec![json!({"type": "function", "function": call})]);
        let mut fields = Map::new();
        fields.insert("role".into(), role.template_name().into());
        fields.insert("content".into(), content.into());
        for (key, value) in [
            ("name", self.name.map(Value::from)),
            ("tool_call_id", self.tool_call_id.map(Value::from)),
            ("tool_calls", self.tool_calls.or(call).map(Value::from)),
            ("reasoning_content", self.reasoning_content.map(Value::from)),
        ] {
            fields.extend(value.map(|value| (key.to_owned(), value)));
        }
        Ok(Value::Object(fields))
    }
}

impl Role {
    fn template_name(self) -> &'static str {
        match self {
            Self::System | Self::Developer => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool | Self::Function => "tool",
        }
    }
}
