//! Bad input: each gets its status and its envelope. The numbers are those of the contract's list of edge cases.

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

mod cases;
mod fields;
mod formats;
mod refusals;
mod transport;

use serde_json::Value;

use super::Answer;

fn envelope(answer: &Answer) -> Value {
    let body = answer.json();
    let keys: Vec<_> = body["error"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["object", "type", "code", "message", "param"]);
    assert_eq!(body["error"]["object"], "error");
    assert_eq!(body["request_id"], answer.header("x-request-id").unwrap());
    assert_eq!(answer.header("request-id"), answer.header("x-request-id"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("content-length"), None, "left to the connection, which knows the body");
    body["error"].clone()
}

fn expect(answer: &Answer, status: u16, kind: &str, code: &str, message: &str) {
    let error = envelope(answer);
    assert_eq!(answer.status, status, "{error}");
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some(kind), Some(code)), "{error}");
    assert!(error["message"].as_str().unwrap().contains(message), "{error}");
}
