//! Good requests that can't be served: the model, the window, the cluster, a fault.

use serde_json::json;

use super::{
    super::{Client, Step, done},
    cases::CONTEXT,
    envelope, expect,
};
use crate::{engine::StartError, generation::Reason};

#[tokio::test]
async fn models_that_are_not_there_or_not_yet() {
    let client = Client::new();
    for model in ["nope", "accounts/other/models/tiny", "accounts/fireworks/models/nope", &"x".repeat(5000)] {
        let answer = client.complete(json!({"model": model, "prompt": "hi"}).to_string()).await; // 31, 28
        expect(&answer, 404, "error", "NOT_FOUND", "Model not found, inaccessible, and/or not deployed");
        assert_eq!(envelope(&answer)["param"], "model");
        let message = envelope(&answer)["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains(&model[..model.len().min(100)]) && message.contains("GET /v1/models"),
            "{message}"
        );
        assert!(message.len() < 300, "a long name is not repeated whole");
    }
    let answer = client.complete(r#"{"model":"loading","prompt":"hi"}"#).await; // 33
    expect(&answer, 503, "error", "DEPLOYMENT_SCALING_UP", "No worker serves this model now");
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
            Some("3"),
        ), // 86
        (
            StartError::Unavailable { message: "none".into(), retry_after: later },
            503,
            "UNAVAILABLE",
            Some("3"),
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
