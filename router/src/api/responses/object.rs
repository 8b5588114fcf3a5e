//! A response as clients see it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::request::{FunctionTool, ResponsesRequest, Truncation};
use crate::{
    api::common::usage::Tally,
    generation::{Finish, Reason},
    http::error::ApiError,
};

/// A response: what was asked for, and what came of it so far.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Object {
    pub id: String,
    object: &'static str,
    created_at: u64,
    completed_at: Option<u64>,
    pub status: Status,
    background: bool,
    error: Option<Failure>,
    incomplete_details: Option<Incomplete>,
    instructions: Option<String>,
    max_output_tokens: Option<i64>,
    max_tool_calls: Option<i64>,
    model: String,
    pub output: Vec<Item>,
    parallel_tool_calls: bool,
    previous_response_id: Option<String>,
    reasoning: Value,
    service_tier: &'static str,
    store: bool,
    temperature: f64,
    text: Value,
    tool_choice: Value,
    tools: Vec<FunctionTool>,
    top_logprobs: u32,
    top_p: f64,
    truncation: &'static str,
    usage: Option<Usage>,
    /// Absent, never null.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    metadata: BTreeMap<String, String>,
}

/// How far a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelled,
}

#[derive(Clone, Debug, Serialize)]
struct Failure {
    code: &'static str,
    message: String,
}

#[derive(Clone, Debug, Serialize)]
struct Incomplete {
    reason: &'static str,
}

/// A piece of a response's output.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Item {
    Reasoning { id: String, summary: [(); 0], content: Vec<Content>, status: Status },
    Message { id: String, status: Status, role: &'static str, content: Vec<Content> },
    FunctionCall { id: String, call_id: String, name: String, arguments: String, status: Status },
}

/// What is in an item.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Content {
    ReasoningText { text: String },
    OutputText { text: String, annotations: [(); 0], logprobs: [(); 0] },
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Usage {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct InputDetails {
    cached_tokens: u64,
    cache_write_tokens: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

// === impl Object ===

impl Object {
    /// A response that begins.
    pub(super) fn new(id: String, model: String, request: ResponsesRequest) -> Self {
        let text = json!({"format": {"type": "text"}});
        Self {
            id,
            object: "response",
            created_at: now(),
            completed_at: None,
            status: Status::InProgress,
            background: false,
            error: None,
            incomplete_details: None,
            instructions: request.instructions,
            max_output_tokens: request.max_output_tokens.map(|tokens| tokens.0),
            max_tool_calls: request.max_tool_calls.map(|calls| calls.0),
            model,
            output: Vec::new(),
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            previous_response_id: request.previous_response_id,
            reasoning: json!({"effort": request.reasoning.and_then(|it| it.effort), "summary": null}),
            service_tier: "default",
            store: request.store.unwrap_or(true),
            temperature: request.temperature.map_or(1.0, |temperature| temperature.0),
            text: request.text.and_then(|text| text.format).map_or(text, |format| json!({"format": format})),
            tool_choice: request.tool_choice.unwrap_or_else(|| "auto".into()),
            tools: request.tools.unwrap_or_default(),
            top_logprobs: 0,
            top_p: request.top_p.map_or(1.0, |top_p| top_p.0),
            truncation: if request.truncation == Some(Truncation::Auto) { "auto" } else { "disabled" },
            usage: None,
            user: request.user,
            metadata: request.metadata.unwrap_or_default(),
        }
    }

    /// It ends as its generation did.
    pub(super) fn finish(&mut self, finish: Finish, tally: &Tally) {
        self.completed_at = (finish.reason == Reason::Stop).then(now);
        self.usage = Some(usage(tally));
        self.status = match finish.reason {
            Reason::Stop => Status::Completed,
            Reason::Length => Status::Incomplete,
        };
        if finish.reason == Reason::Length {
            self.incomplete_details = Some(Incomplete { reason: "max_output_tokens" });
        }
    }

    /// Its client has stopped it.
    pub(super) fn cancel(&mut self) {
        self.completed_at = None;
        self.status = Status::Cancelled;
    }

    /// It can't go on.
    pub(super) fn fail(&mut self, error: &ApiError) {
        self.status = Status::Failed;
        // The API's own list has two codes that fit a server.
        let code = if error.status().is_client_error() { "invalid_prompt" } else { "server_error" };
        self.error = Some(Failure { code, message: error.to_string() });
    }
}

// === impl Status ===

impl Status {
    /// Of the items of a response that ends so.
    pub(super) fn of_items(self) -> Self {
        match self {
            Self::Completed => Self::Completed,
            _ => Self::Incomplete,
        }
    }
}

// === impl Item ===

impl Item {
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. } | Self::Message { id, .. } | Self::FunctionCall { id, .. } => id,
        }
    }

    pub(super) fn set_status(&mut self, new: Status) {
        match self {
            Self::Reasoning { status, .. }
            | Self::Message { status, .. }
            | Self::FunctionCall { status, .. } => *status = new,
        }
    }

    /// Takes out what it has beside itself.
    pub(super) fn take_content(&mut self) -> Option<Content> {
        match self {
            Self::Reasoning { content, .. } | Self::Message { content, .. } => content.pop(),
            Self::FunctionCall { .. } => None,
        }
    }

    /// Adds text.
    pub(super) fn push(&mut self, more: &str) {
        match self {
            Self::FunctionCall { arguments, .. } => arguments.push_str(more),
            Self::Reasoning { content, .. } | Self::Message { content, .. } => match content.last_mut() {
                Some(Content::ReasoningText { text } | Content::OutputText { text, .. }) => {
                    text.push_str(more)
                }
                None => {}
            },
        }
    }
}

// === impl Content ===

impl Content {
    pub(super) fn text(text: String) -> Self {
        Self::OutputText { text, annotations: [], logprobs: [] }
    }
}

fn usage(tally: &Tally) -> Usage {
    let usage = tally.usage();
    Usage {
        input_tokens: usage.prompt_tokens,
        input_tokens_details: InputDetails { cached_tokens: tally.cached_tokens(), cache_write_tokens: 0 },
        output_tokens: usage.completion_tokens,
        output_tokens_details: OutputDetails { reasoning_tokens: usage.reasoning_tokens() },
        total_tokens: usage.total_tokens,
    }
}

/// Unix seconds.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
