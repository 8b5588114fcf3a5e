//! Anthropic's API, over HTTP.

use serde_json::{Value, json};

use super::{Answer, Client, Step, done, post, text};
use crate::{
    config::Config,
    engine::{StartError, StreamError},
    generation::{Delta, Finish, Reason},
    http::auth::Keys,
};

async fn ask(client: &Client, fields: Value) -> Answer {
    let mut body = json!({"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    client.send(post("/v1/messages", body.to_string())).await
}

/// The end of a choice by its second stop string.
fn stopped(said: &str) -> Delta {
    let finish = Finish { reason: Reason::Stop, completion_tokens: 3, cached_tokens: 16, stop: Some(1) };
    Delta { finish: Some(finish), ..text(0, said) }
}

#[tokio::test]
async fn an_answer_is_a_message_of_blocks() {
    let client = Client::new();
    client
        .engine
        .will([Step::Batch(vec![text(0, "Hel")]), Step::Batch(vec![done(0, "lo", Reason::Stop, 3)])]);
    let answer = ask(&client, json!({})).await;
    let mut message = answer.json();
    assert!(message["id"].take().as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        message,
        json!({"id": null, "type": "message", "role": "assistant", "model": "tiny",
            "content": [{"type": "text", "text": "Hello", "citations": null}],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": 40, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                "output_tokens": 3}})
    );
    assert_eq!(answer.header("fireworks-prompt-tokens"), Some("40"));
    let asked = client.engine.asked();
    assert_eq!((asked.max_tokens, asked.include_stop), (9, false));
}

#[tokio::test]
async fn why_it_stopped_is_told_in_anthropics_words() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![stopped("a")])]);
    let answer = ask(&client, json!({"stop_sequences": ["x", "END"]})).await.json();
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!("END")));
    assert_eq!(answer["usage"]["input_tokens"], 24);
    assert_eq!(answer["usage"]["cache_read_input_tokens"], 16);
    assert_eq!(client.engine.asked().stop, ["x", "END"]);
    client.engine.will([Step::Batch(vec![done(0, "", Reason::Length, 9)])]);
    let answer = ask(&client, json!({})).await.json();
    assert_eq!((&answer["stop_reason"], &answer["content"]), (&json!("max_tokens"), &json!([])));
}

#[tokio::test]
async fn a_stream_has_its_events_in_order() {
    let client = Client::new();
    let long = "é".repeat(3000);
    client.engine.will([
        Step::Batch(vec![text(0, "Hel")]),
        Step::Batch(vec![text(0, &long)]),
        Step::Batch(vec![stopped("lo")]),
    ]);
    let answer = ask(&client, json!({"stream": true, "stop_sequences": ["x", "END"]})).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let mut said = String::new();
    let mut names = Vec::new();
    for event in answer.body.split_terminator("\n\n") {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        said += data["delta"]["text"].as_str().unwrap_or_default();
        names.push(data);
    }
    let types: Vec<_> = names.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        types,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert_eq!(said, format!("Hel{long}lo"));
    assert_eq!(names[0]["message"]["usage"]["input_tokens"], 40);
    assert_eq!(names[0]["message"]["content"], json!([]));
    assert_eq!(names[7]["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": "END"}));
    assert_eq!(names[7]["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn nothing_said_is_no_block() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![done(0, "", Reason::Stop, 0)])]);
    let answer = ask(&client, json!({"stream": true})).await;
    let data = answer.body.lines().filter_map(|line| line.strip_prefix("event: "));
    assert_eq!(data.collect::<Vec<_>>(), ["message_start", "message_delta", "message_stop"]);
}

#[tokio::test]
async fn blocks_become_the_templates_messages() {
    let client = Client::new();
    let system = json!([{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": " good."}]);
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "d"},
            {"type": "text", "text": "c", "citations": null},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]},
            {"type": "text", "text": "so?"}]},
    ]);
    ask(&client, json!({"system": system, "messages": messages})).await;
    let shown: Vec<u8> = client.engine.asked().prompts[0].tokens.iter().map(|id| *id as u8).collect();
    let shown = String::from_utf8_lossy(&shown).replace(['\0', '\u{1}'], "|");
    assert_eq!(
        shown,
        "|system\nBe good.|\n|user\nab|\n|assistant\nc\n\
         <tool_call>\n{\"name\":\"f\",\"arguments\":{\"x\":1}}\n</tool_call>|\n\
         |user\n<tool_response>\n42\n</tool_response>|\n|user\nso?|\n|assistant\n"
    );
}

#[tokio::test]
async fn tokens_are_counted_without_an_answer() {
    let client = Client::new();
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
    let answer = client.send(post("/v1/messages/count_tokens", body.to_string())).await;
    assert_eq!(answer.json(), json!({"input_tokens": 40}));
}

#[tokio::test]
async fn errors_have_anthropics_envelope_wherever_they_come_from() {
    let client = Client::new();
    let error = |answer: &Answer| {
        let body = answer.json();
        assert_eq!(
            (&body["type"], body["request_id"].as_str()),
            (&json!("error"), answer.header("request-id"))
        );
        let message = body["error"]["message"].as_str().unwrap().to_owned();
        (answer.status.as_u16(), body["error"]["type"].as_str().unwrap().to_owned(), message)
    };
    for (fields, status, kind, message) in [
        (json!({"max_tokens": null}), 400, "invalid_request_error", "'max_tokens'"),
        (json!({"max_tokens": 0}), 400, "invalid_request_error", "at least 1"),
        (json!({"messages": []}), 400, "invalid_request_error", "at least one"),
        (json!({"messages": [{"role": "system", "content": "x"}]}), 400, "invalid_request_error", "system"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
            400,
            "invalid_request_error",
            "text only",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "tool_use", "name": "f"}]}]}),
            400,
            "invalid_request_error",
            "'tool_use' here",
        ),
        (json!({"stop_sequences": [""]}), 400, "invalid_request_error", "stop_sequences"),
        (json!({"bogus": 1}), 400, "invalid_request_error", "Extra inputs are not permitted, field: 'bogus'"),
        (json!({"model": "none"}), 404, "not_found_error", "Model not found"),
        (json!({"model": "loading"}), 503, "overloaded_error", "retry"),
    ] {
        let (got, r#type, said) = error(&ask(&client, fields.clone()).await);
        assert_eq!((got, r#type.as_str()), (status, kind), "{fields}: {said}");
        assert!(said.contains(message), "{said}");
    }
    client.engine.will_refuse(StartError::Deadline);
    assert_eq!(error(&ask(&client, json!({})).await).1, "timeout_error");
    let locked = Client::with(Config { keys: Keys::new(["sesame"]), ..Config::default() });
    assert_eq!(error(&ask(&locked, json!({})).await).1, "authentication_error");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_says_so_in_its_last_event() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![text(0, "a")]), Step::Fail(StreamError::Lost("gone".into()))]);
    let body = json!({"model": "tiny", "max_tokens": 9, "stream": true,
        "messages": [{"role": "user", "content": "hi"}]});
    let mut body = client.open(post("/v1/messages", body.to_string())).await.into_body();
    let mut last = String::new();
    while let Some(event) = super::next_event(&mut body).await {
        last = event;
    }
    assert!(
        last.starts_with("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\""),
        "{last}"
    );
}
