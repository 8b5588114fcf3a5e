//! Bodies that are refused, and with which words.

use At::{Chat, Complete};

/// Which endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    Chat,
    Complete,
}

/// Number, endpoint, body, and of the 400: code, param, a part of the message.
pub(super) type Case = (u32, At, &'static str, &'static str, Option<&'static str>, &'static str);

const INVALID: &str = "invalid_value";
const TYPE: &str = "invalid_type";
const MISSING: &str = "missing_required_parameter";
const UNSUPPORTED: &str = "unsupported_parameter";
pub(super) const CONTEXT: &str = "context_length_exceeded";

pub(super) const BODY: &[Case] = &[
    (1, Chat, "", "invalid_json", None, "Request body is empty; expected a JSON object"),
    (1, Complete, " \n", "invalid_json", None, "Request body is empty"),
    (2, Chat, r#"{"model": }"#, "invalid_json", None, "line 1 column 11"),
    (3, Chat, "[1]", TYPE, None, "got a list"),
    (3, Chat, "\"x\"", TYPE, None, "got a string"),
    (3, Chat, "5", TYPE, None, "got a number"),
    (3, Chat, "null", TYPE, None, "got null"),
    (4, Complete, with!(r#""temperature":NaN"#), "invalid_json", None, "line 1"),
    (4, Complete, with!(r#""temperature":Infinity"#), "invalid_json", None, "line 1"),
    (4, Complete, with!(r#""temperature":1e999"#), "invalid_json", None, "out of range"),
];

pub(super) const MODEL: &[Case] = &[
    (30, Complete, r#"{"prompt":"hi"}"#, MISSING, Some("model"), "Field required"),
    (30, Complete, r#"{"model":"","prompt":"hi"}"#, MISSING, Some("model"), "Field required"),
    (30, Complete, r#"{"model":null,"prompt":"hi"}"#, MISSING, Some("model"), "Field required"),
    (32, Complete, r#"{"model":5,"prompt":"hi"}"#, TYPE, Some("model"), "string"),
    (
        34,
        Chat,
        r#"{"model":"plain","messages":[{"role":"user","content":"hi"}]}"#,
        INVALID,
        Some("model"),
        "template",
    ),
];

pub(super) const MESSAGES: &[Case] = &[
    (36, Chat, r#"{"model":"tiny"}"#, MISSING, Some("messages"), "Field required"),
    (36, Chat, messages!("[]"), INVALID, Some("messages"), "must contain at least one message"),
    (37, Chat, messages!(r#""hi""#), TYPE, Some("messages"), "messages"),
    (37, Chat, messages!(r#"{"role":"user"}"#), TYPE, Some("messages"), "messages"),
    (38, Chat, messages!(r#"["hi"]"#), TYPE, Some("messages[0]"), "string"),
    (38, Chat, messages!(r#"[{"content":"hi"}]"#), MISSING, Some("messages[0].role"), "Field required"),
    (38, Chat, messages!(r#"[{"role":"bot","content":"hi"}]"#), INVALID, Some("messages[0].role"), "bot"),
    (39, Chat, messages!(r#"[{"role":"user","content":5}]"#), TYPE, Some("messages[0].content"), "parts"),
    (39, Chat, messages!(r#"[{"role":"user","content":true}]"#), TYPE, Some("messages[0].content"), "parts"),
    (39, Chat, messages!(r#"[{"role":"user","content":{}}]"#), TYPE, Some("messages[0].content"), "parts"),
    (41, Chat, messages!(r#"[{"role":"user"}]"#), MISSING, Some("messages[0].content"), "Field required"),
    (
        41,
        Chat,
        messages!(r#"[{"role":"user","content":null}]"#),
        MISSING,
        Some("messages[0].content"),
        "Field",
    ),
    (43, Chat, messages!(r#"[{"role":"user","content":[]}]"#), INVALID, Some("messages[0].content"), "part"),
    (
        43,
        Chat,
        messages!(r#"[{"role":"user","content":[{"type":"smell","text":"x"}]}]"#),
        INVALID,
        Some("messages[0].content[0].type"),
        "'smell'",
    ),
    (
        43,
        Chat,
        messages!(
            r#"[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"u"}}]}]"#
        ),
        INVALID,
        Some("messages[0].content[1].type"),
        "text only",
    ),
    (
        43,
        Chat,
        messages!(r#"[{"role":"user","content":[{"type":"text"}]}]"#),
        MISSING,
        Some("messages[0].content[0].text"),
        "Field required",
    ),
    (
        44,
        Chat,
        messages!(r#"[{"role":"user","content":"a"},{"role":"tool","content":"5"}]"#),
        MISSING,
        Some("messages[1].tool_call_id"),
        "Field required",
    ),
    (
        48,
        Chat,
        messages!(r#"[{"role":"user","content":"a"},{"role":"user","content":"b","id":"x"}]"#),
        "unknown_parameter",
        Some("messages[1].id"),
        "Extra inputs are not permitted, field: 'messages[1].id', value: \"x\"",
    ),
];

pub(super) const PROMPTS: &[Case] = &[
    (52, Complete, r#"{"model":"tiny"}"#, MISSING, Some("prompt"), "Field required"),
    (52, Complete, prompt!("null"), MISSING, Some("prompt"), "Field required"),
    (52, Complete, prompt!(r#""""#), INVALID, Some("prompt"), "no tokens"),
    (53, Complete, prompt!("[]"), INVALID, Some("prompt"), "must not be empty"),
    (53, Complete, prompt!("[[]]"), INVALID, Some("prompt"), "no tokens"),
    (53, Complete, prompt!(r#"[1,"a"]"#), TYPE, Some("prompt"), "mix"),
    (53, Complete, prompt!(r#"["a",[1]]"#), TYPE, Some("prompt"), "mix"),
    (53, Complete, prompt!("true"), TYPE, Some("prompt"), "prompt"),
    (54, Complete, prompt!("[1,70000]"), INVALID, Some("prompt"), "70000"),
    (54, Complete, prompt!("[-1]"), INVALID, Some("prompt"), "-1"),
    (54, Complete, prompt!("[1,2.5]"), INVALID, Some("prompt[1]"), "2.5"),
    (55, Complete, r#"{"model":"tiny","prompt":["a","b","c"],"n":128}"#, INVALID, Some("n"), "at most 256"),
];

pub(super) const NUMBERS: &[Case] = &[
    (
        57,
        Complete,
        with!(r#""max_tokens":4095,"context_length_exceeded_behavior":"error""#),
        CONTEXT,
        Some("prompt"),
        "4097 tokens",
    ),
    (
        57,
        Complete,
        with!(r#""context_length_exceeded_behavior":"explode""#),
        INVALID,
        Some("context_length_exceeded_behavior"),
        "explode",
    ),
    (58, Complete, with!(r#""max_tokens":-1"#), INVALID, Some("max_tokens"), "-1"),
    (58, Complete, with!(r#""max_tokens":"10""#), TYPE, Some("max_tokens"), "integer"),
    (58, Complete, with!(r#""max_tokens":10.5"#), INVALID, Some("max_tokens"), "10.5"),
    (58, Complete, with!(r#""max_tokens":true"#), TYPE, Some("max_tokens"), "integer"),
    (
        59,
        Complete,
        with!(r#""max_tokens":1,"max_completion_tokens":1"#),
        INVALID,
        Some("max_completion_tokens"),
        "exclude",
    ),
    (
        60,
        Complete,
        with!(r#""temperature":-0.1"#),
        INVALID,
        Some("temperature"),
        "temperature must be between 0 and 2",
    ),
    (
        60,
        Chat,
        chat!(r#""temperature":2.1"#),
        INVALID,
        Some("temperature"),
        "temperature must be between 0 and 2",
    ),
    (60, Chat, chat!(r#""temperature":"1""#), TYPE, Some("temperature"), "a number"),
    (61, Complete, with!(r#""top_p":-1"#), INVALID, Some("top_p"), "between 0 and 1"),
    (61, Complete, with!(r#""top_p":1.1"#), INVALID, Some("top_p"), "between 0 and 1"),
    (62, Complete, with!(r#""top_k":-2"#), INVALID, Some("top_k"), "between 0 and 100"),
    (62, Complete, with!(r#""top_k":101"#), INVALID, Some("top_k"), "between 0 and 100"),
    (63, Complete, with!(r#""min_p":1.5"#), INVALID, Some("min_p"), "between 0 and 1"),
    (63, Complete, with!(r#""typical_p":0.5"#), UNSUPPORTED, Some("typical_p"), "typical_p"),
    (
        64,
        Complete,
        with!(r#""repetition_penalty":1.5"#),
        UNSUPPORTED,
        Some("repetition_penalty"),
        "not supported",
    ),
    (65, Complete, with!(r#""n":0"#), INVALID, Some("n"), "between 1 and 128"),
    (65, Complete, with!(r#""n":-1"#), INVALID, Some("n"), "between 1 and 128"),
    (65, Complete, with!(r#""n":129"#), INVALID, Some("n"), "between 1 and 128"),
    (65, Complete, with!(r#""n":"5""#), TYPE, Some("n"), "integer"),
    (66, Complete, with!(r#""seed":9223372036854775808"#), INVALID, Some("seed"), "9223372036854775808"),
    (
        67,
        Complete,
        with!(r#""logprobs":6"#),
        INVALID,
        Some("logprobs"),
        "logprobs must be between 0 and 5: 6",
    ),
    (
        67,
        Chat,
        chat!(r#""logprobs":true,"top_logprobs":21"#),
        INVALID,
        Some("top_logprobs"),
        "between 0 and 20: 21",
    ),
    (67, Chat, chat!(r#""top_logprobs":3"#), INVALID, Some("top_logprobs"), "needs logprobs"),
    (
        67,
        Chat,
        chat!(r#""logprobs":false,"top_logprobs":3"#),
        INVALID,
        Some("top_logprobs"),
        "needs logprobs",
    ),
    (67, Chat, chat!(r#""logprobs":"yes""#), TYPE, Some("logprobs"), "boolean"),
    (68, Complete, with!(r#""logit_bias":{"5":10}"#), UNSUPPORTED, Some("logit_bias"), "not supported"),
    (69, Complete, with!(r#""best_of":2,"n":1"#), UNSUPPORTED, Some("best_of"), "not supported"),
    (69, Complete, with!(r#""suffix":"x""#), UNSUPPORTED, Some("suffix"), "not supported"),
];

pub(super) const REST: &[Case] = &[
    (70, Complete, with!(r#""stop":["a","b","c","d","e"]"#), INVALID, Some("stop"), "at most 4"),
    (70, Complete, with!(r#""stop":"""#), INVALID, Some("stop"), "1 to 1024"),
    (70, Complete, with!(r#""stop":["a",""]"#), INVALID, Some("stop"), "1 to 1024"),
    (70, Complete, with!(r#""stop":5"#), TYPE, Some("stop"), "a string"),
    (70, Complete, with!(r#""stop":["a",5]"#), TYPE, Some("stop[1]"), "string"),
    (
        73,
        Chat,
        chat!(r#""response_format":{"type":"json_object"}"#),
        UNSUPPORTED,
        Some("response_format"),
        "not supported",
    ),
    (
        77,
        Chat,
        chat!(r#""tools":[{"type":"function","function":{"name":"f"}}]"#),
        UNSUPPORTED,
        Some("tools"),
        "tools",
    ),
    (78, Chat, chat!(r#""tool_choice":"required""#), UNSUPPORTED, Some("tool_choice"), "tool_choice"),
    (81, Chat, chat!(r#""stream":"true""#), TYPE, Some("stream"), "boolean"),
    (81, Chat, chat!(r#""stream":1"#), TYPE, Some("stream"), "boolean"),
    (
        82,
        Chat,
        chat!(r#""stream_options":{"include_usage":true}"#),
        INVALID,
        Some("stream_options"),
        "stream: true",
    ),
    (
        82,
        Chat,
        chat!(r#""stream":true,"stream_options":{"x":1}"#),
        "unknown_parameter",
        Some("stream_options.x"),
        "Extra inputs are not permitted, field: 'stream_options.x', value: 1",
    ),
    (
        92,
        Chat,
        chat!(r#""x":1"#),
        "unknown_parameter",
        Some("x"),
        "Extra inputs are not permitted, field: 'x', value: 1",
    ),
    (
        92,
        Complete,
        with!(r#""messages":[]"#),
        "unknown_parameter",
        Some("messages"),
        "field: 'messages', value: []",
    ),
    (93, Chat, chat!(r#""modalities":["audio"]"#), UNSUPPORTED, Some("modalities"), "not supported"),
    (93, Chat, chat!(r#""frequency_penalty":0.5"#), UNSUPPORTED, Some("frequency_penalty"), "not supported"),
    (94, Chat, chat!(r#""reasoning_effort":"high""#), UNSUPPORTED, Some("reasoning_effort"), "not supported"),
    (95, Chat, chat!(r#""user":5"#), TYPE, Some("user"), "string"),
    (95, Chat, chat!(r#""metadata":{"a":1}"#), TYPE, Some("metadata.a"), "string"),
    (
        95,
        Chat,
        chat!(
            r#""metadata":{"a":"","b":"","c":"","d":"","e":"","f":"","g":"","h":"","i":"","j":"","k":"","l":"","m":"","n":"","o":"","p":"","q":""}"#
        ),
        INVALID,
        Some("metadata"),
        "16 pairs",
    ),
];
