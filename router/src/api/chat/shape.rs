//! How chats are answered, and how they were answered when tools were functions.

use serde::Serialize;

use crate::api::common::{
    listen::{Call, Saying},
    reply::{Piece, Said, Shape},
};

const ROLE: &str = "assistant";

/// Today's answers.
pub(super) struct Chat;

/// The answers to requests with `functions`.
pub(super) struct Legacy;

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Body<'a> {
    /// Of an answer.
    Message(Message<'a>),
    /// Of a chunk.
    Delta(Delta<'a>),
}

#[derive(Serialize)]
pub(super) struct Message<'a> {
    role: &'static str,
    /// Null where there are calls and nothing else.
    content: Option<&'a str>,
    /// Typed clients want the key.
    refusal: (),
    #[serde(skip_serializing_if = "str::is_empty")]
    reasoning_content: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<Function<'a>>,
}

/// The keys are absent, not null, where there is nothing: SDKs concatenate whatever they find.
#[derive(Default, Serialize)]
pub(super) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCall<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<Function<'a>>,
}

/// Of a chunk, the first has id, type and name, and the others have none of them.
#[derive(Serialize)]
struct ToolCall<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

// === impl Chat ===

impl Shape for Chat {
    const ID: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";
    const OPENS: bool = true;
    const CALLED: &'static str = "tool_calls";
    type Body<'a> = Body<'a>;

    fn body(said: Said<'_>) -> Body<'_> {
        let call = |index, id, name: Option<_>, arguments| {
            let r#type = name.map(|_| "function");
            Some([ToolCall { index: Some(index), id, r#type, function: Function { name, arguments } }])
        };
        Body::Delta(match said {
            Said::Whole(saying) => {
                let tool_calls = saying.calls.iter().map(ToolCall::whole).collect();
                return Body::Message(Message { tool_calls, ..Message::of(saying) });
            }
            Said::More(Piece::Call { index, id, name }) => {
                Delta { tool_calls: call(index, Some(id), Some(name), ""), ..Delta::default() }
            }
            Said::More(Piece::Arguments { index, text }) => {
                Delta { tool_calls: call(index, None, None, text), ..Delta::default() }
            }
            said => Delta::of(said),
        })
    }
}

// === impl Legacy ===

impl Shape for Legacy {
    const ID: &'static str = Chat::ID;
    const OBJECT: &'static str = Chat::OBJECT;
    const CHUNK: &'static str = Chat::CHUNK;
    const OPENS: bool = Chat::OPENS;
    const CALLED: &'static str = "function_call";
    type Body<'a> = Body<'a>;

    fn body(said: Said<'_>) -> Body<'_> {
        Body::Delta(match said {
            Said::Whole(saying) => {
                let function_call = saying.calls.first().map(Function::whole);
                return Body::Message(Message { function_call, ..Message::of(saying) });
            }
            Said::More(Piece::Call { name, .. }) => {
                let function_call = Some(Function { name: Some(name), arguments: "" });
                Delta { function_call, ..Delta::default() }
            }
            Said::More(Piece::Arguments { text, .. }) => {
                let function_call = Some(Function { name: None, arguments: text });
                Delta { function_call, ..Delta::default() }
            }
            said => Delta::of(said),
        })
    }
}

// === impl Message ===

impl<'a> Message<'a> {
    /// Without calls.
    fn of(saying: &'a Saying) -> Self {
        let nothing = saying.content.is_empty() && !saying.calls.is_empty();
        Self {
            role: ROLE,
            content: (!nothing).then_some(&saying.content),
            refusal: (),
            reasoning_content: &saying.reasoning,
            tool_calls: Vec::new(),
            function_call: None,
        }
    }
}

impl<'a> Delta<'a> {
    /// Without calls.
    fn of(said: Said<'a>) -> Self {
        match said {
            Said::Open => Self { role: Some(ROLE), ..Self::default() },
            Said::More(Piece::Content(text)) => Self { content: Some(text), ..Self::default() },
            Said::More(Piece::Reasoning(text)) => Self { reasoning_content: Some(text), ..Self::default() },
            _ => Self::default(),
        }
    }
}

impl<'a> ToolCall<'a> {
    fn whole(call: &'a Call) -> Self {
        Self { index: None, id: Some(&call.id), r#type: Some("function"), function: Function::whole(call) }
    }
}

impl<'a> Function<'a> {
    fn whole(call: &'a Call) -> Self {
        Self { name: Some(&call.name), arguments: &call.arguments }
    }
}
