//! Against a scripted server on the loopback.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::{
    load::{self, Load, Seen},
    *,
};
use crate::cli::BenchEndpoint;

const USAGE: &str = r#"data: {"choices":[{"text":"","finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#;

/// A server that answers every completion with these lines, and counts how many it answers at once.
async fn server(lines: &'static [&'static str]) -> (Server, Arc<AtomicUsize>) {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peak = most.clone();
    let complete = async move |headers: HeaderMap, Json(body): Json<Value>| {
        if headers.get("authorization").is_none_or(|key| key != "Bearer k") {
            return (StatusCode::UNAUTHORIZED, "no key").into_response();
        }
        assert_eq!((body["stream"].as_bool(), body["ignore_eos"].as_bool()), (Some(true), Some(true)));
        peak.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let pieces = stream::iter(lines).map(|line| Ok::<_, Infallible>(format!("{line}\n\n")));
        let open = open.clone();
        let end = stream::once(async move {
            open.fetch_sub(1, Ordering::SeqCst);
            Ok(String::new())
        });
        Body::from_stream(pieces.chain(end)).into_response()
    };
    let models = async || Json(json!({"object": "list", "data": [{"id": "first"}, {"id": "second"}]}));
    let routes = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/completions", post(complete))
        .route("/health", get(async || "ok"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, routes).await });
    (Server::parse(&url, Some("k".into())).unwrap(), most)
}

async fn seen(server: Server, requests: usize, concurrency: usize) -> Seen {
    let count = requests.to_string();
    let args = BenchArgs::of(&["-n", &count]);
    let bodies = prompts::bodies(&args, "m", &serde_json::Map::new(), concurrency);
    let endpoint = BenchEndpoint::Completions;
    let timeout = Duration::from_secs(60);
    load::run(Load { servers: vec![server], endpoint, bodies, concurrency, timeout, poll_health: true }).await
}

#[tokio::test]
async fn every_request_is_measured_and_no_more_run_at_once_than_asked() {
    let lines = &[
        r#"data: {"choices":[{"text":"a"}]}"#,
        r#"data: {"choices":[{"text":"b"}]}"#,
        USAGE,
        "data: [DONE]",
    ];
    let (server, most) = server(lines).await;
    assert_eq!(server.first_model().await.unwrap(), "first");
    let seen = seen(server, 12, 3).await;
    assert_eq!((seen.answers.len(), seen.errors.len()), (12, 0));
    assert!(most.load(Ordering::SeqCst) <= 3);
    for answer in &seen.answers {
        assert_eq!((answer.chunks, answer.gaps.len()), (2, 1));
        assert_eq!(answer.usage.unwrap().completion_tokens, 4);
        assert!(answer.first <= answer.whole && answer.whole <= seen.wall);
    }
    assert!(!seen.health.is_empty() && seen.health_errors == 0);
}

#[tokio::test]
async fn a_stream_that_breaks_off_or_reports_an_error_is_an_error() {
    let cut: &[&str] = &[r#"data: {"choices":[{"text":"a"}]}"#];
    let event: &[&str] =
        &[r#"data: {"choices":[{"text":"a"}]}"#, r#"data: {"error":{"message":"worker lost"}}"#];
    let nonsense: &[&str] = &["data: <html>"];
    for (lines, reason) in [(cut, "broke off"), (event, "worker lost"), (nonsense, "no chunk")] {
        let (server, _) = server(lines).await;
        let seen = seen(server, 2, 1).await;
        assert_eq!(seen.answers.len(), 0);
        assert!(seen.errors.iter().all(|e| e.contains(reason)), "{:?}", seen.errors);
    }
}

#[tokio::test]
async fn an_answer_that_ends_without_done_counts_once_it_is_finished() {
    let (server, _) = server(&[r#"data: {"choices":[{"text":"a"}]}"#, USAGE]).await;
    assert_eq!(seen(server, 1, 1).await.answers.len(), 1);
}

#[tokio::test]
async fn a_refusal_is_shown_with_its_status_and_body() {
    let (server, _) = server(&[]).await;
    let open = Server::parse(server.to_string().trim_end_matches("/v1"), None).unwrap();
    let seen = seen(open, 1, 1).await;
    assert!(seen.errors[0].contains("401") && seen.errors[0].contains("no key"), "{:?}", seen.errors);
}
