//! Fields: what they may be, and what is said when they are not.

use serde_json::json;

use super::{
    super::Client,
    cases::{
        At::{Chat, Complete},
        BODY, MESSAGES, MODEL, NUMBERS, PROMPTS, REST,
    },
    envelope, expect,
    formats::{FORMATS, TOOLS},
};
use crate::config::{Config, UnknownFields};

#[tokio::test]
async fn every_bad_body_gets_its_400() {
    let client = Client::new();
    for (number, at, body, code, param, message) in
        [BODY, MODEL, MESSAGES, PROMPTS, NUMBERS, REST, FORMATS, TOOLS].into_iter().flatten()
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
        (61, Complete, with!(r#""top_p":0"#)),
        (63, Complete, with!(r#""typical_p":0"#)),
        (64, Complete, with!(r#""frequency_penalty":-2,"presence_penalty":2,"repetition_penalty":2"#)),
        (64, Complete, with!(r#""mirostat_target":3,"mirostat_lr":0.1"#)),
        (65, Chat, chat!(r#""n":2,"temperature":0"#)),
        (68, Complete, with!(r#""logit_bias":{"5":-100,"257":100.0,"05":1}"#)),
        (69, Complete, with!(r#""best_of":1,"suffix":null"#)),
        (69, Complete, with!(r#""best_of":2,"n":2,"stream":true"#)),
        (70, Complete, with!(r#""stop":[]"#)),
        (
            73,
            Chat,
            chat!(
                r#""response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"},"strict":true}}"#
            ),
        ),
        (73, Chat, chat!(r#""response_format":{"type":"json_schema","json_schema":{"type":"object"}}"#)),
        (
            73,
            Chat,
            chat!(r#""response_format":{"type":"json_schema","json_schema":"{\"type\":\"object\"}"}"#),
        ),
        (73, Complete, with!(r#""response_format":{"type":"json_object"}"#)),
        (74, Chat, chat!(r#""response_format":{"type":"grammar","grammar":"root ::= \"yes\" | \"no\""}"#)),
        (
            75,
            Chat,
            chat!(
                r#""tools":[{"type":"function","function":{"name":"f"}}],"response_format":{"type":"json_object"}"#
            ),
        ),
        (76, Chat, chat!(r#""tools":[]"#)),
        (
            77,
            Chat,
            chat!(
                r#""tools":[{"type":"function","function":{"name":"f","description":null,"parameters":{"properties":{}},"strict":null}}]"#
            ),
        ),
        (78, Chat, chat!(r#""tool_choice":"none","parallel_tool_calls":true"#)),
        (78, Chat, chat!(r#""tool_choice":null"#)),
        (78, Chat, chat!(r#""tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"any""#)),
        (
            78,
            Chat,
            chat!(
                r#""tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","name":"f"}"#
            ),
        ),
        (80, Chat, chat!(r#""functions":[{"name":"f"}],"function_call":{"name":"f"}"#)),
        (80, Chat, chat!(r#""functions":[],"function_call":"none""#)),
        (94, Chat, chat!(r#""reasoning_effort":"none""#)),
        (94, Chat, chat!(r#""reasoning_effort":true,"reasoning_history":"preserved""#)),
        (94, Complete, with!(r#""thinking":{"type":"enabled","budget_tokens":1024}"#)),
        (81, Chat, chat!(r#""stream":null"#)),
        (
            93,
            Chat,
            chat!(
                r#""store":false,"modalities":["text"],"frequency_penalty":0,"logit_bias":{},"moderation":null,"service_tier":"auto","verbosity":"low","prompt_cache_key":"k","metadata":{"a":"b"},"user":"u","response_format":{"type":"text"},"audio":null"#
            ),
        ),
        (93, Complete, with!(r#""speculation":"hi","prediction":{"type":"content","content":"hi"}"#)),
        (
            93,
            Chat,
            chat!(
                r#""speculation":[1,2],"prediction":{"type":"content","content":[{"type":"text","text":"x"}]}"#
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
async fn a_thousand_biases_are_enough() {
    let client = Client::new(); // 68
    let body = |count: usize| {
        // Token 7 in ever more digits: the map has so many entries, whatever they come to.
        let biases: serde_json::Map<_, _> = (1..=count).map(|i| (format!("{:0i$}", 7), json!(1))).collect();
        json!({"model": "tiny", "prompt": "hi", "logit_bias": biases}).to_string()
    };
    assert_eq!(client.complete(body(1024)).await.status, 200);
    assert_eq!(*client.engine.asked().sampling.bias, [(7, 1.0)]);
    let answer = client.complete(body(1025)).await;
    expect(&answer, 400, "invalid_request_error", "invalid_value", "at most 1024 entries: 1025");
}

#[tokio::test]
async fn lone_surrogates_become_replacement_characters() {
    let client = Client::new();
    let answer = client.complete(prompt!(r#""a\ud83d""#)).await; // 7
    assert_eq!(answer.status, 200);
    assert_eq!(client.engine.asked().prompts[0].tokens, [97, 0xef, 0xbf, 0xbd]);
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
async fn schemas_may_be_nested_deeper_than_other_fields() {
    let client = Client::new(); // 6
    let schema = (0..80).fold("{}".to_owned(), |inner, _| format!("{{\"items\":{inner}}}"));
    let body = |field: &str| {
        format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"hi"}}],"{field}":{schema}}}"#)
    };
    assert_eq!(client.chat(body("guided_json")).await.status, 200);
    expect(&client.chat(body("metadata")).await, 400, "invalid_request_error", "json_too_deep", "64 levels");
}
