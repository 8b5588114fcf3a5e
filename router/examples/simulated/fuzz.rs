//! Bodies that are almost right: good ones, with parts taken out, put elsewhere, or replaced by what parsers fear.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::client::Clients;

/// An answer that takes longer is a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

/// What was answered, by status, and the slowest answer.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) slowest: Duration,
}

/// Asks until `end`; panics at a 5xx, a hang, or a connection that breaks off.
pub(crate) async fn ask_until(end: Instant, clients: &Clients, mut random: Random) -> Answers {
    let corpus = corpus();
    let (mut answers, mut socket) = (Answers::default(), None);
    while Instant::now() < end {
        let (path, good) = random.pick(&corpus);
        let body = random.almost(good, &corpus);
        let request = clients.request(path, &body);
        let began = Instant::now();
        let mut connection = match socket.take() {
            Some(connection) => connection,
            None => clients.connect().await,
        };
        let status = timeout(PATIENCE, exchange(&mut connection, &request)).await;
        let shown = || String::from_utf8_lossy(&body[..body.len().min(4096)]).into_owned();
        let (status, keep) = match status {
            Ok(Some(answer)) => answer,
            Ok(None) => panic!("the connection broke at {path} {}", shown()),
            Err(_) => panic!("no answer in {PATIENCE:?} to {path} {}", shown()),
        };
        // An overloaded or limited server may say so; nothing else is the server's fault here.
        assert!(status < 500 || status == 503, "{status} to {path} {}", shown());
        socket = keep.then_some(connection);
        *answers.statuses.entry(status).or_default() += 1;
        answers.slowest = answers.slowest.max(began.elapsed());
    }
    answers
}

/// The status, and whether the connection goes on.
async fn exchange(socket: &mut TcpStream, request: &[u8]) -> Option<(u16, bool)> {
    socket.write_all(request).await.ok()?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        let read = socket.read(&mut buffer).await.ok()?;
        answer.extend_from_slice(&buffer[..read]);
        let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
            if read == 0 {
                return None;
            }
            continue;
        };
        let headers = String::from_utf8_lossy(&answer[..head]).to_lowercase();
        let length =
            headers.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let whole = match length {
            Some(length) => answer.len() >= head + 4 + length,
            None => answer.ends_with(b"\r\n0\r\n\r\n"),
        };
        if whole {
            return Some((headers[9..12].parse().ok()?, !headers.contains("connection: close")));
        }
        if read == 0 {
            return None;
        }
    }
}

/// Good bodies that between them have every field.
fn corpus() -> Vec<(&'static str, Value)> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/b"}}},
        "required": ["a"], "additionalProperties": false, "$defs": {"b": {"enum": [1, "x", null]}}});
    let tool =
        json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}});
    let mut shared = json!({"model": "tiny", "max_tokens": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
        "typical_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": 0.1, "repetition_penalty": 1.1, "n": 2,
        "seed": 7, "stop": ["x", "yy"], "logit_bias": {"5": -1}, "ignore_eos": true, "min_tokens": 1, "user": "u",
        "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k", "prompt_cache_max_len": 5,
        "perf_metrics_in_response": true, "return_token_ids": true, "raw_output": true,
        "context_length_exceeded_behavior": "truncate", "include_stop_str_in_output": true});
    let mut with = |more: Value| {
        let mut body = shared.as_object_mut().map(|map| map.clone()).unwrap_or_default();
        body.extend(more.as_object().cloned().unwrap_or_else(Map::new));
        Value::Object(body)
    };
    vec![
        (
            "chat/completions",
            with(json!({"messages": [{"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "t"}], "name": "n"}], "logprobs": true,
            "top_logprobs": 2, "stream": true, "stream_options": {"include_usage": true}})),
        ),
        (
            "chat/completions",
            json!({"model": "tiny", "tools": [tool], "tool_choice": "auto", "messages": [
            {"role": "user", "content": "u"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c",
            "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "5"}], "parallel_tool_calls": true}),
        ),
        (
            "chat/completions",
            json!({"model": "tiny", "messages": [{"role": "user", "content": "u"}], "max_tokens": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}),
        ),
        (
            "chat/completions",
            json!({"model": "tiny", "messages": [{"role": "user", "content": "u"}],
            "functions": [{"name": "f", "parameters": schema}], "function_call": {"name": "f"},
            "reasoning_effort": "low", "prompt_truncate_len": 50, "safe_tokenization": false}),
        ),
        ("completions", with(json!({"prompt": ["a", "b"], "echo": true, "logprobs": 2}))),
        ("completions", with(json!({"prompt": [[1, 2, 3]], "stream": true, "echo_last": 2}))),
        (
            "completions",
            json!({"model": "tiny", "prompt": "p", "best_of": 2, "n": 1, "guided_regex": "[a-z]+"}),
        ),
        (
            "completions",
            json!({"model": "tiny", "prompt": "p", "max_tokens": 0, "response_format":
            {"type": "grammar", "grammar": "root ::= \"a\" root | \"b\""}}),
        ),
        (
            "embeddings",
            json!({"model": "tiny", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 2}),
        ),
        (
            "responses",
            json!({"model": "tiny", "input": [{"role": "user", "content": [{"type": "input_text", "text": "t"}]}],
            "instructions": "i", "max_output_tokens": 3, "text": {"format": {"type": "text"}}, "store": false,
            "tools": [{"type": "function", "name": "f", "parameters": schema}], "stream": true}),
        ),
        (
            "messages",
            json!({"model": "tiny", "max_tokens": 3, "system": "s", "stop_sequences": ["x"],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "t"}]}], "stream": true}),
        ),
        ("tokenize", json!({"model": "tiny", "prompt": "p"})),
        ("detokenize", json!({"model": "tiny", "tokens": [1, 2]})),
    ]
}

// === impl Random ===

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let n = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((n ^ (n >> 31)) >> 1) as usize % bound
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A body near `good`.
    fn almost(&mut self, good: &Value, corpus: &[(&str, Value)]) -> Vec<u8> {
        let mut body = good.clone();
        for _ in 0..self.below(4) {
            let replacement = self.value(corpus);
            self.change(&mut body, replacement);
        }
        let mut bytes = body.to_string().into_bytes();
        if self.below(4) == 0 {
            self.spoil(&mut bytes);
        }
        bytes
    }

    /// Changes something, somewhere below.
    fn change(&mut self, value: &mut Value, replacement: Value) {
        let deeper = self.below(4) > 0;
        match value {
            Value::Object(map) if !map.is_empty() => {
                let key = map.keys().nth(self.below(map.len())).cloned().unwrap_or_default();
                match self.below(8) {
                    0 => drop(map.remove(&key)),
                    1 => drop(map.insert(format!("{key}_"), replacement)),
                    _ if deeper => self.change(&mut map[&key], replacement),
                    _ => drop(map.insert(key, replacement)),
                }
            }
            Value::Array(list) if !list.is_empty() => {
                let at = self.below(list.len());
                match self.below(8) {
                    0 => drop(list.remove(at)),
                    1 => list.insert(at, replacement),
                    2 => *list = vec![list[at].clone(); self.below(300)],
                    _ if deeper => self.change(&mut list[at], replacement),
                    _ => list[at] = replacement,
                }
            }
            leaf => *leaf = replacement,
        }
    }

    /// Something that a parser may not expect.
    fn value(&mut self, corpus: &[(&str, Value)]) -> Value {
        const TEXTS: [&str; 12] = [
            "",
            "\0",
            "\u{feff}",
            "\u{2028}",
            "<|im_end|>",
            "🎉",
            "\\ud800",
            "null",
            "(a+)+$",
            "#/$defs/b",
            "NaN",
            "{{7*7}}",
        ];
        match self.below(14) {
            0 => Value::Null,
            1 => (self.below(2) == 0).into(),
            2 => json!([-1, 0, 1, 2, 5, 100][self.below(6)]),
            3 => json!([1e308, -1e308, 0.5, 1e-320, -0.0, 2.000_001][self.below(6)]),
            4 => json!([i64::MAX, i64::MIN, 1 << 32, 1 << 53][self.below(4)]),
            5 => json!(u64::MAX),
            6 => (*self.pick(&TEXTS)).into(),
            7 => "long ".repeat(self.below(20_000)).into(),
            8 => (0..self.below(300)).fold(json!(1), |inner, _| json!([inner])),
            9 => (0..self.below(300)).fold(json!("x"), |inner, i| json!({ (format!("k{}", i % 3)): inner })),
            10 => json!({}),
            11 => json!([]),
            12 => Value::from(vec![self.below(70_000); self.below(3000)]),
            // A part of another body.
            _ => {
                let (_, body) = self.pick(corpus);
                let mut part = body;
                while let Some(map) = part.as_object().filter(|map| !map.is_empty()) {
                    part = map.values().nth(self.below(map.len())).unwrap_or(part);
                    if self.below(2) == 0 {
                        break;
                    }
                }
                part.clone()
            }
        }
    }

    /// Breaks the bytes themselves.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.below(5) {
            0 => bytes.truncate(at),
            1 => bytes[at] = self.below(256) as u8,
            2 => bytes.insert(at, self.below(256) as u8),
            3 => bytes.extend_from_within(at..),
            _ => bytes[at] = *self.pick(b"{}[]\",:\\0-"),
        }
    }
}
