//! Text to tokens and back, over HTTP.

use serde_json::{Value, json};

use super::{Client, post};
use crate::fixture;

async fn ask(client: &Client, path: &str, body: Value) -> Value {
    client.send(post(path, body.to_string())).await.json()
}

#[tokio::test]
async fn a_text_is_tokenized_as_completions_would() {
    let client = Client::new();
    let answer = ask(&client, "/tokenize", json!({"model": "bos", "prompt": "hé"})).await;
    assert_eq!(
        answer,
        json!({"count": 4, "max_model_len": 4096, "tokens": [256, 104, 195, 169], "token_strs": null})
    );
    let bare =
        json!({"model": "bos", "prompt": "hi", "add_special_tokens": false, "return_token_strs": true});
    let answer = ask(&client, "/v1/tokenize", bare).await;
    assert_eq!((&answer["tokens"], &answer["token_strs"]), (&json!([104, 105]), &json!(["h", "i"])));
    client.complete(json!({"model": "bos", "prompt": "hé"}).to_string()).await;
    assert_eq!(client.engine.asked().prompts[0].tokens, [256, 104, 195, 169]);
}

#[tokio::test]
async fn a_conversation_is_tokenized_as_chat_would() {
    let client = Client::new();
    let messages = json!([{"role": "user", "content": "hi"}]);
    client.chat(json!({"model": "tiny", "messages": messages}).to_string()).await;
    let chat = client.engine.asked().prompts.remove(0).tokens;
    let answer = ask(&client, "/tokenize", json!({"model": "tiny", "messages": messages})).await;
    assert_eq!(answer["tokens"], json!(chat));
    let closed = json!({"model": "tiny", "messages": messages, "add_generation_prompt": false});
    let shorter = ask(&client, "/tokenize", closed).await["count"].as_u64().unwrap();
    assert_eq!(shorter as usize, chat.len() - 1 - "assistant\n".len());
    let with_bos = json!({"model": "bos", "messages": messages, "add_special_tokens": true});
    let tokens = ask(&client, "/tokenize", with_bos).await["tokens"].clone();
    assert_eq!(tokens[0], fixture::WORDS, "the template's first token is BOS already");
    assert_ne!(tokens[1], fixture::WORDS);
}

#[tokio::test]
async fn tokens_become_the_text_that_they_were() {
    let client = Client::new();
    let prompt = "<|im_start|>user\nhé 🎉<|im_end|>";
    let tokens =
        ask(&client, "/tokenize", json!({"model": "tiny", "prompt": prompt})).await["tokens"].clone();
    let answer = ask(&client, "/detokenize", json!({"model": "tiny", "tokens": tokens})).await;
    assert_eq!(answer, json!({"prompt": prompt}));
    let cut = ask(&client, "/detokenize", json!({"model": "tiny", "tokens": [195]})).await;
    assert_eq!(cut["prompt"], "\u{fffd}");
}

#[tokio::test]
async fn what_cannot_be_tokenized_is_refused_by_its_field() {
    let client = Client::new();
    for (path, body, param) in [
        ("/tokenize", json!({"model": "tiny"}), "prompt"),
        ("/tokenize", json!({"prompt": "x"}), "model"),
        ("/tokenize", json!({"model": "tiny", "prompt": "x", "messages": []}), "messages"),
        ("/tokenize", json!({"model": "plain", "messages": [{"role": "user", "content": "x"}]}), "model"),
        ("/tokenize", json!({"model": "tiny", "prompt": "x", "extra": 1}), "extra"),
        ("/detokenize", json!({"model": "tiny"}), "tokens"),
        ("/detokenize", json!({"model": "tiny", "tokens": [1, 99999]}), "tokens"),
        ("/detokenize", json!({"model": "tiny", "tokens": ["a"]}), "tokens[0]"),
    ] {
        let answer = client.send(post(path, body.to_string())).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{body}"
        );
    }
}
