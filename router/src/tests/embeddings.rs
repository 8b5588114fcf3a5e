//! Texts to vectors, over HTTP.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{Answer, Client, Step, end, post};
use crate::{
    engine::StreamError,
    generation::{Delta, Reason, Task},
};

fn embedding(numbers: &[f32]) -> [Step; 1] {
    [Step::Batch(vec![Delta { embedding: numbers.to_vec(), ..end(0, Reason::Length, 0) }])]
}

async fn embed(client: &Client, fields: Value) -> Answer {
    let mut body = json!({"model": "bos", "input": "hi"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    client.send(post("/v1/embeddings", body.to_string())).await
}

#[tokio::test]
async fn an_embedding_is_answered_to_the_byte() {
    let client = Client::new();
    client.engine.will(embedding(&[3.0, 0.0, -4.0, 0.0]));
    let answer = embed(&client, json!({})).await;
    assert_eq!(
        answer.body,
        r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.6,0.0,-0.8,0.0]}],"model":"bos","usage":{"prompt_tokens":3,"total_tokens":3}}"#
    );
    assert_eq!(answer.header("fireworks-prompt-tokens"), Some("3"));
    let asked = client.engine.asked();
    assert_eq!((asked.task, asked.max_tokens, asked.n), (Task::Embed, 0, 1));
    assert_eq!(asked.prompts[0].tokens, [256, 104, 105]);
}

#[tokio::test]
async fn inputs_of_every_shape_come_back_in_order() {
    let client = Client::new();
    for (input, prompts) in [
        (json!(["a", "b"]), vec![vec![256, 97], vec![256, 98]]),
        (json!([97, 98]), vec![vec![97, 98]]),
        (json!([[97], [98, 99]]), vec![vec![97], vec![98, 99]]),
    ] {
        for number in 1..=prompts.len() {
            client.engine.will(embedding(&[number as f32, 0.0, 0.0, 0.0]));
        }
        let answer = embed(&client, json!({"input": input, "normalize": false})).await.json();
        let data = answer["data"].as_array().unwrap();
        assert_eq!(data.len(), prompts.len());
        for (index, entry) in data.iter().enumerate() {
            assert_eq!(
                (&entry["index"], &entry["embedding"][0]),
                (&json!(index), &json!(index as f32 + 1.0))
            );
        }
        let tokens: usize = prompts.iter().map(Vec::len).sum();
        assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        assert_eq!(client.engine.asked().prompts[0].tokens, *prompts.last().unwrap());
    }
}

#[tokio::test]
async fn base64_is_little_endian_and_dimensions_are_cut_before_the_length_becomes_one() {
    let client = Client::new();
    client.engine.will(embedding(&[3.0, 4.0, 12.0, 1.0]));
    let cut = json!({"encoding_format": "base64", "dimensions": 2});
    let answer = embed(&client, cut).await.json();
    let bytes = BASE64_STANDARD.decode(answer["data"][0]["embedding"].as_str().unwrap()).unwrap();
    assert_eq!(bytes, [0.6f32.to_le_bytes(), 0.8f32.to_le_bytes()].concat());
    client.engine.will(embedding(&[3.0, 4.0, 12.0, 1.0]));
    let raw = embed(&client, json!({"normalize": false, "dimensions": 3.0})).await.json();
    assert_eq!(raw["data"][0]["embedding"], json!([3.0, 4.0, 12.0]));
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_by_its_field() {
    let client = Client::new();
    for (fields, param, message) in [
        (json!({"model": "tiny"}), "model", "serves no embeddings"),
        (json!({"model": null}), "model", "Field required"),
        (json!({"input": null}), "input", "Field required"),
        (json!({"input": []}), "input", "must not be empty"),
        (json!({"input": [[]]}), "input", "no tokens"),
        (json!({"input": ["a", [1]]}), "input", "must not mix"),
        (json!({"input": [5000]}), "input", "vocabulary"),
        (json!({"input": vec!["a"; 2049]}), "input", "at most 2048"),
        (json!({"input": "a".repeat(5000)}), "input", "The prompt is too long: 5001"),
        (json!({"dimensions": 0}), "dimensions", "between 1 and 4"),
        (json!({"dimensions": 5}), "dimensions", "between 1 and 4"),
        (json!({"encoding_format": "int8"}), "encoding_format", "int8"),
        (json!({"prompt_template": "x"}), "prompt_template", "not supported"),
        (json!({"extra": 1}), "extra", "Extra inputs"),
    ] {
        let answer = embed(&client, fields.clone()).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status.as_u16(), &error["param"]), (400, &json!(param)), "{fields}");
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_input_that_fails_fails_the_request_and_cancels_the_others() {
    let client = Client::new();
    let soon = Step::Wait(std::time::Duration::from_millis(1));
    client.engine.will([soon, Step::Fail(StreamError::Internal("no".into()))]);
    client.engine.will([Step::Hang]);
    let answer = embed(&client, json!({"input": ["a", "b"]})).await;
    assert_eq!(answer.status, 500);
    assert_eq!(client.engine.cancelled(), 1);
}
