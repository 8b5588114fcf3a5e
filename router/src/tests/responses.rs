//! OpenAI's Responses API, over HTTP.

use axum::{body::Body, extract::Request};
use http::Method;
use serde_json::{Value, json};

use super::{Answer, Client, Step, done, next_event, post, text};
use crate::{
    config::Config,
    engine::StreamError,
    generation::{Delta, Finish, Reason},
    http::auth::Keys,
};

async fn ask(client: &Client, fields: Value) -> Answer {
    client.send(post("/v1/responses", body(fields))).await
}

fn body(fields: Value) -> String {
    let mut body = json!({"model": "tiny", "input": "hi"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string()
}

async fn about(client: &Client, method: Method, id: &Value, more: &str) -> Answer {
    let path = format!("/v1/responses/{}{more}", id.as_str().unwrap());
    client.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await
}

/// What the model was shown.
fn shown(client: &Client) -> String {
    let bytes: Vec<u8> = client.engine.asked().prompts[0].tokens.iter().map(|id| *id as u8).collect();
    String::from_utf8_lossy(&bytes).replace(['\0', '\u{1}'], "|").replace("|\n|", "|")
}

fn ended(reason: Reason) -> Step {
    let finish = Some(Finish { reason, completion_tokens: 3, cached_tokens: 16, stop: None });
    Step::Batch(vec![Delta { finish, ..text(0, "lo") }])
}

#[tokio::test]
async fn a_response_has_every_key_that_clients_know() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![text(0, "Hel")]), ended(Reason::Stop)]);
    let fields = json!({"instructions": "Be good.", "max_output_tokens": 9, "temperature": 0.5,
        "metadata": {"a": "b"}, "user": "me"});
    let mut response = ask(&client, fields).await.json();
    assert!(response["id"].take().as_str().unwrap().starts_with("resp_"));
    assert!(response["created_at"].take().is_u64() && response["completed_at"].take().is_u64());
    assert!(response["output"][0]["id"].take().as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        response,
        json!({"id": null, "object": "response", "created_at": null, "completed_at": null,
            "status": "completed", "background": false, "error": null, "incomplete_details": null,
            "instructions": "Be good.", "max_output_tokens": 9, "max_tool_calls": null, "model": "tiny",
            "output": [{"type": "message", "id": null, "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]}],
            "parallel_tool_calls": true, "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null}, "service_tier": "default", "store": true,
            "temperature": 0.5, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
            "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled",
            "usage": {"input_tokens": 39, "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
                "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 42},
            "user": "me", "metadata": {"a": "b"}})
    );
    assert_eq!(shown(&client), "|system\nBe good.|user\nhi|assistant\n");
    assert_eq!(client.engine.asked().max_tokens, 9);
}

#[tokio::test]
async fn a_stream_has_its_events_in_order_and_ends_with_the_whole() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![text(0, "Hel")]), ended(Reason::Length)]);
    let answer = ask(&client, json!({"stream": true})).await;
    let mut events = Vec::new();
    for event in answer.body.split_terminator("\n\n") {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        assert_eq!(data["sequence_number"], events.len());
        events.push(data);
    }
    let names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    assert_eq!((&events[4]["delta"], &events[6]["text"]), (&json!("Hel"), &json!("Hello")));
    let item = &events[8]["item"];
    assert!(events[3..8].iter().all(|event| event["item_id"] == item["id"]));
    let response = &events[9]["response"];
    assert_eq!((&response["output"][0], &response["status"]), (item, &json!("incomplete")));
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(response["usage"]["total_tokens"], 43);
    assert_eq!(about(&client, Method::GET, &response["id"], "").await.json(), *response);
}

#[tokio::test]
async fn a_response_goes_on_from_the_one_before_without_its_instructions() {
    let client = Client::new();
    let first = ask(&client, json!({"instructions": "Be good."})).await.json();
    let next = json!({"previous_response_id": first["id"], "input": [{"role": "user", "content": "more"}]});
    let second = ask(&client, next).await.json();
    assert_eq!(second["previous_response_id"], first["id"]);
    assert_eq!(shown(&client), "|system\nBe brief.|user\nhi|assistant\nok|user\nmore|assistant\n");
    ask(&client, json!({"previous_response_id": second["id"]})).await;
    assert!(shown(&client).ends_with("|assistant\nok|user\nmore|assistant\nok|user\nhi|assistant\n"));
}

#[tokio::test]
async fn a_response_is_kept_until_it_is_deleted_and_for_its_tenant_alone() {
    let client = Client::with(Config { keys: Keys::new(["one", "two"]), ..Config::default() });
    let with = |key: &str, mut request: Request| {
        request.headers_mut().insert("api-key", key.parse().unwrap());
        request
    };
    let response = client.send(with("one", post("/v1/responses", body(json!({}))))).await.json();
    let path = format!("/v1/responses/{}", response["id"].as_str().unwrap());
    let request = |method: Method, key| {
        with(key, Request::builder().method(method).uri(&path).body(Body::empty()).unwrap())
    };
    assert_eq!(client.send(request(Method::GET, "two")).await.status, 404);
    assert_eq!(client.send(request(Method::DELETE, "two")).await.status, 404);
    let theirs = json!({"previous_response_id": response["id"]});
    assert_eq!(client.send(with("two", post("/v1/responses", body(theirs)))).await.status, 404);
    let cancel = post(&format!("{path}/cancel"), Body::empty());
    assert_eq!(client.send(with("two", cancel)).await.status, 404);
    assert_eq!(client.send(request(Method::GET, "one")).await.json(), response);
    let deleted = client.send(request(Method::DELETE, "one")).await.json();
    assert_eq!(deleted, json!({"id": response["id"], "object": "response", "deleted": true}));
    let gone = client.send(request(Method::GET, "one")).await;
    assert_eq!((gone.status.as_u16(), &gone.json()["error"]["code"]), (404, &json!("not_found")));
}

#[tokio::test]
async fn unknown_nulls_are_nothing() {
    let client = Client::new();
    let item = json!({"role": "user", "content": "a", "phase": null});
    assert_eq!(ask(&client, json!({"input": [item], "conversation_of": null})).await.status, 200);
}

#[tokio::test]
async fn what_is_not_to_be_stored_is_not() {
    let client = Client::new();
    let response = ask(&client, json!({"store": false})).await.json();
    assert_eq!((&response["store"], response["status"].as_str()), (&json!(false), Some("completed")));
    assert_eq!(about(&client, Method::GET, &response["id"], "").await.status, 404);
}

#[tokio::test]
async fn a_running_response_can_be_looked_at_and_cancelled() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![text(0, "Hel")]), Step::Hang]);
    let mut stream = client.open(post("/v1/responses", body(json!({"stream": true})))).await.into_body();
    let created = next_event(&mut stream).await.unwrap();
    let id =
        serde_json::from_str::<Value>(created.split_once("data: ").unwrap().1).unwrap()["response"]["id"]
            .clone();
    while !next_event(&mut stream).await.unwrap().contains("Hel") {}
    assert_eq!(about(&client, Method::GET, &id, "").await.json()["status"], "in_progress");
    assert_eq!(about(&client, Method::POST, &id, "/cancel").await.json()["status"], "cancelled");
    let mut last = String::new();
    while let Some(event) = next_event(&mut stream).await {
        last = event;
    }
    assert!(last.contains("\"status\":\"cancelled\"") && last.contains("\"text\":\"Hel\""), "{last}");
    assert_eq!(client.engine.cancelled(), 1);
    assert_eq!(about(&client, Method::GET, &id, "").await.json()["status"], "cancelled");
    assert_eq!(about(&client, Method::POST, &id, "/cancel").await.status, 400);
    drop(stream);
    let unknown = json!("resp_000000000000ffff");
    assert_eq!(about(&client, Method::POST, &unknown, "/cancel").await.status, 404);
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_a_failed_response() {
    let client = Client::new();
    client.engine.will([Step::Batch(vec![text(0, "a")]), Step::Fail(StreamError::Lost("gone".into()))]);
    let answer = ask(&client, json!({"stream": true})).await;
    let last = answer.body.split_terminator("\n\n").last().unwrap();
    let last: Value =
        serde_json::from_str(last.strip_prefix("event: response.failed\ndata: ").unwrap()).unwrap();
    let response = &last["response"];
    assert_eq!((&response["status"], &response["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert_eq!(response["output"][0]["status"], "incomplete");
}

#[tokio::test]
async fn items_become_the_templates_messages() {
    let client = Client::new();
    let input = json!([
        {"role": "developer", "content": [{"type": "input_text", "text": "Be"}, {"type": "input_text", "text": "!"}]},
        {"type": "message", "role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"role": "user", "content": [{"type": "input_text", "text": "so?"}]},
    ]);
    assert_eq!(ask(&client, json!({"input": input})).await.status, 200);
    assert_eq!(
        shown(&client),
        "|system\nBe!|user\na|assistant\nb\n<tool_call>\n{\"name\":\"f\",\"arguments\":{}}\n</tool_call>\
         |user\n<tool_response>\n42\n</tool_response>|user\nso?|assistant\n"
    );
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_by_its_field() {
    let client = Client::new();
    for (fields, status, param) in [
        (json!({"model": null}), 400, "model"),
        (json!({"input": null}), 400, "input"),
        (json!({"input": []}), 400, "input"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), 400, "input[0].role"),
        (json!({"input": [{"role": "user"}]}), 400, "input[0].content"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), 400, "input[0].type"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]}),
            400,
            "input[0].content[0].type",
        ),
        (json!({"max_output_tokens": 0}), 400, "max_output_tokens"),
        (json!({"temperature": 3}), 400, "temperature"),
        (json!({"background": true}), 400, "background"),
        (json!({"conversation": "c"}), 400, "conversation"),
        (json!({"prompt": {"id": "p"}}), 400, "prompt"),
        (json!({"tools": [{"type": "web_search"}]}), 400, "tools[0].type"),
        (json!({"tools": [{"type": "function", "name": "a b"}]}), 400, "tools[0].name"),
        (json!({"tool_choice": "required"}), 400, "tool_choice"),
        (json!({"text": {"format": {"type": "yaml"}}}), 400, "text.format.type"),
        (json!({"bogus": 1}), 400, "bogus"),
        (json!({"previous_response_id": "resp_x"}), 404, "previous_response_id"), // 97
    ] {
        let answer = ask(&client, fields.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (status, &json!(param)),
            "{fields}"
        );
    }
    let done = [Step::Batch(vec![done(0, "", Reason::Stop, 0)])];
    client.engine.will(done);
    assert_eq!(ask(&client, json!({})).await.json()["output"][0]["content"][0]["text"], "");
}
