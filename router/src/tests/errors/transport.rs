//! Everything about a request but its fields: bytes, sizes, times, labels, methods, paths, keys.

use std::io::Read;

use axum::{body::Body, extract::Request};
use http::Method;

use super::{
    super::{Client, post},
    expect,
};
use crate::{config::Config, http::auth::Keys};

#[tokio::test]
async fn bytes_that_are_no_text_are_located() {
    let client = Client::new();
    let answer = client.complete(&b"{\"model\":\"\xff\"}"[..]).await; // 7
    expect(&answer, 400, "invalid_request_error", "invalid_utf8", "byte 10");
    let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect(); // 8
    expect(&client.complete(utf16).await, 400, "invalid_request_error", "invalid_utf8", "byte 0");
    let deep = format!(r#"{{"model":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000)); // 6
    expect(&client.complete(deep).await, 400, "invalid_request_error", "json_too_deep", "nested deeper");
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
}

/// A completion request in a content coding.
fn coded(coding: &'static str, body: Vec<u8>) -> Request {
    let mut request = post("/v1/completions", body);
    request.headers_mut().insert("content-encoding", coding.parse().unwrap());
    request
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzEncoder::new(text, flate2::Compression::best()).read_to_end(&mut out).unwrap();
    out
}

fn zlib(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::ZlibEncoder::new(text, flate2::Compression::best()).read_to_end(&mut out).unwrap();
    out
}

fn zstd(text: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest)
}

#[tokio::test]
async fn compressed_bodies_are_read() {
    let client = Client::new(); // 13
    let body = prompt!(r#""hi""#).as_bytes();
    let raw_deflate = zlib(body)[2..].to_vec();
    let halves = [gzip(&body[..9]), gzip(&body[9..])].concat();
    let frames = [zstd(&body[..9]), zstd(&body[9..])].concat();
    for (coding, body) in [
        ("gzip", gzip(body)),
        ("X-GZIP", halves),
        ("deflate", zlib(body)),
        ("deflate", raw_deflate),
        ("zstd", frames),
        ("identity", body.to_vec()),
    ] {
        let answer = client.send(coded(coding, body)).await;
        assert_eq!(answer.status, 200, "{coding}: {}", answer.body);
        assert_eq!(client.engine.asked().prompts[0].tokens, [104, 105]);
    }
    for (coding, body) in
        [("gzip", b"x".to_vec()), ("zstd", zlib(body)), ("deflate", zlib(body)[..9].to_vec())]
    {
        let answer = client.send(coded(coding, body)).await;
        expect(&answer, 400, "invalid_request_error", "invalid_encoding", "content-encoding");
    }
    for coding in ["br", "gzip, gzip"] {
        let answer = client.send(coded(coding, body.to_vec())).await;
        expect(&answer, 415, "invalid_request_error", "unsupported_media_type", coding);
    }
}

#[tokio::test]
async fn a_bomb_is_refused_before_it_goes_off() {
    let client = Client::with(Config { body_limit: 4 << 20, ..Config::default() }); // 13
    let large = vec![b' '; 5 << 20];
    // Within the limit, and larger than honest text gets by a small body.
    let dense = vec![b' '; 3 << 20];
    for text in [large, dense] {
        for (coding, body) in [("gzip", gzip(&text)), ("deflate", zlib(&text)), ("zstd", zstd(&text))] {
            assert!(body.len() < 64 << 10);
            let answer = client.send(coded(coding, body)).await;
            expect(&answer, 413, "invalid_request_error", "payload_too_large", "Payload Too Large");
        }
    }
    // A frame whose decoder would have to keep 2 TiB.
    let greedy = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 31 << 3][..], &[0; 20]].concat();
    let answer = client.send(coded("zstd", greedy)).await;
    expect(&answer, 400, "invalid_request_error", "invalid_encoding", "window");
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
