//! The server on a real socket: what only a connection shows.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use volley_membership::{Member, Members};

use super::{Scripted, Step, end, text};
use crate::{
    config::Config,
    engine::StreamError,
    generation::Reason,
    http::{peers::Peers, server},
};

struct Server {
    address: std::net::SocketAddr,
    engine: Arc<Scripted>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), server::Error>>,
}

impl Server {
    async fn start(config: Config) -> Self {
        Self::among(config, Peers::alone()).await
    }

    async fn among(config: Config, peers: Peers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (engine, shutdown) = (Arc::new(Scripted::new()), CancellationToken::new());
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let serving = server::serve(config, engine.clone(), peers, metrics, listener, shutdown.clone());
        Self { address, engine, shutdown, task: tokio::spawn(serving) }
    }

    /// Posts to `path`; the answer with its head.
    async fn post(&self, path: &str, body: &serde_json::Value) -> String {
        let body = body.to_string();
        let head = "host: x\r\nconnection: close\r\ncontent-type: application/json";
        let length = body.len();
        let request = format!("POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}");
        self.exchange(&request).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `request` and reads until the server closes.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }

    async fn until_cancelled(&self) {
        while self.engine.cancelled() == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// All that is still to come.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A cut connection may end in an error; what came before it counts.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

/// Reads until `marker` has come.
async fn until(stream: &mut TcpStream, marker: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(marker) {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.unwrap();
        assert_ne!(read, 0, "closed after {seen}");
        seen += std::str::from_utf8(&chunk[..read]).unwrap();
    }
    seen
}

fn post(version: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST /v1/completions {version}\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
}

const STREAM: &str = r#"{"model":"tiny","prompt":"hi","stream":true}"#;
const WHOLE: &str = r#"{"model":"tiny","prompt":"hi"}"#;

#[tokio::test]
async fn a_fault_closes_the_connection_without_the_terminating_chunk() {
    let server = Server::start(Config::default()).await;
    server.engine.will([Step::Batch(vec![text(0, "a")]), Step::Fail(StreamError::Internal("x".into()))]);
    let answer = server.exchange(&post("HTTP/1.1", "", STREAM)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\"code\":\"internal_error\""), "the event was sent: {answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn closing_the_connection_cancels_streams_and_answers_alike() {
    for body in [STREAM, WHOLE] {
        let server = Server::start(Config::default()).await;
        server.engine.will([Step::Batch(vec![text(0, "a")]), Step::Hang]);
        let mut stream = server.connect().await;
        stream.write_all(post("HTTP/1.1", "", body).as_bytes()).await.unwrap();
        if body == STREAM {
            until(&mut stream, "\"a\"").await;
        } else {
            while server.engine.asked.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        }
        drop(stream);
        server.until_cancelled().await;
    }
}

#[tokio::test]
async fn http_1_0_clients_get_streams_that_end_with_the_connection() {
    let server = Server::start(Config::default()).await;
    let answer = server.exchange(&post("HTTP/1.0", "", STREAM)).await;
    assert!(answer.ends_with("\n\ndata: [DONE]\n\n"), "{answer}");
    assert!(!answer.to_lowercase().contains("transfer-encoding"), "{answer}");
}

#[tokio::test]
async fn oversized_headers_are_431() {
    let server = Server::start(Config::default()).await;
    for headers in [format!("X: {}\r\n", "x".repeat(40_000)), "X: y\r\n".repeat(150)] {
        let answer = server.exchange(&post("HTTP/1.1", &headers, WHOLE)).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_before_it_sends() {
    let server = Server::start(Config { body_limit: 1000, ..Config::default() }).await;
    let mut stream = server.connect().await;
    let ask = |length: usize| {
        format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    stream.write_all(ask(2000).as_bytes()).await.unwrap();
    let answer = until(&mut stream, "}").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

    let mut stream = server.connect().await;
    stream.write_all(ask(WHOLE.len()).as_bytes()).await.unwrap();
    let go_on = until(&mut stream, "\r\n\r\n").await;
    assert!(go_on.starts_with("HTTP/1.1 100 "), "{go_on}");
    stream.write_all(WHOLE.as_bytes()).await.unwrap();
    assert!(until(&mut stream, "}").await.contains("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_client_that_sends_too_much_first_still_reads_its_answer() {
    let server = Server::start(Config { body_limit: 1000, ..Config::default() }).await;
    let mut stream = server.connect().await;
    stream.write_all(post("HTTP/1.1", "", &"x".repeat(8 << 20)).as_bytes()).await.unwrap();
    assert!(until(&mut stream, "request_id").await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_connection_serves_on_after_an_error() {
    let server = Server::start(Config::default()).await;
    let mut stream = server.connect().await;
    stream.write_all(post("HTTP/1.1", "", "{").as_bytes()).await.unwrap();
    assert!(until(&mut stream, "request_id").await.starts_with("HTTP/1.1 400 "));
    stream.write_all(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    assert!(until(&mut stream, "request_id").await.contains("HTTP/1.1 404 "));
    stream.write_all(post("HTTP/1.1", "", WHOLE).as_bytes()).await.unwrap();
    assert!(until(&mut stream, "usage").await.contains("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_tells_new_requests_to_come_back() {
    let server = Server::start(Config::default()).await;
    let go_on = Arc::new(Notify::new());
    server.engine.will([
        Step::Batch(vec![text(0, "a")]),
        Step::Until(go_on.clone()),
        Step::Batch(vec![end(0, Reason::Stop, 1)]),
    ]);
    let mut stream = server.connect().await;
    stream.write_all(post("HTTP/1.1", "", STREAM).as_bytes()).await.unwrap();
    until(&mut stream, "\"a\"").await;
    server.shutdown.cancel();
    for request in ["GET /ready HTTP/1.1\r\nHost: x\r\n\r\n", &post("HTTP/1.1", "", WHOLE)] {
        let answer = server.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
    }
    go_on.notify_one();
    assert!(rest(&mut stream).await.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
    server.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "and then it is gone");
}

#[tokio::test]
async fn a_drain_ends_after_its_grace_with_an_error_event() {
    let server = Server::start(Config { grace: Duration::ZERO, ..Config::default() }).await;
    server.engine.will([Step::Batch(vec![text(0, "a")]), Step::Hang]);
    let mut stream = server.connect().await;
    stream.write_all(post("HTTP/1.1", "", STREAM).as_bytes()).await.unwrap();
    until(&mut stream, "\"a\"").await;
    server.shutdown.cancel();
    let end = rest(&mut stream).await;
    assert!(end.contains("shutting down") && !end.contains("[DONE]"), "{end}");
    server.task.await.unwrap().unwrap();
    assert_eq!(server.engine.cancelled(), 1);
}

#[tokio::test]
async fn http_2_clients_are_served_and_see_a_fault_as_a_reset() {
    let server = Server::start(Config::default()).await;
    server.engine.will([Step::Batch(vec![end(0, Reason::Stop, 1)])]);
    server.engine.will([Step::Batch(vec![text(0, "a")]), Step::Fail(StreamError::Internal("x".into()))]);
    let io = hyper_util::rt::TokioIo::new(server.connect().await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    for whole in [true, false] {
        let body = axum::body::Body::from(STREAM);
        let request = http::Request::post("http://x/v1/completions").body(body).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let (mut body, mut seen) = (response.into_body(), String::new());
        let fault = loop {
            match body.frame().await {
                Some(Ok(frame)) => seen += std::str::from_utf8(frame.data_ref().unwrap()).unwrap(),
                Some(Err(fault)) => break Some(fault),
                None => break None,
            }
        };
        assert_eq!(fault.is_none(), whole);
        assert!(
            seen.ends_with("data: [DONE]\n\n") == whole && seen.contains("internal_error") != whole,
            "{seen}"
        );
    }
}

#[tokio::test]
async fn a_kept_response_is_found_from_every_router_while_its_own_is_there() {
    let (members, watched) = watch::channel(Members::default());
    let one = Server::among(Config::default(), Peers::new("r1", watched.clone())).await;
    let two = Server::among(Config::default(), Peers::new("r2", watched)).await;
    let address = format!("http://{}", one.address);
    let member = Member { id: "r1".into(), address, model: String::new() };
    members.send_modify(|members| drop(Arc::make_mut(members).insert("r1".into(), member)));

    let ask = json!({"model": "tiny", "input": "hi"});
    let first = one.post("/v1/responses", &ask).await;
    let id = first.split_once("\"id\":\"").unwrap().1.split('"').next().unwrap();
    let get = format!("GET /v1/responses/{id} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(two.exchange(&get).await.contains(id));

    let next = json!({"model": "tiny", "input": "more", "previous_response_id": id, "stream": true});
    let streamed = two.post("/inference/v1/responses/", &next).await;
    assert!(
        streamed.starts_with("HTTP/1.1 200") && streamed.contains("event: response.completed"),
        "{streamed}"
    );
    assert_eq!(
        one.engine.asked().prompts[0].tokens.len(),
        40 + "ok\0\n\u{1}user\nmore\0\n\u{1}assistant\n".len()
    );

    let delete = get.replace("GET", "DELETE");
    assert!(two.exchange(&delete).await.contains("\"deleted\":true"));
    assert!(one.exchange(&get).await.starts_with("HTTP/1.1 404"));
    let second = one.post("/v1/responses", &ask).await;
    let id = second.split_once("\"id\":\"").unwrap().1.split('"').next().unwrap();
    let next = json!({"model": "tiny", "input": "more", "previous_response_id": id});
    assert!(two.post("/v1/responses", &next).await.starts_with("HTTP/1.1 200"));
    members.send_replace(Members::default());
    let gone = two.post("/v1/responses", &next).await;
    assert!(gone.starts_with("HTTP/1.1 404") && gone.contains("not_found"), "{gone}");
}
