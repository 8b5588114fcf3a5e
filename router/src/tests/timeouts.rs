//! `x-volley-timeout-ms`, over HTTP.

use std::time::{Duration, Instant};

use axum::extract::Request;
use futures::{StreamExt, future::ready};
use http::HeaderValue;
use serde_json::{Value, json};

use super::{Answer, Client, Step, end, post, text};
use crate::{
    engine::{StartError, StreamError},
    generation::{Delta, Reason},
};

/// Every endpoint that generates, and a body for it.
fn endpoints() -> [(&'static str, Value); 5] {
    let messages = json!([{"role": "user", "content": "hi"}]);
    [
        ("/v1/chat/completions", json!({"model": "tiny", "messages": messages})),
        ("/v1/completions", json!({"model": "tiny", "prompt": "hi"})),
        ("/v1/responses", json!({"model": "tiny", "input": "hi"})),
        ("/v1/messages", json!({"model": "tiny", "max_tokens": 9, "messages": messages})),
        ("/v1/embeddings", json!({"model": "bos", "input": "hi"})),
    ]
}

fn asking(path: &str, body: &Value, timeout: &str) -> Request {
    let mut request = post(path, body.to_string());
    request.headers_mut().insert("x-volley-timeout-ms", HeaderValue::from_str(timeout).unwrap());
    request
}

async fn ask(client: &Client, path: &str, body: &Value, timeout: &str) -> Answer {
    client.send(asking(path, body, timeout)).await
}

#[tokio::test]
async fn a_client_says_how_long_it_waits_wherever_something_is_generated() {
    let client = Client::new();
    for (path, body) in endpoints() {
        if path == "/v1/embeddings" {
            let delta = Delta { embedding: vec![1.0; 4], ..end(0, Reason::Length, 0) };
            client.engine.will([Step::Batch(vec![delta])]);
        }
        let before = Instant::now();
        let answer = ask(&client, path, &body, "86400000").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let day = Duration::from_secs(86_400);
        let deadline = client.engine.asked().deadline.unwrap();
        assert!((before..=Instant::now()).contains(&(deadline - day)), "{path}: from its arrival on");
    }
    client.complete(json!({"model": "tiny", "prompt": "hi"}).to_string()).await;
    assert_eq!(client.engine.asked().deadline, None);
}

#[tokio::test]
async fn a_time_that_is_none_is_refused_by_the_headers_name() {
    let client = Client::new();
    for (path, body) in endpoints() {
        for timeout in ["0", "86400001", "-1", "1.5", "1s", "", "99999999999999999999"] {
            let answer = ask(&client, path, &body, timeout).await;
            let error = &answer.json()["error"];
            assert_eq!(answer.status, 400, "{path} {timeout}");
            assert!(error["message"].as_str().unwrap().contains("x-volley-timeout-ms"), "{error}");
            if path != "/v1/messages" {
                assert_eq!(error["param"], "x-volley-timeout-ms");
            }
        }
    }
}

#[tokio::test]
async fn when_the_time_is_over_the_answer_is_504_and_a_stream_ends_with_the_error() {
    let client = Client::new();
    for (path, body) in endpoints() {
        client.engine.will_refuse(StartError::Deadline);
        assert_eq!(ask(&client, path, &body, "1").await.status, 504, "{path}: it never began");
        client.engine.will([Step::Batch(vec![text(0, "so")]), Step::Fail(StreamError::Deadline)]);
        assert_eq!(ask(&client, path, &body, "1").await.status, 504, "{path}: in the middle");
        if path == "/v1/embeddings" {
            continue;
        }
        client.engine.will([Step::Batch(vec![text(0, "so")]), Step::Fail(StreamError::Deadline)]);
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        let response = client.open(asking(path, &streamed, "1")).await;
        assert_eq!(response.status(), 200);
        // How it ends, cut or not, is the API's way; the error comes before.
        let read = response.into_body().into_data_stream().take_while(|part| ready(part.is_ok()));
        let bytes: Vec<_> = read.map(|part| part.unwrap()).collect().await;
        let seen = String::from_utf8(bytes.concat()).unwrap();
        let word = match path {
            "/v1/messages" => "timeout_error",
            "/v1/responses" => "response.failed",
            _ => "DEADLINE_EXCEEDED",
        };
        assert!(seen.contains(word), "{path}: {seen}");
    }
}
