//! Rates per key: what is counted, what is said, when it is over.

use std::time::Duration;

use axum::{body::Body, extract::Request};
use serde_json::json;
use tokio::time::advance;

use super::{Answer, Client, Step, done, post, token};
use crate::{
    config::Config,
    generation::{Delta, Reason},
    http::{auth::Keys, limits::Limits},
};

fn client(limits: Limits) -> Client {
    Client::with(Config { limits, keys: Keys::new(["one", "two"]), ..Config::default() })
}

async fn ask(client: &Client, key: &str) -> Answer {
    let mut request = post("/v1/completions", json!({"model": "tiny", "prompt": "hello"}).to_string());
    request.headers_mut().insert("x-api-key", key.parse().unwrap());
    client.send(request).await
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_by_key_and_come_back_with_time() {
    let client = client(Limits { requests: Some(2), ..Limits::default() }); // 29
    for left in ["1", "0"] {
        let answer = ask(&client, "one").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some(left));
        assert_eq!(answer.header("x-ratelimit-over-limit"), Some("no"));
        assert_eq!(answer.header("x-ratelimit-limit-tokens-prompt"), None);
    }
    let over = ask(&client, "one").await;
    assert_eq!(over.status, 429);
    let error = &over.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("rate_limit_exceeded")));
    assert_eq!(error["message"], "Rate limit reached: 2 requests per minute. Try again in 30 s");
    assert_eq!(over.header("retry-after"), Some("30"));
    assert_eq!(over.header("x-ratelimit-over-limit"), Some("yes"));
    assert_eq!(ask(&client, "two").await.status, 200, "another key has its own");

    let mut models = Request::get("/v1/models").body(Body::empty()).unwrap();
    models.headers_mut().insert("x-api-key", "one".parse().unwrap());
    let models = client.send(models).await;
    assert_eq!((models.status.as_u16(), models.header("x-ratelimit-over-limit")), (200, None));

    advance(Duration::from_secs(30)).await;
    assert_eq!(ask(&client, "one").await.status, 200);
    assert_eq!(ask(&client, "one").await.status, 429);
    advance(Duration::from_secs(3600)).await;
    assert_eq!(ask(&client, "one").await.header("x-ratelimit-remaining-requests"), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_paid_when_they_are_known() {
    let client = client(Limits { prompt_tokens: Some(60), generated_tokens: Some(6), ..Limits::default() });
    let tokens = [token(104, b"h", 0, None), token(105, b"i", 1, None), token(105, b"i", 2, None)];
    let echoed = token(1, b"x", 0, None);
    let tokens = [crate::generation::Token { echoed: true, ..echoed }].into_iter().chain(tokens).collect();
    client.engine.will([Step::Batch(vec![Delta { tokens, ..done(0, "hii", Reason::Stop, 3) }])]);
    let answer = ask(&client, "one").await;
    assert_eq!(answer.header("x-ratelimit-remaining-tokens-prompt"), Some("55"));
    assert_eq!(answer.header("x-ratelimit-remaining-tokens-generated"), Some("3"), "an echo is free");

    // More than is left is served, and owed.
    let tokens: Vec<_> = (0..9).map(|i| token(104, b"h", i, None)).collect();
    client.engine.will([Step::Batch(vec![Delta { tokens, ..done(0, "hhhhhhhhh", Reason::Stop, 9) }])]);
    let answer = ask(&client, "one").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-ratelimit-remaining-tokens-generated"), Some("0"));
    let over = ask(&client, "one").await;
    assert_eq!((over.status.as_u16(), over.header("retry-after")), (429, Some("60")), "70 s: SDKs obey 60");
    advance(Duration::from_secs(71)).await;
    assert_eq!(ask(&client, "one").await.status, 200);
}

#[tokio::test]
async fn without_limits_nothing_is_said_of_them() {
    let client = Client::new();
    let answer = client.complete(r#"{"model":"tiny","prompt":"hi"}"#).await;
    assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("x-ratelimit")));
}
