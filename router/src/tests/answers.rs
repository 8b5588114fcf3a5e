//! Answers in one piece, byte for byte, and what a request comes to.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};

use super::{Client, Step, done, end, post, text, token};
use crate::{
    config::{Config, StopWord},
    generation::{Delta, Finish, Reason, Sampling},
};

const CHAT: &str =
    r#"{"model":"accounts/fireworks/models/tiny","messages":[{"role":"user","content":"hi"}]}"#;

fn body(fields: Value) -> String {
    let mut body = json!({"model": "tiny", "prompt": "hi"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

#[tokio::test]
async fn a_chat_is_answered_to_the_byte() {
    let client = Client::new();
    client
        .engine
        .will([Step::Batch(vec![text(0, "Hel")]), Step::Batch(vec![done(0, "lo\u{2028}", Reason::Stop, 3)])]);
    let answer = client.chat(CHAT).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.stable(),
        r#"{"id":"chatcmpl-C","object":"chat.completion","created":0,"model":"accounts/fireworks/models/tiny","system_fingerprint":"fp_F","choices":[{"index":0,"message":{"role":"assistant","content":"Hello\u2028","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":40,"total_tokens":43,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}"#
    );
    assert_eq!(client.engine.cancelled(), 0);
}

#[tokio::test]
async fn completions_number_choices_by_prompt_then_answer() {
    let client = Client::new();
    let cached = |choice, text: &str, cached_tokens| {
        let mut delta = done(choice, text, Reason::Length, 1);
        delta.finish = delta.finish.map(|finish| Finish { cached_tokens, ..finish });
        delta
    };
    client.engine.will([
        Step::Batch(vec![cached(3, "d", 1), cached(1, "b", 2)]),
        Step::Batch(vec![cached(0, "a", 0), cached(2, "c", 1)]),
    ]);
    let answer = client.complete(body(json!({"prompt": ["hi", "you"], "n": 2, "max_tokens": 1}))).await;
    assert_eq!(
        answer.stable(),
        r#"{"id":"cmpl-P","object":"text_completion","created":0,"model":"tiny","system_fingerprint":"fp_F","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":"length"},{"index":1,"text":"b","logprobs":null,"finish_reason":"length"},{"index":2,"text":"c","logprobs":null,"finish_reason":"length"},{"index":3,"text":"d","logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":0}}}"#
    );
    let asked = client.engine.asked();
    assert_eq!(asked.prompts.iter().map(|prompt| prompt.tokens.len()).collect::<Vec<_>>(), [2, 3]);
    assert_eq!((asked.n, asked.max_tokens), (2, 1));
}

#[tokio::test]
async fn nothing_generated_is_an_empty_text() {
    let client = Client::new();
    for reason in [Reason::Stop, Reason::Length] {
        client.engine.will([Step::Batch(vec![end(0, reason, 0)])]);
        let answer = client.chat(CHAT).await.json();
        assert_eq!(answer["choices"][0]["message"]["content"], "");
        assert_eq!(answer["usage"]["completion_tokens"], 0);
    }
}

#[tokio::test]
async fn both_formats_of_logprobs_work_at_both_endpoints() {
    let client = Client::new();
    for (logprobs, top, format) in
        [(json!(true), Some(1), "content"), (json!(1), None, "tokens"), (json!(true), None, "content")]
    {
        let tokens = vec![token(104, b"h", 0, None), token(105, b"i", 1, Some(-0.5))];
        let deltas = || {
            let finish =
                Some(Finish { reason: Reason::Stop, completion_tokens: 1, cached_tokens: 0, stop: None });
            let delta = Delta { text: "hi".into(), tokens: tokens.clone(), finish, ..Delta::default() };
            [Step::Batch(vec![delta])]
        };
        client.engine.will(deltas());
        let mut fields = json!({"logprobs": logprobs, "echo": true});
        fields.as_object_mut().unwrap().extend(top.map(|top| ("top_logprobs".to_owned(), json!(top))));
        let completion = client.complete(body(fields.clone())).await.json();
        assert!(completion["choices"][0]["logprobs"][format].is_array(), "{completion}");
        let asked = client.engine.asked();
        assert_eq!(asked.logprobs, Some(u32::from(top.is_some() || format == "tokens")));
        assert_eq!(asked.echo, u32::MAX);

        client.engine.will(deltas());
        let mut chat: Value = serde_json::from_str(CHAT).unwrap();
        chat.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let chat = client.chat(chat.to_string()).await.json();
        assert_eq!(chat["choices"][0]["logprobs"], completion["choices"][0]["logprobs"]);
    }
}

#[tokio::test]
async fn parameters_reach_the_engine_checked_and_complete() {
    let client = Client::new();
    client.complete(body(json!({}))).await;
    let plain = client.engine.asked();
    assert_eq!((plain.max_tokens, plain.n, plain.echo, plain.ignore_eos), (16, 1, 0, false));
    assert_eq!((plain.stop.len(), plain.include_stop, plain.logprobs), (0, true, None));
    let sampling = plain.sampling;
    assert_eq!(sampling, Sampling { seed: sampling.seed, ..Sampling::default() });
    assert_eq!((plain.tenant.as_str(), &plain.id[..5]), ("anonymous", "cmpl-"));
    client.complete(body(json!({}))).await;
    assert_ne!(client.engine.asked().sampling.seed, sampling.seed, "each request has its own seed");

    client
        .complete(body(json!({"temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "seed": -1,
            "stop": "x", "include_stop_str_in_output": false, "ignore_eos": true, "max_tokens": 5})))
        .await;
    let asked = client.engine.asked();
    let sampling = asked.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.5, 0.25, 7, 0.125));
    assert_eq!((sampling.seed, asked.max_tokens, asked.ignore_eos), (u64::MAX, 5, true));
    assert_eq!((asked.stop, asked.include_stop), (vec!["x".to_owned()], false));
}

#[tokio::test]
async fn limits_of_sampling_are_greedy() {
    let client = Client::new();
    for fields in [json!({"top_p": 0}), json!({"temperature": 1e-9}), json!({"temperature": 0})] {
        client.complete(body(fields)).await;
        let sampling = client.engine.asked().sampling;
        assert_eq!((sampling.temperature, sampling.top_p), (0.0, 1.0));
    }
}

#[tokio::test]
async fn max_tokens_is_lowered_to_the_room_there_is() {
    let client = Client::new();
    for (fields, max_tokens) in [
        (json!({"max_tokens": 1e12}), 4094),
        (json!({"max_completion_tokens": 4094, "context_length_exceeded_behavior": "error"}), 4094),
        (json!({"max_tokens": 0}), 0),
        (json!({"max_tokens": 5000, "prompt": ["hi", "hello"]}), 4094),
    ] {
        client.complete(body(fields)).await;
        assert_eq!(client.engine.asked().max_tokens, max_tokens);
    }
    client.chat(CHAT).await;
    assert_eq!(client.engine.asked().max_tokens, 2048);
    let long = json!({"model": "tiny", "messages": [{"role": "user", "content": "a".repeat(4000)}]});
    client.chat(long.to_string()).await;
    assert_eq!(client.engine.asked().max_tokens, 4096 - 4038);
}

#[tokio::test]
async fn the_server_decides_about_the_stop_word_and_the_request_about_the_server() {
    let client = Client::with(Config { stop_word: StopWord::Exclude, ..Config::default() });
    client.complete(body(json!({"stop": ["a", "b"]}))).await;
    assert!(!client.engine.asked().include_stop);
    client.complete(body(json!({"stop": "a", "include_stop_str_in_output": true}))).await;
    assert!(client.engine.asked().include_stop);
}

#[tokio::test]
async fn prompts_come_in_four_shapes() {
    let client = Client::new();
    for (prompt, tokens) in [
        (json!("hi"), vec![vec![104, 105]]),
        (json!(["h", "i"]), vec![vec![104], vec![105]]),
        (json!([104, 105.0]), vec![vec![104, 105]]),
        (json!([[104], [105, 257]]), vec![vec![104], vec![105, 257]]),
        (json!("<|im_end|>"), vec![vec![257]]),
    ] {
        client.complete(body(json!({"prompt": prompt}))).await;
        let asked: Vec<_> = client.engine.asked().prompts.into_iter().map(|prompt| prompt.tokens).collect();
        assert_eq!(asked, tokens, "{prompt}");
    }
    client.complete(body(json!({"model": "bos", "prompt": ""}))).await;
    assert_eq!(client.engine.asked().prompts[0].tokens, [256], "an empty prompt is BOS where there is one");
}

#[tokio::test]
async fn special_tokens_in_messages_are_text_unless_the_request_says_otherwise() {
    let client = Client::new();
    for (fields, specials) in [(json!({}), 5), (json!({"safe_tokenization": false}), 6)] {
        let mut chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "<|im_end|>"}]});
        chat.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(client.chat(chat.to_string()).await.status, 200);
        let tokens = client.engine.asked().prompts[0].tokens.clone();
        assert_eq!(tokens.iter().filter(|token| **token >= 256).count(), specials);
    }
}

#[tokio::test]
async fn a_model_answers_to_all_its_names_and_the_answer_repeats_them() {
    let alias = ("accounts/fireworks/models/llama-v2-7b-chat".to_owned(), "tiny".to_owned());
    let nowhere = ("elsewhere".to_owned(), "nope".to_owned());
    let client = Client::with(Config { aliases: vec![alias, nowhere], ..Config::default() });
    let listed: Vec<String> = client.get("/v1/models").await.json()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap().to_owned())
        .filter(|id| !id.ends_with("loading"))
        .collect();
    assert!(listed.contains(&"accounts/fireworks/models/llama-v2-7b-chat".to_owned()), "{listed:?}");
    assert!(!listed.contains(&"elsewhere".to_owned()), "an alias of nothing: {listed:?}");
    for name in [
        "tiny",
        "Tiny",
        "Accounts/Fireworks/models/TINY",
        "accounts/fireworks/models/tiny",
        "fireworks/tiny",
        "accounts/fireworks/models/tiny#accounts/fireworks/deployments/abc",
        "accounts/fireworks/models/llama-v2-7b-chat",
        "accounts/fireworks/models/llama-v2-7b-chat#x",
    ] {
        let answer = client.complete(body(json!({"model": name}))).await;
        assert_eq!(answer.json()["model"], name);
        let encoded = name.replace('/', "%2F").replace('#', "%23");
        let found = client.get(&format!("/v1/models/{encoded}")).await;
        let listed = if listed.iter().any(|id| id == name) { name } else { "accounts/fireworks/models/tiny" };
        assert_eq!(found.json()["id"], listed, "{name}");
    }
    let slashes = client.get("/v1/models/accounts/fireworks/models/tiny/").await;
    assert_eq!(slashes.json()["id"], "accounts/fireworks/models/tiny");
    assert_eq!(client.get("/v1/models/nope").await.status, 404);
}

#[tokio::test]
async fn the_first_sdks_name_the_model_in_the_path() {
    let client = Client::new();
    for path in
        ["/v1/engines/tiny/completions", "/v1/engines/accounts%2Ffireworks%2Fmodels%2Ftiny/completions"]
    {
        let answer = client.send(post(path, r#"{"prompt":"hi"}"#)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.json()["model"].as_str().unwrap().ends_with("tiny"));
    }
}

#[tokio::test]
async fn every_spelling_of_a_path_is_served() {
    let client = Client::new();
    for path in [
        "/inference/v1/completions",
        "/v1/completions",
        "/completions",
        "/inference/v1/v1/completions",
        "/v1/v1/completions/",
        "//v1//completions",
    ] {
        assert_eq!(client.send(post(path, body(json!({})))).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_models_are_listed_as_fireworks_does() {
    let client = Client::with(Config { account: "acme".into(), ..Config::default() });
    let list = client.get("/inference/v1/models").await;
    let first = r#"{"object":"list","data":[{"id":"accounts/acme/models/tiny","object":"model","created":1700000000,"owned_by":"acme","kind":"HF_BASE_MODEL","supports_chat":true,"supports_image_input":false,"supports_tools":true,"context_length":4096},"#;
    assert!(list.body.starts_with(first), "{}", list.body);
    assert_eq!(list.json()["data"].as_array().unwrap().len(), 3);
    assert_eq!(client.get("/v1/engines").await.body, list.body);
}

#[tokio::test]
async fn headers_tell_what_was_used() {
    let client = Client::new();
    let answer = client.chat(CHAT).await;
    assert_eq!(answer.header("fireworks-prompt-tokens"), Some("40"));
    assert_eq!(answer.header("fireworks-cached-prompt-tokens"), Some("0"));
    for name in
        ["fireworks-server-time-to-first-token", "fireworks-server-processing-time", "openai-processing-ms"]
    {
        assert!(answer.header(name).unwrap().parse::<f64>().unwrap() >= 0.0);
    }
    let options: Value = serde_json::from_str(answer.header("fireworks-sampling-options").unwrap()).unwrap();
    assert_eq!((&options["temperature"], &options["max_tokens"]), (&json!(1.0), &json!(2048)));
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_cancels_its_answer() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![text(0, "a")]), Step::Hang]);
    let answer = tokio::time::timeout(Duration::from_secs(1), client.chat(CHAT)).await;
    assert!(answer.is_err());
    assert_eq!(client.engine.cancelled(), 1);
}

#[tokio::test]
async fn every_exchange_is_counted_once_and_those_left_by_their_client_as_499() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _local = metrics::set_default_local_recorder(&recorder);
    let client = Client::new();
    client.complete(body(json!({}))).await;
    client.complete(body(json!({"stream": true}))).await;
    client.complete(body(json!({"n": 0}))).await;
    client.engine.will([Step::Batch(vec![text(0, "a")]), Step::Hang]);
    drop(client.open(post("/v1/completions", body(json!({"stream": true})))).await);
    client.get("/nowhere").await;
    let rendered = recorder.handle().render();
    for line in [
        r#"volley_http_requests_total{route="/completions",status="200"} 2"#,
        r#"volley_http_requests_total{route="/completions",status="400",reason="invalid_value"} 1"#,
        r#"volley_http_requests_total{route="/completions",status="499"} 1"#,
        r#"volley_http_requests_total{route="other",status="404",reason="not_found"} 1"#,
        "volley_completion_tokens_total 4",
        "volley_prompt_tokens_total 4",
    ] {
        assert!(rendered.contains(line), "{line} in {rendered}");
    }
}

#[tokio::test]
async fn operators_find_health_readiness_metrics_and_version() {
    let client = Client::new();
    for path in ["/health", "/healthz", "/ready", "/version", "/metrics"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
    assert_eq!(client.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
}
