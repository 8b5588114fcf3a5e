//! Formats, tools and reasoning that are refused, and with which words.

use super::{
    super::Client,
    cases::{
        At::{Chat, Complete},
        Case, INVALID, MISSING, TYPE, UNSUPPORTED,
    },
    expect,
};

const FORMAT: Option<&str> = Some("response_format");

pub(super) const FORMATS: &[Case] = &[
    (
        73,
        Chat,
        chat!(r#""response_format":{"type":"xml"}"#),
        INVALID,
        Some("response_format.type"),
        "unknown response format 'xml'",
    ),
    (73, Chat, chat!(r#""response_format":{}"#), MISSING, Some("response_format.type"), "Field required"),
    (73, Chat, chat!(r#""response_format":"json_object""#), TYPE, FORMAT, "response_format"),
    (
        73,
        Chat,
        chat!(r#""response_format":{"type":"json_schema"}"#),
        MISSING,
        Some("response_format.json_schema.schema"),
        "Field required",
    ),
    (
        73,
        Chat,
        chat!(r#""response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true}}"#),
        MISSING,
        Some("response_format.json_schema.schema"),
        "Field required",
    ),
    (
        73,
        Chat,
        chat!(r#""response_format":{"type":"json_schema","json_schema":{"name":"x","schema":123}}"#),
        INVALID,
        FORMAT,
        "JSON Schema not supported: could not understand the instance `123`",
    ),
    (
        73,
        Chat,
        chat!(r#""response_format":{"type":"json_object","schema":{"type":"hiccup"}}"#),
        INVALID,
        FORMAT,
        r#"could not understand the instance `{"type":"hiccup"}`"#,
    ),
    (
        73,
        Chat,
        chat!(r#""response_format":{"type":"json_object","schema":{"$ref":"https://example.com/x.json"}}"#),
        INVALID,
        FORMAT,
        "not followed",
    ),
    (
        73,
        Chat,
        chat!(r##""response_format":{"type":"json_object","schema":{"$ref":"#/$defs/nothing"}}"##),
        INVALID,
        FORMAT,
        "leads nowhere",
    ),
    (
        73,
        Chat,
        chat!(r##""response_format":{"type":"json_object","schema":{"$ref":"#"}}"##),
        INVALID,
        FORMAT,
        "leads to itself",
    ),
    (
        73,
        Chat,
        chat!(r#""response_format":{"type":"json_object","schema":{"type":"array","uniqueItems":true}}"#),
        INVALID,
        FORMAT,
        "uniqueItems",
    ),
    (73, Complete, with!(r#""guided_regex":"(?=a)b""#), INVALID, Some("guided_regex"), ""),
    (73, Complete, with!(r#""guided_choice":[]"#), INVALID, Some("guided_choice"), "at least one"),
    (
        73,
        Complete,
        with!(r#""guided_regex":"a","guided_choice":["a"]"#),
        INVALID,
        Some("guided_choice"),
        "exclude each other",
    ),
    (
        73,
        Complete,
        with!(r#""response_format":{"type":"regex"}"#),
        MISSING,
        Some("response_format.regex"),
        "Field required",
    ),
    (
        74,
        Chat,
        chat!(r#""response_format":{"type":"grammar","grammar":"root ::= \"a\"\nx ::= y"}"#),
        INVALID,
        FORMAT,
        "grammar, line 2: rule y is not defined",
    ),
    (
        74,
        Chat,
        chat!(r#""response_format":{"type":"grammar","grammar":"root ::= (\"a\""}"#),
        INVALID,
        FORMAT,
        "line 1: expected )",
    ),
    (
        74,
        Chat,
        chat!(r#""response_format":{"type":"grammar"}"#),
        MISSING,
        Some("response_format.grammar"),
        "Field required",
    ),
    (74, Chat, chat!(r#""guided_grammar":"root ::= root""#), INVALID, Some("guided_grammar"), ""),
];

pub(super) const TOOLS: &[Case] = &[
    (
        75,
        Chat,
        chat!(
            r#""tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required","response_format":{"type":"json_object"}"#
        ),
        INVALID,
        FORMAT,
        "exclude each other",
    ),
    (
        77,
        Chat,
        chat!(
            r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]"#
        ),
        INVALID,
        Some("tools[1].function.name"),
        "f is there twice",
    ),
    (
        77,
        Chat,
        chat!(r#""tools":[{"type":"function","function":{"name":"a b"}}]"#),
        INVALID,
        Some("tools[0].function.name"),
        "letters, digits",
    ),
    (
        77,
        Chat,
        chat!(r#""tools":[{"type":"function","function":{}}]"#),
        MISSING,
        Some("tools[0].function.name"),
        "Field required",
    ),
    (
        77,
        Chat,
        chat!(r#""tools":[{"type":"function"}]"#),
        MISSING,
        Some("tools[0].function"),
        "Field required",
    ),
    (
        77,
        Chat,
        chat!(r#""tools":[{"function":{"name":"f"}}]"#),
        MISSING,
        Some("tools[0].type"),
        "Field required",
    ),
    (
        77,
        Chat,
        chat!(r#""tools":[{"type":"custom","function":{"name":"f"}}]"#),
        UNSUPPORTED,
        Some("tools[0].type"),
        "no function",
    ),
    (
        77,
        Chat,
        chat!(r#""tools":[{"type":"function","function":{"name":"f","parameters":{"type":"string"}}}]"#),
        INVALID,
        Some("tools[0].function.parameters"),
        "schema of an object",
    ),
    (
        77,
        Chat,
        chat!(
            r#""tools":[{"type":"function","function":{"name":"f","parameters":{"properties":{"a":{"type":"x"}}}}}]"#
        ),
        INVALID,
        Some("tools[0].function.parameters"),
        "could not understand",
    ),
    (78, Chat, chat!(r#""tool_choice":"required""#), INVALID, Some("tool_choice"), "needs tools"),
    (
        78,
        Chat,
        chat!(r#""tool_choice":{"type":"function","function":{"name":"f"}}"#),
        INVALID,
        Some("tool_choice"),
        "needs tools",
    ),
    (
        78,
        Chat,
        chat!(
            r#""tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","function":{"name":"g"}}"#
        ),
        INVALID,
        Some("tool_choice"),
        "unknown function: g",
    ),
    (78, Chat, chat!(r#""tool_choice":"maybe""#), INVALID, Some("tool_choice"), "'maybe'"),
    (78, Chat, chat!(r#""tool_choice":5"#), TYPE, Some("tool_choice"), "a word"),
    (79, Chat, chat!(r#""parallel_tool_calls":"no""#), TYPE, Some("parallel_tool_calls"), "boolean"),
    (
        80,
        Chat,
        chat!(r#""tools":[{"type":"function","function":{"name":"f"}}],"functions":[{"name":"f"}]"#),
        INVALID,
        Some("functions"),
        "exclude",
    ),
    (
        80,
        Chat,
        chat!(r#""functions":[{"name":"f"}],"function_call":"required""#),
        INVALID,
        Some("function_call"),
        "'required'",
    ),
    (
        94,
        Chat,
        chat!(r#""reasoning_effort":"low","thinking":{"type":"enabled"}"#),
        INVALID,
        Some("thinking"),
        "exclude",
    ),
    (
        94,
        Chat,
        chat!(r#""thinking":{"type":"enabled","budget_tokens":10}"#),
        INVALID,
        Some("thinking.budget_tokens"),
        "at least 1024",
    ),
    (
        94,
        Chat,
        chat!(r#""reasoning_effort":"very""#),
        INVALID,
        Some("reasoning_effort"),
        "Invalid reasoning effort: very",
    ),
    (94, Chat, chat!(r#""reasoning_effort":-1"#), INVALID, Some("reasoning_effort"), "effort: -1"),
    (94, Chat, chat!(r#""reasoning_effort":[]"#), TYPE, Some("reasoning_effort"), "a word"),
];

#[tokio::test]
async fn what_is_too_large_to_compile_is_refused_as_such() {
    let client = Client::new(); // 73
    let values = serde_json::json!((0..10_001).collect::<Vec<_>>());
    let long = format!("({})", "a|".repeat(10_000));
    for field in [format!(r#""guided_json":{{"enum":{values}}}"#), format!(r#""guided_regex":"{long}""#)] {
        let body = format!(r#"{{"model":"tiny","prompt":"hi",{field}}}"#);
        let answer = client.complete(body).await;
        expect(&answer, 400, "invalid_request_error", "schema_too_complex", "");
    }
}
