//! Formats, tools and reasoning, as a client meets them.

use serde_json::{Value, json};
use volley_proto::v1::ModelCard;

use super::{Answer, Client, Step, done, events, text};
use crate::{
    config::Config,
    engine::Model,
    fixture,
    generation::{Delta, Finish, Reason, Token},
    text::output::Format,
};

const CALL: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2}}\n</tool_call>";

/// ChatML that knows tools and reasoning, as Qwen's does.
const QWEN: &str = "{% if tools %}TOOLS {% for tool in tools %}{{ tool | tojson }}{% endfor %} <tool_call>\n{% endif %}\
    {% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}\
    {% if message.reasoning_content %}[{{ message.reasoning_content }}]{% endif %}\
    {% for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}\
    {% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}\
    {% if reasoning_effort %}{{ 'EFFORT ' + reasoning_effort }}{% endif %}";
/// A model that always reasons.
const R1: &str = "{% for message in messages %}{{ message.content }}{% endfor %}{{ '<think>\n' }}";

fn client(template: &str) -> Client {
    serving(template, Config::default())
}

fn serving(template: &str, config: Config) -> Client {
    let card = ModelCard { name: "tiny".into(), has_chat_template: true, ..fixture::card() };
    let model = Model::new(card, &fixture::byte_level(&[]), Some(template)).unwrap();
    Client::serving(vec![model], config)
}

fn add() -> Value {
    json!({"name": "add", "description": "Adds.", "parameters": {"type": "object", "required": ["a", "b"],
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}})
}

fn chat(fields: Value) -> String {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "1+2?"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

fn with_tools(fields: Value) -> String {
    let mut all = json!({"tools": [{"type": "function", "function": add()}]});
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    chat(all)
}

/// What the model was asked, as text.
fn prompt(client: &Client) -> String {
    let asked = client.engine.asked();
    // Special tokens by their names.
    let spell = |token: &u32| match token.checked_sub(fixture::WORDS) {
        None => vec![*token as u8],
        Some(0) => b"<|im_start|>".to_vec(),
        Some(_) => b"<|im_end|>".to_vec(),
    };
    String::from_utf8(asked.prompts[0].tokens.iter().flat_map(spell).collect()).unwrap()
}

fn choice(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["choices"][0].clone()
}

#[tokio::test]
async fn calls_are_apart_from_the_content() {
    let client = client(QWEN);
    client.engine.will([Step::Batch(vec![done(0, CALL, Reason::Stop, 9)])]);
    let said = choice(&client.chat(with_tools(json!({}))).await);
    assert_eq!(said["finish_reason"], "tool_calls");
    let message = said["message"].as_object().unwrap();
    let keys: Vec<_> = message.keys().map(String::as_str).collect();
    assert_eq!(keys, ["role", "content", "refusal", "tool_calls"], "nothing else, not even null");
    assert_eq!(message["content"], Value::Null);
    let call = &message["tool_calls"][0];
    let id = call["id"].as_str().unwrap();
    assert!(id.starts_with("call_") && id.len() >= 21 && id[5..].bytes().all(|c| c.is_ascii_alphanumeric()));
    assert_eq!(
        *call,
        json!({"id": id, "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}})
    );
    assert!(prompt(&client).starts_with("TOOLS {\"type\": \"function\", \"function\": {\"name\": \"add\""));

    client.engine.will([Step::Batch(vec![done(0, &format!("Sure.\n{CALL}\n{CALL}"), Reason::Stop, 9)])]);
    let both = choice(&client.chat(with_tools(json!({}))).await)["message"].clone();
    assert_eq!((both["content"].as_str(), both["tool_calls"].as_array().unwrap().len()), (Some("Sure."), 2));
    assert_ne!(both["tool_calls"][0]["id"], both["tool_calls"][1]["id"]);
}

#[tokio::test]
async fn calls_are_streamed_as_fragments() {
    let client = client(QWEN);
    let (begin, end) = CALL.split_at(CALL.find("\"b\"").unwrap());
    client.engine.will([Step::Batch(vec![text(0, begin)]), Step::Batch(vec![done(0, end, Reason::Stop, 9)])]);
    let answer = client.chat(with_tools(json!({"stream": true}))).await;
    let deltas: Vec<Value> =
        events(&answer.body).iter().map(|event| event["choices"][0]["delta"].clone()).collect();
    let id = deltas[1]["tool_calls"][0]["id"].clone();
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant"}),
            json!({"tool_calls": [{"index": 0, "id": id, "type": "function", "function": {"name": "add", "arguments": ""}}]}),
            json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\": 1, "}}]}),
            json!({"tool_calls": [{"index": 0, "function": {"arguments": "\"b\": 2}"}}]}),
            json!({}),
        ]
    );
    assert_eq!(events(&answer.body)[4]["choices"][0]["finish_reason"], "tool_calls");
    assert!(!answer.body.contains("content"), "there was none");
}

#[tokio::test]
async fn a_call_that_was_cut_says_so() {
    let client = client(QWEN);
    for stream in [false, true] {
        client.engine.will([Step::Batch(vec![done(0, &CALL[..CALL.len() - 16], Reason::Length, 9)])]);
        let answer = client.chat(with_tools(json!({"stream": stream}))).await;
        assert!(answer.body.contains("\"finish_reason\":\"length\""), "{}", answer.body);

        client.engine.will([Step::Batch(vec![done(0, &CALL[..16], Reason::Length, 9)])]);
        let answer = client.chat(with_tools(json!({"stream": stream, "tool_choice": "required"}))).await;
        assert!(answer.body.contains("\"finish_reason\":\"length\""), "{}", answer.body);
        assert!(!answer.body.contains("tool_call>"), "its markup is no answer: {}", answer.body);
    }
}

#[tokio::test]
async fn without_parallel_calls_a_choice_ends_with_its_first() {
    let client = client(QWEN);
    for stream in [false, true] {
        client.engine.will([
            Step::Batch(vec![text(0, CALL)]),
            Step::Batch(vec![text(0, CALL)]),
            Step::Hang, // it would go on
        ]);
        let body = with_tools(json!({"parallel_tool_calls": false, "stream": stream}));
        let answer = client.chat(body).await; // 79
        assert_eq!(answer.body.matches("\"name\":\"add\"").count(), 1, "{}", answer.body);
        assert!(answer.body.contains("\"finish_reason\":\"tool_calls\""));
    }
    assert_eq!(client.engine.cancelled(), 2, "the rest is not generated");
}

#[tokio::test]
async fn functions_are_answered_as_they_were_asked() {
    let client = client(QWEN);
    client.engine.will([Step::Batch(vec![done(0, CALL, Reason::Stop, 9)])]);
    let said = choice(&client.chat(chat(json!({"functions": [add()]}))).await);
    assert_eq!(said["finish_reason"], "function_call");
    assert_eq!(
        said["message"],
        json!({"role": "assistant", "content": null, "refusal": null,
            "function_call": {"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}})
    );
    client.engine.will([Step::Batch(vec![done(0, CALL, Reason::Stop, 9)])]);
    let answer = client.chat(chat(json!({"functions": [add()], "stream": true}))).await;
    let deltas: Vec<Value> =
        events(&answer.body).iter().map(|event| event["choices"][0]["delta"].clone()).collect();
    assert_eq!(deltas[1], json!({"function_call": {"name": "add", "arguments": ""}}));
    assert_eq!(deltas[2], json!({"function_call": {"arguments": "{\"a\": 1, \"b\": 2}"}}));
}

#[tokio::test]
async fn a_choice_of_none_or_no_tools_reads_no_calls() {
    let client = client(QWEN);
    for body in [with_tools(json!({"tool_choice": "none"})), chat(json!({}))] {
        client.engine.will([Step::Batch(vec![done(0, CALL, Reason::Stop, 9)])]);
        let said = choice(&client.chat(body).await);
        assert_eq!(
            (said["message"]["content"].as_str(), &said["finish_reason"]),
            (Some(CALL), &json!("stop"))
        );
        assert!(!prompt(&client).contains("TOOLS"));
    }
}

#[tokio::test]
async fn forced_calls_have_a_grammar_in_the_format_of_the_model() {
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "add"}}});
    for (format, begins) in [
        (Format::Hermes, "<tool_call>"),
        (Format::Llama, r#"{\"name\": \"add\", \"parameters\": "#),
        (Format::Pythonic, r#""add(""#),
        (Format::Mistral, "[TOOL_CALLS]"),
    ] {
        let client = serving(QWEN, Config { tool_format: Some(format), ..Config::default() });
        for fields in [&named, &json!({"tool_choice": "required"}), &json!({"tool_choice": "any"})] {
            let answer = client.chat(with_tools(fields.clone())).await;
            assert_eq!(answer.status, 200, "{format:?}: {}", answer.body);
            let grammar = client.engine.asked().grammar.unwrap();
            assert!(grammar.text().contains(begins), "{format:?}: {grammar:?}");
        }
    }
    let client = client(QWEN);
    client.chat(with_tools(json!({"ignore_eos": true}))).await;
    assert!(client.engine.asked().grammar.is_none() && client.engine.asked().ignore_eos);
    client.chat(with_tools(json!({"ignore_eos": true, "tool_choice": "required"}))).await;
    assert!(!client.engine.asked().ignore_eos, "what can only end must end");
}

#[tokio::test]
async fn a_template_without_tools_is_told_in_words() {
    let client = client(fixture::CHAT_TEMPLATE);
    let conversation = json!({"messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{\"a\":1}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"}]});
    client.engine.will([Step::Batch(vec![done(0, CALL, Reason::Stop, 9)])]);
    let said = choice(&client.chat(with_tools(conversation)).await);
    assert_eq!(said["finish_reason"], "tool_calls");
    let prompt = prompt(&client);
    for part in [
        "system\nBe kind.\n\nYou may call functions",
        "\"name\":\"add\",\"description\":\"Adds.\"",
        "assistant\n<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n</tool_call>",
        "user\n<tool_response>\n3\n</tool_response>",
    ] {
        assert!(prompt.contains(part), "{part} in {prompt}");
    }
}

#[tokio::test]
async fn what_an_answer_has_is_accepted_back() {
    let client = client(QWEN);
    client.engine.will([Step::Batch(vec![done(0, &format!("<think>Easy.</think>{CALL}"), Reason::Stop, 9)])]);
    let message = choice(&client.chat(with_tools(json!({}))).await)["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let mut dumped = message.clone();
    // SDKs add these when they dump a message.
    for key in ["function_call", "audio", "annotations", "parsed"] {
        dumped[key] = Value::Null;
    }
    dumped["tool_calls"][0]["index"] = 0.into();
    let messages = json!([{"role": "user", "content": "1+2?"}, dumped,
        {"role": "tool", "tool_call_id": id, "content": "3"}]);
    let answer = client.chat(with_tools(json!({"messages": messages}))).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // The template gets an object, and the reasoning.
    assert!(prompt(&client).contains("assistant\n[Easy.]add{\"a\": 1, \"b\": 2}"), "{}", prompt(&client));
    let answer =
        client.chat(with_tools(json!({"messages": messages, "reasoning_history": "disabled"}))).await;
    assert!(answer.status == 200 && !prompt(&client).contains("Easy."));
}

#[tokio::test]
async fn special_tokens_in_tools_stay_text() {
    let client = client(QWEN);
    let mut tool = add();
    tool["description"] = "<|im_end|>".into();
    let answer = client.chat(chat(json!({"tools": [{"type": "function", "function": tool}]}))).await;
    assert_eq!(answer.status, 200);
    let end = fixture::WORDS + 1;
    let tokens = client.engine.asked().prompts[0].tokens.clone();
    assert_eq!(tokens.iter().filter(|token| **token == end).count(), 1, "the one of the message");
    assert!(prompt(&client).contains("<|im_end|>"));
}

fn thought() -> Vec<Step> {
    // A letter a token.
    let whole = "<think>\nhm\n</think>\nYes";
    let token = |(at, c): (usize, char)| Token {
        id: 0,
        bytes: c.to_string().into_bytes(),
        text_offset: at as u32,
        echoed: false,
        logprob: None,
        top: Vec::new(),
    };
    let mut steps: Vec<Step> = whole
        .chars()
        .enumerate()
        .map(|(at, c)| {
            Step::Batch(vec![Delta { text: c.into(), tokens: vec![token((at, c))], ..Delta::default() }])
        })
        .collect();
    let finish = Some(Finish {
        reason: Reason::Stop,
        completion_tokens: whole.len() as u32,
        cached_tokens: 0,
        stop: None,
    });
    steps.push(Step::Batch(vec![Delta { finish, ..Delta::default() }]));
    steps
}

#[tokio::test]
async fn reasoning_is_apart_from_the_answer_and_counted() {
    let client = client(QWEN);
    client.engine.will(thought());
    let answer = client.chat(chat(json!({}))).await;
    assert_eq!(
        choice(&answer)["message"],
        json!({"role": "assistant", "content": "Yes", "refusal": null, "reasoning_content": "hm"})
    );
    let usage = &answer.json()["usage"];
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 20);
    assert_eq!(usage["completion_tokens"], 23);

    client.engine.will(thought());
    let answer = client.chat(chat(json!({"stream": true}))).await;
    let said = |key: &str| -> String {
        events(&answer.body)
            .iter()
            .filter_map(|event| event["choices"][0]["delta"][key].as_str().map(str::to_owned))
            .collect()
    };
    assert_eq!((said("reasoning_content"), said("content")), ("hm".into(), "Yes".into()));
    let usage = events(&answer.body).last().unwrap()["usage"].clone();
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 20);
}

#[tokio::test]
async fn reasoning_is_switched_and_measured_by_the_template() {
    let client = client(QWEN);
    for (fields, prompt_ends) in [
        (json!({}), "assistant\n"),
        (json!({"reasoning_effort": "none"}), "<think></think>"),
        (json!({"reasoning_effort": 0}), "<think></think>"),
        (json!({"thinking": {"type": "disabled"}}), "<think></think>"),
        (json!({"reasoning_effort": true}), "EFFORT medium"),
        (json!({"reasoning_effort": "high"}), "EFFORT high"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 2048}}), "assistant\n"),
        // An answer that must be of some form is given at once.
        (json!({"response_format": {"type": "json_object"}}), "<think></think>"),
        (json!({"response_format": {"type": "json_object"}, "reasoning_effort": "low"}), "EFFORT low"),
    ] {
        let answer = client.chat(chat(fields.clone())).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(prompt(&client).ends_with(prompt_ends), "{fields}: {}", prompt(&client));
    }
}

#[tokio::test]
async fn a_model_that_always_reasons_starts_in_the_middle() {
    let client = client(R1);
    client.engine.will([Step::Batch(vec![done(0, "hm</think>Yes", Reason::Stop, 3)])]);
    let message = choice(&client.chat(chat(json!({}))).await)["message"].clone();
    assert_eq!(
        (message["reasoning_content"].as_str(), message["content"].as_str()),
        (Some("hm"), Some("Yes"))
    );
    let answer = client.chat(chat(json!({"reasoning_effort": "none"}))).await; // 94
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("Invalid reasoning effort: none"));
    let answer = client.chat(chat(json!({"response_format": {"type": "json_object"}}))).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let grammar = client.engine.asked().grammar.unwrap();
    assert!(grammar.text().starts_with("start: reasoning"), "the form is that of what follows: {grammar:?}");
}

#[tokio::test]
async fn every_shape_of_a_format_comes_to_the_same_grammar() {
    let client = client(QWEN);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let shapes = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}}}),
        json!({"response_format": {"type": "json_schema", "json_schema": schema}}),
        json!({"response_format": {"type": "json_schema", "json_schema": schema.to_string()}}),
        json!({"response_format": {"type": "json_object", "schema": schema}}),
        json!({"guided_json": schema}),
    ];
    let mut grammars = std::collections::HashSet::new();
    for shape in shapes {
        assert_eq!(client.chat(chat(shape)).await.status, 200);
        grammars.insert(client.engine.asked().grammar.unwrap());
    }
    assert_eq!(grammars.len(), 1);
    for (one, other) in [
        (json!({"response_format": {"type": "regex", "regex": "a+"}}), json!({"guided_regex": "a+"})),
        (json!({"response_format": {"type": "choice", "choice": ["a"]}}), json!({"guided_choice": ["a"]})),
        (
            json!({"response_format": {"type": "grammar", "grammar": "root ::= \"a\""}}),
            json!({"guided_grammar": "root ::= \"a\""}),
        ),
    ] {
        let mut pair = Vec::new();
        for body in [one, other] {
            assert_eq!(client.chat(chat(body)).await.status, 200);
            pair.push(client.engine.asked().grammar.unwrap());
        }
        assert_eq!(pair[0], pair[1]);
    }
    client.chat(chat(json!({"response_format": {"type": "text"}}))).await;
    assert!(client.engine.asked().grammar.is_none());
}
