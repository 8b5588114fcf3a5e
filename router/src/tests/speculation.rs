//! What clients predict reaches the engine, and answers tell what came of it.

use serde_json::{Value, json};
use volley_proto::v1::Drafted;

use super::{Client, Step, done, events};
use crate::generation::{Delta, Guessed, Reason};

fn body(fields: Value) -> String {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

/// A choice of which five tokens were guessed, three of them right.
fn guessed(predicted: bool) -> Delta {
    let mut guessed = Guessed::default();
    guessed.count(Drafted { tokens: 3, accepted: 2, predicted });
    guessed.count(Drafted { tokens: 2, accepted: 1, predicted });
    Delta { guessed, ..done(0, "ok", Reason::Stop, 6) }
}

#[tokio::test]
async fn what_is_likely_reaches_the_engine_as_tokens() {
    let client = Client::new();
    let parts =
        json!({"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
    for (fields, tokens) in [
        (json!({}), vec![]),
        (json!({"prediction": {"type": "content", "content": "hi"}}), vec![104, 105]),
        (json!({"prediction": parts}), vec![97, 98]),
        (json!({"speculation": "yo"}), vec![121, 111]),
        // What is no token is left out; and `speculation` wins.
        (json!({"speculation": [7, -1, 1i64 << 40, 99999, 8], "prediction": parts}), vec![7, 8]),
    ] {
        assert_eq!(client.chat(body(fields)).await.status, 200);
        assert_eq!(client.engine.asked().prediction, tokens);
    }
}

#[tokio::test]
async fn answers_tell_how_many_guesses_were_right() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![guessed(false)])]);
    let answer = client.chat(body(json!({"perf_metrics_in_response": true}))).await;
    assert_eq!(answer.headers["fireworks-speculation-acceptance"], "0:2/2,1:1/2,2:0/1");
    let metrics = &answer.json()["perf_metrics"];
    assert_eq!(metrics["speculation-acceptance"], "0:2/2,1:1/2,2:0/1");
    assert_eq!(metrics["speculation-generated-tokens"], 5);
    assert_eq!(metrics.get("speculation-prompt-tokens"), None);
    assert_eq!(answer.json()["usage"]["completion_tokens_details"], json!({"reasoning_tokens": 0}));

    let answer = client.chat(body(json!({}))).await;
    assert_eq!(answer.headers.get("fireworks-speculation-acceptance"), None, "nothing was guessed");
}

#[tokio::test]
async fn usage_counts_what_of_a_prediction_was_right() {
    let client = Client::new();
    let fields =
        json!({"prediction": {"type": "content", "content": "okay"}, "perf_metrics_in_response": true});
    let details =
        json!({"reasoning_tokens": 0, "accepted_prediction_tokens": 3, "rejected_prediction_tokens": 2});
    client.engine.will([Step::Batch(vec![guessed(true)])]);
    let answer = client.chat(body(fields.clone())).await.json();
    assert_eq!(answer["usage"]["completion_tokens_details"], details);
    assert_eq!(answer["usage"]["completion_tokens"], 6, "wrong guesses are no tokens");
    let metrics = &answer["perf_metrics"];
    assert_eq!(metrics["speculation-prompt-tokens"], 4);
    assert_eq!(metrics["speculation-prompt-matched-tokens"], 3);

    client.engine.will([Step::Batch(vec![guessed(true)])]);
    let mut streamed = fields;
    streamed["stream"] = json!(true);
    let events = events(&client.chat(body(streamed)).await.body);
    let last = events.last().unwrap();
    assert_eq!(last["usage"]["completion_tokens_details"], details);
    assert_eq!(last["perf_metrics"]["speculation-acceptance"], "0:2/2,1:1/2,2:0/1");
}
