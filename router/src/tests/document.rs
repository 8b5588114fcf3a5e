//! The OpenAPI document: it has every route and every field, since it is made of what serves them.

use std::collections::BTreeSet;

use axum::{body::Body, extract::Request};
use http::Method;
use serde::{Deserialize, Deserializer, de::Visitor, forward_to_deserialize_any};
use serde_json::{Value, json};

use super::Client;
use crate::{
    api::{
        chat::ChatRequest,
        common::{later, parameters::Parameters},
        completions::CompletionRequest,
        document::document,
        embeddings::EmbeddingRequest,
        messages::MessagesRequest,
        responses::ResponsesRequest,
        tokenize::{DetokenizeRequest, TokenizeRequest},
    },
    config::{Config, UnknownFields},
    http::auth::Keys,
};

/// Asks a type for the names of its fields.
struct Fields<'a>(&'a mut BTreeSet<String>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.extend(fields.iter().map(|name| (*name).to_owned()));
        Err(serde::de::Error::custom("that was all"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<'de, T: Deserialize<'de>>() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    assert!(T::deserialize(Fields(&mut names)).is_err());
    names
}

fn text_fields<'de, T: Deserialize<'de>>() -> BTreeSet<String> {
    let later = later::names().map(str::to_owned).collect();
    &(&fields::<T>() | &fields::<Parameters>()) | &later
}

fn body<'a>(document: &'a Value, path: &str) -> &'a Value {
    &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
}

#[test]
fn every_field_that_is_parsed_is_described() {
    let document = document(&Config::default());
    for (path, parsed) in [
        ("/chat/completions", text_fields::<ChatRequest>()),
        ("/completions", text_fields::<CompletionRequest>()),
        ("/responses", fields::<ResponsesRequest>()),
        ("/messages", fields::<MessagesRequest>()),
        ("/messages/count_tokens", fields::<MessagesRequest>()),
        ("/embeddings", fields::<EmbeddingRequest>()),
        ("/tokenize", fields::<TokenizeRequest>()),
        ("/detokenize", fields::<DetokenizeRequest>()),
    ] {
        let described: BTreeSet<String> =
            body(&document, path)["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(described, parsed, "{path}");
        assert!(parsed.len() > 1, "{path}");
    }
}

#[tokio::test]
async fn every_route_is_described_with_its_methods() {
    let client = Client::new();
    let document = client.get("/openapi.json").await.json();
    let described = document["paths"].as_object().unwrap();
    let routes: BTreeSet<_> = include_str!("../http/edge.rs")
        .split(".route(\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().replace("{*", "{"))
        .collect();
    assert_eq!(described.keys().cloned().collect::<BTreeSet<_>>(), routes);
    for (path, operations) in described {
        let path = path.replace("{id}", "x");
        let request = Request::builder().method(Method::PATCH).uri(&path).body(Body::empty()).unwrap();
        let answer = client.send(request).await;
        let mut allowed: Vec<_> = answer.header("allow").unwrap().split(',').map(str::to_lowercase).collect();
        allowed.retain(|method| method != "head");
        allowed.sort();
        let mut methods: Vec<_> = operations.as_object().unwrap().keys().cloned().collect();
        methods.sort();
        assert_eq!(methods, allowed, "{path}");
    }
}

#[test]
fn the_document_says_what_the_server_is_told() {
    let strict = document(&Config::default());
    assert_eq!(body(&strict, "/chat/completions")["additionalProperties"], false);
    assert_eq!(strict["components"]["schemas"]["Message"]["additionalProperties"], false);
    assert_eq!(strict["security"], json!([]));
    let config =
        Config { unknown_fields: UnknownFields::Ignore, keys: Keys::new(["sesame"]), ..Config::default() };
    let lax = document(&config);
    assert!(body(&lax, "/chat/completions").get("additionalProperties").is_none());
    assert_eq!(lax["security"], json!([{"bearer": []}, {"key": []}]));
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document(&Config::default());
    let text = document.to_string();
    let mut count = 0;
    for rest in text.split("\"$ref\":\"#").skip(1) {
        let pointer = rest.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
        count += 1;
    }
    assert!(count > 10);
    assert!(!text.contains("$defs"));
}
