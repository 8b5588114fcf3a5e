//! Streams, byte for byte.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Client, Step, done, end, events, next_event, post, text, token};
use crate::{
    engine::StreamError,
    generation::{Delta, Reason},
};

fn chat(fields: Value) -> String {
    let mut body =
        json!({"model": "m/tiny", "messages": [{"role": "user", "content": "hi"}], "stream": true});
    body["model"] = "fireworks/tiny".into();
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

fn completion(fields: Value) -> String {
    let mut body = json!({"model": "tiny", "prompt": "hi", "stream": true});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

const USAGE: &str = r#"{"prompt_tokens":40,"total_tokens":43,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}"#;

/// A chat chunk's line.
fn chunk(choices: &str, usage: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-C\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"fireworks/tiny\",\
         \"system_fingerprint\":\"fp_F\",\"choices\":[{choices}],\"usage\":{usage}}}\n\n"
    )
}

fn hello() -> [Step; 3] {
    [
        Step::Batch(vec![text(0, "Hel")]),
        Step::Batch(vec![text(0, "")]),
        Step::Batch(vec![done(0, "lo", Reason::Stop, 3)]),
    ]
}

#[tokio::test]
async fn a_chat_streams_to_the_byte_for_every_row_of_the_usage_table() {
    let role = r#"{"index":0,"delta":{"role":"assistant"},"logprobs":null,"finish_reason":null}"#;
    let hel = r#"{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}"#;
    let lo = r#"{"index":0,"delta":{"content":"lo"},"logprobs":null,"finish_reason":null}"#;
    let finish = r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#;
    let client = Client::new();
    for (options, on_finish, own) in [
        (json!({}), USAGE, false),
        (json!({"stream_options": null}), USAGE, false),
        (json!({"stream_options": {"include_usage": true}}), "null", true),
        (json!({"stream_options": {"include_usage": false}}), "null", false),
        (json!({"stream_options": {}}), "null", false),
    ] {
        client.engine.will(hello());
        let answer = client.chat(chat(options.clone())).await;
        let mut expected = [role, hel, lo].map(|choice| chunk(choice, "null")).concat();
        expected += &chunk(finish, on_finish);
        if own {
            expected += &chunk("", USAGE);
        }
        expected += "data: [DONE]\n\n";
        assert_eq!(answer.stable(), expected, "{options}");
        assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        assert_eq!(answer.header("x-accel-buffering"), Some("no"));
        assert_eq!(answer.header("fireworks-prompt-tokens"), Some("40"));
    }
}

#[tokio::test]
async fn a_completion_streams_as_the_original_page_shows() {
    let client = Client::new();
    client.engine.will(hello());
    let answer = client.complete(completion(json!({}))).await;
    let chunk = |text: &str, reason: &str, usage: &str| {
        format!(
            "data: {{\"id\":\"cmpl-P\",\"object\":\"text_completion\",\"created\":0,\"model\":\"tiny\",\
             \"system_fingerprint\":\"fp_F\",\"choices\":[{{\"index\":0,\"text\":\"{text}\",\"logprobs\":null,\
             \"finish_reason\":{reason}}}],\"usage\":{usage}}}\n\n"
        )
    };
    let usage = USAGE.replace("40", "2").replace("43", "5");
    let expected = [chunk("Hel", "null", "null"), chunk("lo", "null", "null"), chunk("", "\"stop\"", &usage)];
    assert_eq!(answer.stable(), expected.concat() + "data: [DONE]\n\n");
}

#[tokio::test]
async fn several_choices_open_in_order_and_usage_is_on_the_last_to_finish() {
    let client = Client::new();
    client.engine.will([
        Step::Batch(vec![text(2, "c"), text(0, "a")]),
        Step::Batch(vec![done(2, "", Reason::Stop, 1), text(1, "b")]),
        Step::Batch(vec![done(1, "", Reason::Length, 1), done(0, "", Reason::Stop, 2)]),
    ]);
    let answer = client.chat(chat(json!({"n": 3}))).await;
    let said: Vec<_> = events(&answer.body)
        .iter()
        .map(|event| {
            let choice = &event["choices"][0];
            (
                choice["index"].clone(),
                choice["delta"].to_string(),
                choice["finish_reason"].clone(),
                event["usage"].is_object(),
            )
        })
        .collect();
    let role = r#"{"role":"assistant"}"#.to_owned();
    let content = |text: &str| format!(r#"{{"content":"{text}"}}"#);
    let none = "{}".to_owned();
    assert_eq!(
        said,
        [
            (json!(0), role.clone(), Value::Null, false),
            (json!(1), role.clone(), Value::Null, false),
            (json!(2), role, Value::Null, false),
            (json!(2), content("c"), Value::Null, false),
            (json!(0), content("a"), Value::Null, false),
            (json!(2), none.clone(), json!("stop"), false),
            (json!(1), content("b"), Value::Null, false),
            (json!(1), none.clone(), json!("length"), false),
            (json!(0), none, json!("stop"), true),
        ]
    );
    assert_eq!(events(&answer.body).last().unwrap()["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn what_readers_take_for_line_ends_is_escaped_and_the_rest_is_not() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![done(0, "é\u{85}日\u{2028}🎉\u{2029}\r\n", Reason::Stop, 1)])]);
    let answer = client.complete(completion(json!({}))).await;
    assert!(answer.body.contains(r#""text":"é\u0085日\u2028🎉\u2029\r\n""#), "{}", answer.body);
}

#[tokio::test]
async fn long_content_is_split_below_64_kib_a_line_and_loses_nothing() {
    let client = Client::new();
    let long = "\u{1}é\n日".repeat(40_000);
    let tokens: Vec<_> = (0..3000).map(|at| token(at % 256, &[1; 30], at, Some(-1.0))).collect();
    for logprobs in [json!({}), json!({"logprobs": true, "top_logprobs": 1}), json!({"logprobs": 1})] {
        let delta = Delta { tokens: tokens.clone(), ..done(0, &long, Reason::Stop, 9) };
        client.engine.will([Step::Batch(vec![delta])]);
        let answer = client.chat(chat(logprobs.clone())).await;
        assert!(answer.body.lines().all(|line| line.len() < 64 << 10), "{logprobs}");
        let events = events(&answer.body);
        let pieces = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(pieces.collect::<String>(), long);
        let seen: usize = events
            .iter()
            .map(|event| &event["choices"][0]["logprobs"])
            .filter_map(|logprobs| logprobs["content"].as_array().or(logprobs["tokens"].as_array()))
            .map(Vec::len)
            .sum();
        assert_eq!(seen, if logprobs == json!({}) { 0 } else { 3000 });
    }
}

#[tokio::test]
async fn logprobs_of_held_back_text_come_at_once() {
    let client = Client::new();
    client.engine.will([
        Step::Batch(vec![Delta { tokens: vec![token(7, b"\xe2", 0, Some(-1.0))], ..text(0, "") }]),
        Step::Batch(vec![Delta {
            tokens: vec![token(8, b"\x82\xac", 0, Some(-2.0))],
            ..done(0, "€", Reason::Stop, 2)
        }]),
    ]);
    let answer = client.complete(completion(json!({"logprobs": 0}))).await;
    let seen: Vec<_> = events(&answer.body)
        .iter()
        .map(|event| {
            let choice = &event["choices"][0];
            (choice["text"].clone(), choice["logprobs"]["token_ids"].clone())
        })
        .collect();
    assert_eq!(seen, [(json!(""), json!([7])), (json!("€"), json!([8])), (json!(""), Value::Null)]);
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_by_comments_and_every_third_time_by_an_empty_chunk() {
    let client = Client::new();
    client.engine.will([
        Step::Batch(vec![text(0, "a")]),
        Step::Wait(Duration::from_secs(100)),
        Step::Batch(vec![text(0, "b")]),
        Step::Wait(Duration::from_secs(14)),
        Step::Batch(vec![end(0, Reason::Stop, 2)]),
    ]);
    let start = Instant::now();
    let mut body = client.open(post("/v1/chat/completions", chat(json!({})))).await.into_body();
    let mut seen = Vec::new();
    while let Some(event) = next_event(&mut body).await {
        let what = match events(&event).first() {
            Some(chunk) => chunk["choices"][0]["delta"].to_string(),
            None => event,
        };
        seen.push((start.elapsed().as_secs(), what));
    }
    let comment = ": keep-alive\n\n";
    let expected = [
        (0, r#"{"role":"assistant"}"#),
        (0, r#"{"content":"a"}"#),
        (15, comment),
        (30, comment),
        (45, "{}"),
        (60, comment),
        (75, comment),
        (90, "{}"),
        (100, r#"{"content":"b"}"#),
        (114, "{}"),
        (114, "data: [DONE]\n\n"),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(at, what)| (at, what.to_owned())).collect();
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_fault_is_told_in_an_event_and_the_stream_is_cut() {
    let client = Client::new();
    client
        .engine
        .will([Step::Batch(vec![text(0, "a")]), Step::Fail(StreamError::Lost("worker gone".into()))]);
    let body = client.open(post("/v1/completions", completion(json!({})))).await.into_body();
    let mut frames = body.into_data_stream();
    let mut seen = String::new();
    let end = loop {
        match futures::StreamExt::next(&mut frames).await {
            Some(Ok(bytes)) => seen += std::str::from_utf8(&bytes).unwrap(),
            end => break end,
        }
    };
    assert!(matches!(end, Some(Err(_))), "a clean end would look like a complete answer");
    let error = "data: {\"error\":{\"object\":\"error\",\"type\":\"error\",\"code\":\"UNAVAILABLE\",\
                 \"message\":\"The service is unavailable: worker gone\",\"param\":null}}\n\n";
    assert!(seen.ends_with(error), "{seen}");
    assert!(!seen.contains("[DONE]"));
}

#[tokio::test(start_paused = true)]
async fn streams_are_told_when_the_server_can_wait_no_longer() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![text(0, "a")]), Step::Hang]);
    let mut body = client.open(post("/v1/completions", completion(json!({})))).await.into_body();
    assert!(next_event(&mut body).await.unwrap().contains("\"a\""));
    client.closing.cancel();
    assert!(next_event(&mut body).await.unwrap().contains("shutting down"));
    assert_eq!(next_event(&mut body).await, None);
    assert_eq!(client.engine.cancelled(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_stream() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![text(0, "a")]), Step::Hang]);
    let mut body = client.open(post("/v1/completions", completion(json!({})))).await.into_body();
    next_event(&mut body).await;
    assert_eq!(client.engine.cancelled(), 0);
    drop(body);
    assert_eq!(client.engine.cancelled(), 1);
}
