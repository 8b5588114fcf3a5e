//! Bad input: each gets its status and its envelope. The numbers are those of the contract's list of edge cases.

use axum::{body::Body, extract::Request};
use http::Method;
use serde_json::{Value, json};

use super::{Answer, Client, Step, done, post};
use crate::{
    config::{Config, UnknownFields},
    engine::StartError,
    generation::Reason,
    http::auth::Keys,
};

/// Which endpoint.
#[derive(Clone, Copy, Debug)]
enum At {
    Chat,
    Complete,
}
use At::{Chat, Complete};

/// Number, endpoint, body, and of the 400: code, param, a part of the message.
type Case = (u32, At, &'static str, &'static str, Option<&'static str>, &'static str);

const INVALID: &str = "invalid_value";
const TYPE: &str = "invalid_type";
const MISSING: &str = "missing_required_parameter";
const UNSUPPORTED: &str = "unsupported_parameter";
const CONTEXT: &str = "context_length_exceeded";

/// `{"model":"tiny",…}` with a good prompt or message, and these fields.
macro_rules! with {
    ($fields:literal) => {
        concat!(r#"{"model":"tiny","prompt":"hi","#, $fields, "}")
    };
}
macro_rules! chat {
    ($fields:literal) => {
        concat!(r#"{"model":"tiny","messages":[{"role":"user","content":"hi"}],"#, $fields, "}")
    };
}
macro_rules! prompt {
    ($prompt:literal) => {
        concat!(r#"{"model":"tiny","prompt":"#, $prompt, "}")
    };
}
macro_rules! messages {
    ($messages:literal) => {
        concat!(r#"{"model":"tiny","messages":"#, $messages, "}")
    };
}

const BODY: &[Case] = &[
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

const MODEL: &[Case] = &[
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

const MESSAGES: &[Case] = &[
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

const PROMPTS: &[Case] = &[
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

const NUMBERS: &[Case] = &[
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

const REST: &[Case] = &[
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

/// The envelope of an error: all keys there, the id in body and headers.
fn envelope(answer: &Answer) -> Value {
    let body = answer.json();
    let keys: Vec<_> = body["error"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["object", "type", "code", "message", "param"]);
    assert_eq!(body["error"]["object"], "error");
    assert_eq!(body["request_id"], answer.header("x-request-id").unwrap());
    assert_eq!(answer.header("request-id"), answer.header("x-request-id"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    body["error"].clone()
}

fn expect(answer: &Answer, status: u16, kind: &str, code: &str, message: &str) {
    let error = envelope(answer);
    assert_eq!(answer.status, status, "{error}");
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some(kind), Some(code)), "{error}");
    assert!(error["message"].as_str().unwrap().contains(message), "{error}");
}

#[tokio::test]
async fn every_bad_body_gets_its_400() {
    let client = Client::new();
    for (number, at, body, code, param, message) in
        [BODY, MODEL, MESSAGES, PROMPTS, NUMBERS, REST].into_iter().flatten()
    {
        let answer = match at {
            Chat => client.chat(*body).await,
            Complete => client.complete(*body).await,
        };
        println!("{number} {body}");
        expect(&answer, 400, "invalid_request_error", code, message);
        assert_eq!(envelope(&answer)["param"], json!(param), "{number} {body}");
    }
    assert_eq!(client.engine.asked.lock().unwrap().len(), 0, "nothing of this reached the engine");
}

#[tokio::test]
async fn odd_but_good_bodies_are_served() {
    let client = Client::new();
    for (number, at, body) in [
        (5, Complete, r#"{"model":"nope","prompt":5,"model":"tiny","prompt":"hi"}"#),
        (8, Complete, concat!("\u{feff}", r#"{"model":"tiny","prompt":"hi"}"#)),
        (40, Chat, messages!(r#"[{"role":"user","content":""}]"#)),
        (42, Chat, messages!(r#"[{"role":"user","content":"a"},{"role":"assistant","content":null}]"#)),
        (
            43,
            Chat,
            messages!(
                r#"[{"role":"user","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]}]"#
            ),
        ),
        (46, Chat, messages!(r#"[{"role":"assistant","content":"a"},{"role":"assistant","content":"b"}]"#)),
        (47, Chat, messages!(r#"[{"role":"system","content":"only"}]"#)),
        (
            48,
            Chat,
            messages!(
                r#"[{"role":"developer","content":"d","name":"n"},{"role":"assistant","content":"a","refusal":null,"annotations":[],"audio":null,"function_call":null,"tool_calls":null,"reasoning_content":null,"reasoning":"r","parsed":null},{"role":"user","content":"x"}]"#
            ),
        ),
        (50, Chat, messages!(r#"[{"role":"user","content":"\u0000\u0001"}]"#)),
        (58, Complete, with!(r#""max_tokens":10.0"#)),
        (62, Complete, with!(r#""top_k":-1"#)),
        (66, Complete, with!(r#""seed":-1"#)),
        (67, Chat, chat!(r#""logprobs":false,"top_logprobs":0"#)),
        (69, Complete, with!(r#""best_of":1,"suffix":null"#)),
        (70, Complete, with!(r#""stop":[]"#)),
        (76, Chat, chat!(r#""tools":[]"#)),
        (78, Chat, chat!(r#""tool_choice":"none","parallel_tool_calls":true"#)),
        (78, Chat, chat!(r#""tool_choice":null"#)),
        (81, Chat, chat!(r#""stream":null"#)),
        (
            93,
            Chat,
            chat!(
                r#""store":false,"modalities":["text"],"frequency_penalty":0,"logit_bias":{},"service_tier":"auto","verbosity":"low","prompt_cache_key":"k","metadata":{"a":"b"},"user":"u","response_format":{"type":"text"},"audio":null"#
            ),
        ),
    ] {
        let answer = match at {
            Chat => client.chat(body).await,
            Complete => client.complete(body).await,
        };
        assert_eq!(answer.status, 200, "{number}: {}", answer.body);
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_are_located() {
    let client = Client::new();
    let answer = client.complete(&b"{\"model\":\"\xff\"}"[..]).await; // 7
    expect(&answer, 400, "invalid_request_error", "invalid_utf8", "byte 10");
    let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect(); // 8
    expect(&client.complete(utf16).await, 400, "invalid_request_error", "invalid_utf8", "byte 0");
    let deep = format!(r#"{{"model":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000)); // 6
    expect(&client.complete(deep).await, 400, "invalid_request_error", "json_too_deep", "64");
}

#[tokio::test]
async fn lone_surrogates_become_replacement_characters() {
    let client = Client::new();
    let answer = client.complete(prompt!(r#""a\ud83d""#)).await; // 7
    assert_eq!(answer.status, 200);
    assert_eq!(client.engine.asked().prompts[0].tokens, [97, 0xef, 0xbf, 0xbd]);
}

#[tokio::test]
async fn bodies_are_bounded_with_and_without_a_length() {
    let client = Client::with(Config { body_limit: 100, ..Config::default() });
    let large = format!(r#"{{"model":"{}"}}"#, "x".repeat(100));
    let known = client.complete(large.clone()).await; // 9
    expect(&known, 413, "invalid_request_error", "payload_too_large", "Payload Too Large");
    let chunks = large.into_bytes().into_iter().map(|byte| Ok::<_, std::io::Error>(vec![byte]));
    let chunked = client.complete(Body::from_stream(futures::stream::iter(chunks))).await;
    expect(&chunked, 413, "invalid_request_error", "payload_too_large", "Payload Too Large");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_stall_or_trickle_are_given_up() {
    let client = Client::new();
    let stall = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>()); // 10
    expect(&client.complete(stall).await, 408, "invalid_request_error", "request_timeout", "in time");
    let trickle = futures::stream::unfold((), async |()| {
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        Some((Ok::<_, std::io::Error>(b"{".to_vec()), ()))
    });
    let answer = client.complete(Body::from_stream(trickle)).await; // 11
    expect(&answer, 408, "invalid_request_error", "request_timeout", "in time");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test]
async fn only_json_is_read_however_it_is_labelled() {
    let client = Client::new();
    for (label, status) in [
        (None, 200), // 12
        (Some("application/json; charset=utf-8"), 200),
        (Some("application/json; charset=\"UTF-8\""), 200),
        (Some("application/x-www-form-urlencoded"), 200),
        (Some("text/plain;charset=UTF-8"), 200),
        (Some("application/vnd.api+json"), 200),
        (Some("application/json; charset=latin1"), 415),
        (Some("multipart/form-data; boundary=x"), 415),
        (Some("application/xml"), 415),
    ] {
        let mut request = post("/v1/completions", prompt!(r#""hi""#));
        request.headers_mut().remove("content-type");
        request.headers_mut().extend(label.map(|label| (http::header::CONTENT_TYPE, label.parse().unwrap())));
        assert_eq!(client.send(request).await.status, status, "{label:?}");
    }
    let mut form = post("/v1/completions", "model=tiny&prompt=hi");
    form.headers_mut().insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
    expect(&client.send(form).await, 415, "invalid_request_error", "unsupported_media_type", "json");
    let mut zipped = post("/v1/completions", "x"); // 13
    zipped.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    expect(&client.send(zipped).await, 415, "invalid_request_error", "unsupported_media_type", "gzip");
}

#[tokio::test]
async fn methods_and_paths_that_are_not_there() {
    let client = Client::new();
    for (method, path, allow) in [
        (Method::GET, "/v1/chat/completions", "POST"), // 16
        (Method::TRACE, "/v1/completions", "POST"),
        (Method::POST, "/v1/models", "GET,HEAD"),
        (Method::DELETE, "/v1/models/tiny", "GET,HEAD"), // 98
    ] {
        let answer =
            client.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await;
        expect(&answer, 405, "invalid_request_error", "method_not_allowed", "Method not allowed");
        assert_eq!(answer.header("allow"), Some(allow));
    }
    let missing = client.get("/v1/nothing?x=1").await; // 20
    expect(&missing, 404, "error", "NOT_FOUND", "Path not found: /v1/nothing");
    expect(&client.get("/v1/embeddings").await, 404, "error", "NOT_FOUND", "Path not found: /v1/embeddings");
    for path in ["/v1/%2e%2e/models", "/v1/models/%00"] {
        expect(&client.get(path).await, 400, "invalid_request_error", "invalid_path", "malformed"); // 21
    }
}

#[tokio::test]
async fn head_and_preflight_need_no_body_and_no_key() {
    let client = Client::with(Config { keys: Keys::new(["sesame"]), ..Config::default() });
    let mut head = Request::head("/v1/models").body(Body::empty()).unwrap(); // 17
    head.headers_mut().insert("authorization", "Bearer sesame".parse().unwrap());
    let answer = client.send(head).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""));
    assert_eq!(answer.header("content-type"), Some("application/json"));

    let preflight = Request::options("/v1/chat/completions") // 18
        .header("origin", "https://page.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization, x-stainless-os");
    let answer = client.send(preflight.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://page.example"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("authorization, x-stainless-os"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET, POST, DELETE, OPTIONS"));
}

#[tokio::test]
async fn keys_are_asked_for_before_the_body() {
    let client = Client::with(Config { keys: Keys::new(["sesame"]), ..Config::default() });
    for (header, message) in [
        (None, "No API key"), // 26
        (Some("Bearer wrong"), "The API key you provided is invalid."),
        (Some("Basic sesame"), "The API key you provided is invalid."), // 27
        (Some("Bearer "), "No API key"),
    ] {
        let mut request = post("/v1/completions", "not even JSON");
        let value = header.map(|value| (http::header::AUTHORIZATION, value.parse().unwrap()));
        request.headers_mut().extend(value);
        let answer = client.send(request).await;
        expect(&answer, 401, "error", "UNAUTHORIZED", message);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    let mut request = post("/v1/completions", prompt!(r#""hi""#));
    request.headers_mut().insert("authorization", "bearer  sesame".parse().unwrap());
    assert_eq!(client.send(request).await.status, 200);
    assert_ne!(client.engine.asked().tenant, "anonymous");
    assert_eq!(client.get("/v1/models").await.status, 401);
    assert_eq!(client.get("/health").await.status, 200);
}

#[tokio::test]
async fn models_that_are_not_there_or_not_yet() {
    let client = Client::new();
    for model in ["nope", "accounts/other/models/tiny", "accounts/volley/models/nope", &"x".repeat(5000)] {
        let answer = client.complete(json!({"model": model, "prompt": "hi"}).to_string()).await; // 31, 28
        expect(&answer, 404, "error", "NOT_FOUND", "Model not found, inaccessible, and/or not deployed");
        assert_eq!(envelope(&answer)["param"], "model");
    }
    let answer = client.complete(r#"{"model":"loading","prompt":"hi"}"#).await; // 33
    expect(&answer, 503, "error", "DEPLOYMENT_SCALING_UP", "scaling up");
    assert_eq!(answer.header("retry-after"), Some("5"));
}

#[tokio::test]
async fn prompts_beyond_the_window_are_told_in_everyones_words() {
    let client = Client::new();
    let prompt = json!({"model": "tiny", "prompt": "a".repeat(4096)}); // 56
    let answer = client.complete(prompt.to_string()).await;
    let message = "The prompt is too long: 4096, model maximum context length: 4096. This model's maximum context \
                   length is 4096 tokens. However, your prompt resulted in 4096 tokens. Please reduce the length of \
                   the prompt.";
    expect(&answer, 400, "invalid_request_error", CONTEXT, message);
    assert_eq!(envelope(&answer)["param"], "prompt");

    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "a".repeat(4096)}]});
    let answer = client.chat(chat.to_string()).await;
    expect(&answer, 400, "invalid_request_error", CONTEXT, "your messages resulted in");
    assert_eq!(envelope(&answer)["param"], "messages");
}

#[tokio::test]
async fn what_the_cluster_refuses_keeps_its_meaning() {
    let client = Client::new();
    let later = std::time::Duration::from_millis(2500);
    for (error, status, code, retry) in [
        (
            StartError::Overloaded { message: "queue".into(), retry_after: later },
            503,
            "OVERLOADED",
            Some("2"),
        ), // 86
        (
            StartError::Unavailable { message: "none".into(), retry_after: later },
            503,
            "UNAVAILABLE",
            Some("2"),
        ), // 85
        (StartError::TooLarge("too large".into()), 400, CONTEXT, None),
        (StartError::Deadline, 504, "DEADLINE_EXCEEDED", None),
        (StartError::Internal("x".into()), 500, "internal_error", None),
    ] {
        client.engine.will_refuse(error.clone());
        let answer = client.chat(chat!(r#""stream":true"#)).await;
        assert_eq!(answer.status, status, "{error}");
        assert_eq!(envelope(&answer)["code"], code);
        assert_eq!(answer.header("retry-after"), retry);
    }
}

#[tokio::test]
async fn unknown_fields_are_as_strict_as_the_server_says() {
    for unknown_fields in [UnknownFields::Warn, UnknownFields::Ignore] {
        let client = Client::with(Config { unknown_fields, ..Config::default() });
        assert_eq!(client.complete(with!(r#""x":1"#)).await.status, 200);
        let answer = client.complete(with!(r#""suffix":"x""#)).await;
        assert_eq!(answer.status, 400, "a known field without its effect is refused even so");
    }
}

#[tokio::test]
async fn a_client_keeps_its_request_id() {
    let client = Client::new();
    let asked =
        |id: &str| Request::get("/v1/nothing").header("x-request-id", id).body(Body::empty()).unwrap();
    assert_eq!(client.send(asked("mine-1")).await.header("x-request-id"), Some("mine-1"));
    for bad in [&"x".repeat(129), "with space", ""] {
        let answer = client.send(asked(bad)).await;
        assert_eq!(answer.header("x-request-id").unwrap().len(), 36);
    }
}

#[tokio::test]
async fn output_that_ends_early_is_an_error_and_not_a_short_answer() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![done(0, "half", Reason::Stop, 1)])]);
    let answer = client.complete(with!(r#""n":2"#)).await;
    expect(&answer, 500, "server_error", "internal_error", "early");
}

#[tokio::test]
async fn a_panic_takes_only_its_own_request() {
    let client = Client::new();
    let answer = client.complete(r#"{"model":"poison","prompt":"hi"}"#).await;
    expect(&answer, 500, "server_error", "internal_error", "reported");
    assert_eq!(client.complete(prompt!(r#""hi""#)).await.status, 200);
}
