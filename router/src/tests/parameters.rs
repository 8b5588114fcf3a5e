//! What each parameter comes to: in the engine, or in the answer.

use serde_json::{Value, json};

use super::{Client, Step, done, events, post, token};
use crate::generation::{Delta, Finish, Mirostat, Reason, Token};

fn merge(mut body: Value, fields: Value) -> String {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

fn completion(fields: Value) -> String {
    merge(json!({"model": "tiny", "prompt": "hi"}), fields)
}

fn chat(fields: Value) -> String {
    merge(json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}), fields)
}

/// A whole choice, its tokens with this log-probability each.
fn candidate(choice: u32, text: &str, logprob: f32) -> Delta {
    let tokens = (0..).zip(text.bytes());
    let tokens = tokens.map(|(at, byte)| token(u32::from(byte), &[byte], at, Some(logprob))).collect();
    Delta { tokens, ..done(choice, text, Reason::Stop, text.len() as u32) }
}

/// The prompt `hi` echoed, then `ok`.
fn echoed() -> Delta {
    let echo = |id, bytes, at, logprob| Token { echoed: true, ..token(id, bytes, at, logprob) };
    let mut delta = candidate(0, "ok", -0.5);
    delta.tokens.splice(0..0, [echo(104, b"h", 0, None), echo(105, b"i", 1, Some(-9.0))]);
    Delta { text: "hiok".into(), ..delta }
}

#[tokio::test]
async fn penalties_bias_and_filters_reach_the_engine() {
    let client = Client::new();
    client
        .complete(completion(
            json!({"frequency_penalty": 0.5, "presence_penalty": -0.25, "repetition_penalty": 1.5,
            "typical_p": 0.75, "mirostat_target": 3, "logit_bias": {"101": -100, "7": 2.5}, "min_tokens": 3}),
        ))
        .await;
    let asked = client.engine.asked();
    let sampling = asked.sampling;
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (0.5, -0.25));
    assert_eq!((sampling.repetition_penalty, sampling.typical_p), (1.5, 0.75));
    assert_eq!(sampling.mirostat, Some(Mirostat { target: 3.0, rate: 0.1 }));
    assert_eq!((&*sampling.bias, asked.min_tokens), (&[(7, 2.5), (101, -100.0)][..], 3));
    client.complete(completion(json!({"mirostat_target": 3, "mirostat_lr": 0.5, "min_tokens": 3000}))).await;
    let asked = client.engine.asked();
    assert_eq!(asked.sampling.mirostat.unwrap().rate, 0.5);
    assert_eq!(asked.min_tokens, 16, "no more than there can be");
}

#[tokio::test]
async fn sessions_are_named_by_body_then_headers_then_user() {
    let client = Client::new();
    let asked = async |fields: Value, headers: &[(&'static str, &str)]| {
        let mut request = post("/v1/completions", completion(fields));
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        assert_eq!(client.send(request).await.status, 200);
        client.engine.asked()
    };
    let session = async |fields, headers| asked(fields, headers).await.session;
    let a = session(json!({"prompt_cache_key": "a"}), &[]).await;
    assert!(a.is_some());
    assert_eq!(session(json!({"user": "a"}), &[]).await, a);
    assert_eq!(session(json!({}), &[("x-session-affinity", "a")]).await, a);
    assert_eq!(session(json!({}), &[("x-multi-turn-session-id", "a")]).await, a);
    assert_eq!(session(json!({"user": "b"}), &[("x-session-affinity", "a")]).await, a);
    assert_eq!(session(json!({"prompt_cache_key": "a"}), &[("x-session-affinity", "b")]).await, a);
    assert_ne!(session(json!({"user": "b"}), &[]).await, a);
    assert_eq!(session(json!({"user": ""}), &[]).await, None);
    let long = "x".repeat(10 << 10); // 96
    assert!(session(json!({}), &[("x-session-affinity", &long)]).await.is_some());

    let salt = async |fields, headers| asked(fields, headers).await.cache_salt;
    let mine = salt(json!({"prompt_cache_isolation_key": "me"}), &[]).await;
    assert_eq!(mine.len(), 32);
    assert_eq!(salt(json!({}), &[("x-prompt-cache-isolation-key", "me")]).await, mine);
    assert_ne!(salt(json!({"prompt_cache_isolation_key": "you"}), &[]).await, mine);
    assert_eq!(salt(json!({}), &[]).await, "");
    assert_eq!(asked(json!({"prompt_cache_max_len": 0}), &[]).await.max_cached_tokens, Some(0));

    let mut unnamed = post("/v1/completions", r#"{"prompt":"hi"}"#);
    unnamed.headers_mut().insert("fireworks-model", "accounts/fireworks/models/tiny".parse().unwrap());
    assert_eq!(client.send(unnamed).await.json()["model"], "accounts/fireworks/models/tiny");
}

#[tokio::test]
async fn a_service_tier_is_a_priority_and_named_in_the_answer() {
    let client = Client::new();
    for (tier, priority, served) in [
        ("auto", 0, "default"),
        ("default", 0, "default"),
        ("flex", -1, "default"),
        ("priority", 1, "priority"),
    ] {
        let answer = client.chat(chat(json!({"service_tier": tier}))).await.json();
        assert_eq!((client.engine.asked().priority, &answer["service_tier"]), (priority, &json!(served)));
        let answer = client.chat(chat(json!({"service_tier": tier, "stream": true}))).await;
        assert!(events(&answer.body).iter().all(|event| event["service_tier"] == served));
    }
    assert_eq!(client.chat(chat(json!({}))).await.json().get("service_tier"), None);
}

#[tokio::test]
async fn the_best_of_several_is_answered_and_all_are_counted() {
    let client = Client::new(); // 69
    let finish = |delta: Delta| Delta {
        finish: delta.finish.map(|finish| Finish { cached_tokens: 1, ..finish }),
        ..delta
    };
    client.engine.will([
        Step::Batch(vec![candidate(3, "dd", -0.125), candidate(0, "aaaa", -0.5)]),
        Step::Batch(vec![candidate(1, "b", -0.25), candidate(2, "c", -0.75)]),
        Step::Batch(vec![finish(candidate(4, "", 0.0)), candidate(5, "f", -9.0)]),
    ]);
    let answer =
        client.complete(completion(json!({"prompt": ["hi", "ho"], "best_of": 3, "n": 2}))).await.json();
    let texts: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    // By the mean, not by the sum; what says nothing comes last.
    assert_eq!(texts, ["b", "aaaa", "dd", "f"]);
    let indices: Vec<_> =
        answer["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(answer["usage"]["completion_tokens"], 9);
    assert!(answer["choices"].as_array().unwrap().iter().all(|choice| choice["logprobs"].is_null()));
    let asked = client.engine.asked();
    assert_eq!((asked.n, asked.logprobs), (3, Some(0)));

    client.engine.will([Step::Batch(vec![echoed(), candidate(1, "no", -1.0)])]);
    let answer = client.complete(completion(json!({"best_of": 2, "logprobs": 2, "echo": true}))).await.json();
    assert_eq!(answer["choices"][0]["text"], "hiok", "the prompt's own likelihood doesn't count");
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], json!([null, -9.0, -0.5, -0.5]));
    assert_eq!(client.engine.asked().logprobs, Some(2));
}

#[tokio::test]
async fn echo_last_is_the_end_of_the_prompt() {
    let client = Client::new();
    for (fields, echo) in [
        (json!({"echo_last": 0}), 0),
        (json!({"echo_last": 1}), 1),
        (json!({"echo_last": 1, "echo": false}), 1),
        (json!({"echo_last": 1, "echo": true}), u32::MAX),
        (json!({"echo_last": 1e12}), u32::MAX),
    ] {
        client.complete(completion(fields.clone())).await;
        assert_eq!(client.engine.asked().echo, echo, "{fields}");
    }
}

#[tokio::test]
async fn token_ids_come_with_the_answer_where_asked_for() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![echoed()])]);
    let answer = client.complete(completion(json!({"return_token_ids": true, "echo": true}))).await.json();
    assert_eq!(answer["prompt_token_ids"], json!([104, 105]));
    assert_eq!(answer["choices"][0]["token_ids"], json!([111, 107]));
    assert_eq!(answer["choices"][0].get("raw_output"), None);
    let several = json!({"return_token_ids": true, "prompt": ["hi", "h"]});
    let answer = client.complete(completion(several)).await.json();
    assert_eq!(answer["prompt_token_ids"], json!([[104, 105], [104]]));
    let answer = client.complete(completion(json!({}))).await.json();
    assert!(answer.get("prompt_token_ids").is_none() && answer["choices"][0].get("token_ids").is_none());

    let stream = client.complete(completion(json!({"return_token_ids": true, "stream": true}))).await;
    let first = events(&stream.body).remove(0);
    assert_eq!((&first["prompt_token_ids"], &first["choices"][0]["text"]), (&json!([104, 105]), &json!("")));

    client.engine.will([
        Step::Batch(vec![Delta { finish: None, ..candidate(0, "o", -0.5) }]),
        Step::Batch(vec![Delta { text: String::new(), finish: None, ..candidate(0, "\u{7f}", -0.5) }]),
        Step::Batch(vec![candidate(0, "k", -0.5)]),
    ]);
    let stream = client.chat(chat(json!({"return_token_ids": true, "stream": true}))).await;
    let events = events(&stream.body);
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant"}));
    assert_eq!(events[0]["prompt_token_ids"].as_array().unwrap().len(), 40);
    let ids: Vec<_> =
        events.iter().filter_map(|event| event["choices"][0]["token_ids"].as_array()).flatten().collect();
    assert_eq!(ids, [111, 127, 107], "also of a token without text");
}

#[tokio::test]
async fn raw_output_is_what_went_in_and_what_came_out() {
    let client = Client::new();
    let expected = json!({"prompt_fragments": ["hi"], "prompt_token_ids": [104, 105], "completion": "ok",
        "completion_token_ids": [111, 107]});
    client.engine.will([Step::Batch(vec![echoed()])]);
    let answer = client.complete(completion(json!({"raw_output": true, "echo": true}))).await.json();
    assert_eq!(answer["choices"][0]["raw_output"], expected);

    client.engine.will([Step::Batch(vec![echoed()])]);
    let answer = client.complete(completion(json!({"raw_output": true, "stream": true}))).await;
    let events = events(&answer.body);
    let (finish, before) = events.split_last().unwrap();
    assert_eq!(finish["choices"][0]["raw_output"], expected);
    assert!(before.iter().all(|event| event["choices"][0].get("raw_output").is_none()));

    let several = json!({"raw_output": true, "logprobs": true, "prompt": ["hi", "ho"], "n": 2});
    let choices = (0..4).map(|choice| candidate(choice, "x", -0.5)).collect();
    client.engine.will([Step::Batch(choices)]);
    let answer = client.complete(completion(several)).await.json();
    let fragments: Vec<_> =
        (0..4).map(|i| &answer["choices"][i]["raw_output"]["prompt_fragments"][0]).collect();
    assert_eq!(fragments, ["hi", "hi", "ho", "ho"]);
    let logprobs = &answer["choices"][3]["raw_output"]["completion_logprobs"];
    assert_eq!(logprobs["content"][0]["logprob"], -0.5);
}

#[tokio::test]
async fn performance_is_told_in_the_body_where_asked_for() {
    let client = Client::new();
    let told = |metrics: &Value| {
        assert_eq!((&metrics["prompt-tokens"], &metrics["cached-prompt-tokens"]), (&json!(2), &json!(0)));
        let time = |name: &str| metrics[name].as_f64().unwrap();
        assert!(time("server-time-to-first-token") <= time("server-processing-time"));
        assert_eq!(metrics.as_object().unwrap().len(), 4);
    };
    let fields = json!({"perf_metrics_in_response": true});
    told(&client.complete(completion(fields)).await.json()["perf_metrics"]);
    client
        .engine
        .will([Step::Batch(vec![candidate(0, "a", -0.5)]), Step::Batch(vec![candidate(1, "b", -0.5)])]);
    let fields = json!({"perf_metrics_in_response": true, "stream": true, "n": 2});
    let events = events(&client.complete(completion(fields)).await.body);
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    told(&last["perf_metrics"]);
    assert!(before.iter().all(|event| event.get("perf_metrics").is_none()));
}

#[tokio::test]
async fn sampling_options_tell_what_is_in_effect() {
    let client = Client::new();
    let fields = json!({"frequency_penalty": 0.5, "mirostat_target": 3, "top_k": 7, "seed": 5, "best_of": 2});
    let answer = client.complete(completion(fields)).await;
    let options: Value = serde_json::from_str(answer.header("fireworks-sampling-options").unwrap()).unwrap();
    assert_eq!(
        options,
        json!({"temperature": 1.0, "top_p": 1.0, "top_k": 7, "min_p": 0.0, "typical_p": 1.0, "frequency_penalty": 0.5,
            "presence_penalty": 0.0, "repetition_penalty": 1.0, "mirostat_target": 3.0, "mirostat_lr": 0.1, "seed": 5,
            "max_tokens": 16, "n": 1})
    );
}

/// What the model was asked, as text.
fn prompt(client: &Client) -> String {
    let tokens = client.engine.asked().prompts[0].tokens.clone();
    let bytes = tokens.into_iter().flat_map(|id| match id {
        256 => b"<".to_vec(),
        257 => b">".to_vec(),
        byte => vec![byte as u8],
    });
    String::from_utf8(bytes.collect()).unwrap()
}

#[tokio::test]
async fn a_long_conversation_loses_its_oldest_turns() {
    let client = Client::new();
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = json!([
        message("system", "S"),
        message("user", "one"),
        message("assistant", "two"),
        message("tool", "2"),
        message("user", "three"),
        message("assistant", "four"),
        message("user", "five"),
    ]);
    let mut messages = messages;
    messages[3]["tool_call_id"] = json!("x");
    let ask = async |fields: Value| {
        let body = merge(json!({"model": "tiny", "messages": messages}), fields);
        let answer = client.chat(body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        prompt(&client)
    };
    let system = "<system\nS>\n";
    let first = "<user\none>\n<assistant\ntwo>\n<user\n<tool_response>\n2\n</tool_response>>\n";
    let second = "<user\nthree>\n<assistant\nfour>\n";
    let last = "<user\nfive>\n<assistant\n";
    let whole = [system, first, second, last].concat();
    assert_eq!(ask(json!({})).await, whole);
    let all = whole.chars().count();
    assert_eq!(ask(json!({"prompt_truncate_len": all})).await, whole);
    let without_first = [system, second, last].concat();
    assert_eq!(ask(json!({"prompt_truncate_len": all - 1})).await, without_first);
    assert_eq!(ask(json!({"prompt_truncate_len": without_first.len()})).await, without_first);
    let only_last = [system, last].concat();
    assert_eq!(ask(json!({"prompt_truncate_len": without_first.len() - 1})).await, only_last);
    // The template brings its own system message when there is none.
    let bare = ["<system\nBe brief.>\n", last].concat();
    assert_eq!(ask(json!({"prompt_truncate_len": 1})).await, bare);
    let safe = json!({"prompt_truncate_len": 1, "safe_tokenization": true});
    assert_eq!(ask(safe).await, whole, "the two exclude each other");
}
