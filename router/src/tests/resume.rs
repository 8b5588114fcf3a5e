//! A stream that is taken up again goes on with the bytes of the one that was lost.

use http::HeaderValue;
use serde_json::json;

use super::{Answer, Client, Step, done, post, text};
use crate::generation::{Delta, Reason};

/// Two choices: words, and a call.
fn script() -> Vec<Step> {
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    let (head, tail) = call.split_at(30);
    vec![
        Step::Batch(vec![text(0, "Hel"), text(1, head)]),
        Step::Batch(vec![text(1, tail)]),
        Step::Batch(vec![text(0, "lo"), done(1, "", Reason::Stop, 9)]),
        Step::Batch(vec![done(0, "!", Reason::Stop, 3)]),
    ]
}

/// The same deltas in other steps: what another worker's timing makes of them.
fn otherwise_timed() -> Vec<Step> {
    let mut deltas: Vec<Delta> = Vec::new();
    for step in script() {
        let Step::Batch(batch) = step else { panic!("steps are batches") };
        deltas.extend(batch);
    }
    deltas.sort_by_key(|delta| std::cmp::Reverse(delta.choice));
    vec![Step::Batch(deltas)]
}

async fn ask(
    client: &Client,
    path: &str,
    fields: serde_json::Value,
    resume: &[(&'static str, &str)],
) -> Answer {
    let mut body = json!({"model": "tiny", "stream": true, "n": 2, "temperature": 1,
        "stream_options": {"include_usage": true}});
    match path {
        "/v1/completions" => body["prompt"] = "Hi".into(),
        _ => {
            body["messages"] = json!([{"role": "user", "content": "Hi"}]);
            body["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
        }
    }
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut request = post(path, body.to_string());
    for (name, value) in resume {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    client.send(request).await
}

/// Events as (id, data).
fn identified(answer: &Answer) -> Vec<(Option<&str>, &str)> {
    let events = answer.body.split_terminator("\n\n");
    events
        .map(|event| match event.strip_prefix("id: ").and_then(|event| event.split_once("\ndata: ")) {
            Some((id, data)) => (Some(id), data),
            None => (None, event.strip_prefix("data: ").unwrap()),
        })
        .collect()
}

/// The events of one choice.
fn of_choice<'a>(events: &[(Option<&str>, &'a str)], choice: u32) -> Vec<&'a str> {
    let mark = format!("\"choices\":[{{\"index\":{choice},");
    events.iter().map(|(_, data)| *data).filter(|data| data.contains(&mark)).collect()
}

#[tokio::test]
async fn a_lost_stream_goes_on_from_any_event_with_the_same_bytes() {
    let client = Client::new();
    for path in ["/v1/chat/completions", "/v1/completions"] {
        client.engine.will(script());
        let whole = ask(&client, path, json!({}), &[("x-volley-resume", "new")]).await;
        let seed = client.engine.asked().sampling.seed;
        let token = whole.header("x-volley-resume").unwrap();
        let all = identified(&whole);
        assert_eq!(all.last(), Some(&(None, "[DONE]")));
        for cut in 0..all.len() {
            let last = all[..cut].iter().filter_map(|(id, _)| *id).next_back();
            let headers = last.map(|id| ("last-event-id", id)).into_iter();
            let headers: Vec<_> = headers.chain([("x-volley-resume", token)]).collect();
            client.engine.will(otherwise_timed());
            let rest = ask(&client, path, json!({}), &headers).await;
            assert_eq!(client.engine.asked().sampling.seed, seed);
            assert_eq!(rest.header("x-volley-resume"), Some(token));
            let more = identified(&rest);
            for choice in [0, 1] {
                let both = [of_choice(&all[..cut], choice), of_choice(&more, choice)].concat();
                assert_eq!(both, of_choice(&all, choice), "{path}, behind {last:?}");
            }
            // Usage and the end come again if the last chunk of a choice is all that the client has.
            assert_eq!(more[more.len() - 2..], all[all.len() - 2..]);
            let ids: Vec<_> = more.iter().filter_map(|(id, _)| *id).collect();
            let last_id = all.iter().filter_map(|(id, _)| *id).next_back();
            assert!(ids.last().is_none_or(|id| Some(*id) == last_id));
        }
    }
}

#[tokio::test]
async fn a_stream_that_nobody_asked_to_resume_has_no_ids() {
    let client = Client::new();
    client.engine.will(script());
    let plain = ask(&client, "/v1/chat/completions", json!({}), &[]).await;
    assert!(!plain.body.contains("id: ") && plain.header("x-volley-resume").is_none());
}

#[tokio::test]
async fn what_can_not_be_resumed_is_refused() {
    let client = Client::new();
    client.engine.will(script());
    let path = "/v1/chat/completions";
    let whole = ask(&client, path, json!({}), &[("x-volley-resume", "new")]).await;
    let token = whole.header("x-volley-resume").unwrap();
    let other_model = token.replacen("fp_", "fp_x", 1);
    let spoiled = token.replace("chatcmpl-", "chatcmpl-\"");
    let other = json!({"messages": [{"role": "user", "content": "Ho"}]});
    for (fields, resume, last, status, param) in [
        (json!({"stream": false, "stream_options": null}), "new", "", 400, "x-volley-resume"),
        (json!({}), "anything", "", 400, "x-volley-resume"),
        (json!({}), &spoiled, "", 400, "x-volley-resume"),
        (json!({}), &other_model, "", 404, "x-volley-resume"),
        (other, token, "", 400, "x-volley-resume"),
        (json!({"n": 1}), token, "1,1", 400, "last-event-id"),
        (json!({}), token, "1,x", 400, "last-event-id"),
        (json!({}), token, "1,-1", 400, "last-event-id"),
    ] {
        let headers: Vec<_> = [("x-volley-resume", resume), ("last-event-id", last)].into();
        let headers: Vec<_> = headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let answer = ask(&client, path, fields, &headers).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (status, &json!(param)),
            "{resume} {last}"
        );
    }
}
