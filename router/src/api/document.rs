//! `GET /openapi.json`: the API described, from the very types that parse its requests.

use std::sync::Arc;

use axum::{Json, extract::State};
use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Map, Value, json};

use super::{
    App,
    chat::ChatRequest,
    common::{later, parameters::Parameters},
    completions::CompletionRequest,
    embeddings::EmbeddingRequest,
    messages,
    responses::ResponsesRequest,
    tokenize,
};
use crate::{
    config::{Config, UnknownFields},
    engine::Generate,
};

/// The part of the answers that errors share.
const ERRORS: [(&str, &str); 5] = [
    ("400", "The request is wrong, and how"),
    ("401", "The key is not known"),
    ("404", "There is no such thing"),
    ("429", "The key's rate is used up"),
    ("503", "Nothing serves it now; Retry-After says when to ask again"),
];

/// The operations and the schemas that they refer to.
struct Document {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

/// Says that objects have no other fields than those named.
#[derive(Clone, Copy)]
struct Closed;

pub(crate) async fn serve<E: Generate>(State(app): State<Arc<App<E>>>) -> Json<Value> {
    Json(document(&app.config))
}

/// The OpenAPI document of a server that is configured so.
pub(crate) fn document(config: &Config) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    if config.unknown_fields == UnknownFields::Error {
        settings.transforms.push(Box::new(Closed));
    }
    let mut document = Document { generator: settings.into_generator(), paths: Map::new() };
    document.text_endpoints();
    document.other_endpoints();
    document.operators();
    let mut schemas = document.generator.take_definitions(true);
    schemas.insert("Error".into(), error());
    schemas.insert("AnthropicError".into(), anthropic_error());
    let security = if config.keys.required() { json!([{"bearer": []}, {"key": []}]) } else { json!([]) };
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Volley",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Every path is served under each of the servers' prefixes.",
        },
        "servers": [{"url": "/inference/v1"}, {"url": "/v1"}, {"url": "/"}],
        "security": security,
        "paths": document.paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    })
}

// === impl Document ===

impl Document {
    fn text_endpoints(&mut self) {
        let chat = self.text_body::<ChatRequest>(&["model", "messages"]);
        self.post("/chat/completions", "Go on with a conversation", chat, true);
        let completion = self.text_body::<CompletionRequest>(&["model", "prompt"]);
        self.post("/completions", "Go on from a text", completion, true);
        let responses = self.body::<ResponsesRequest>(&["model", "input"]);
        self.post("/responses", "Go on with a conversation that can be kept", responses, true);
        let required = ["model", "messages", "max_tokens"];
        let messages = self.body::<messages::MessagesRequest>(&required);
        self.post("/messages", "Go on with a conversation, as Anthropic's API does", messages, true);
    }

    fn other_endpoints(&mut self) {
        let embedding = self.body::<EmbeddingRequest>(&["model", "input"]);
        self.post("/embeddings", "Turn texts into vectors", embedding, false);
        let count = self.body::<messages::MessagesRequest>(&["model", "messages"]);
        self.post("/messages/count_tokens", "Count a conversation's tokens", count, false);
        let text = self.body::<tokenize::TokenizeRequest>(&[]);
        self.post("/tokenize", "Turn a text or a conversation into tokens", text, false);
        let tokens = self.body::<tokenize::DetokenizeRequest>(&["tokens"]);
        self.post("/detokenize", "Turn tokens into text", tokens, false);
        self.add("/models", "get", "The models that are served", &[]);
        self.add("/models/{id}", "get", "One model; slashes in its id may be written out", &["id"]);
        self.add("/responses/{id}", "get", "A kept response", &["id"]);
        self.add("/responses/{id}", "delete", "Forget a response", &["id"]);
        self.add("/responses/{id}/cancel", "post", "End a response that is in progress", &["id"]);
    }

    fn operators(&mut self) {
        for (path, summary) in [
            ("/", "What this server is"),
            ("/health", "The process runs"),
            ("/healthz", "The process runs"),
            ("/ready", "A request would be served now"),
            ("/version", "The server's version"),
            ("/openapi.json", "This document"),
        ] {
            self.add(path, "get", summary, &[]);
            self.paths[path]["get"]["security"] = json!([]);
        }
        self.paths.insert(
            "/metrics".into(),
            json!({"get": {
                "summary": "The metrics, as Prometheus reads them",
                "operationId": "get_metrics",
                "security": [],
                "responses": {"200": {"description": "OK", "content": {"text/plain": {}}}},
            }}),
        );
    }

    fn add(&mut self, path: &str, method: &str, summary: &str, parameters: &[&str]) {
        let schema = if path.starts_with("/messages") { "AnthropicError" } else { "Error" };
        let content =
            json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}});
        let ok =
            json!({"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}});
        let mut responses = Map::from_iter([("200".to_owned(), ok)]);
        for (status, description) in ERRORS {
            responses.insert(status.into(), json!({"description": description, "content": content}));
        }
        let parameters: Vec<Value> = parameters
            .iter()
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        let id = format!("{method}{}", path.replace(['/', '.'], "_").replace(['{', '}'], ""));
        let mut operation = json!({"summary": summary, "operationId": id, "responses": responses});
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        let methods = self.paths.entry(path).or_insert_with(|| json!({}));
        methods[method] = operation;
    }

    fn post(&mut self, path: &str, summary: &str, body: Value, streams: bool) {
        self.add(path, "post", summary, &[]);
        let operation = &mut self.paths[path]["post"];
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": body}}});
        if streams {
            let content = &mut operation["responses"]["200"]["content"];
            content["text/event-stream"] = json!({"schema": {"type": "string"}});
        }
    }

    /// The schema of a body, with the fields that must be there.
    fn body<T: JsonSchema>(&mut self, required: &[&str]) -> Value {
        require(self.generator.root_schema_for::<T>().to_value(), required)
    }

    /// The schema of a text endpoint's body: its own fields and those that all share.
    fn text_body<T: JsonSchema>(&mut self, required: &[&str]) -> Value {
        let mut own = self.generator.root_schema_for::<T>().to_value();
        let mut shared = self.generator.root_schema_for::<Parameters>().to_value();
        if let (Some(own), Some(shared)) = (properties(&mut own), properties(&mut shared)) {
            own.append(shared);
            for name in later::names() {
                let description = "Accepted where it changes nothing; refused otherwise.";
                own.entry(name).or_insert_with(|| json!({"description": description}));
            }
        }
        require(own, required)
    }
}

fn properties(schema: &mut Value) -> Option<&mut Map<String, Value>> {
    schema.get_mut("properties")?.as_object_mut()
}

/// Fields are optional where their type is; what an endpoint can't do without is known here.
fn require(mut schema: Value, required: &[&str]) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.remove("$defs");
        object.remove("components");
        object.remove("$schema");
        object.insert("required".into(), json!(required));
    }
    if let Some(fields) = properties(&mut schema) {
        required.iter().filter_map(|name| fields.get_mut(*name).map(not_null)).for_each(drop);
    }
    schema
}

/// Takes `null` out of a schema's types.
fn not_null(schema: &mut Value) {
    if let Some(types) = schema.get_mut("type").and_then(Value::as_array_mut) {
        types.retain(|name| name != "null");
    }
    if let Some(choices) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        choices.retain(|choice| choice["type"] != "null");
    }
}

fn error() -> Value {
    let text = json!({"type": "string"});
    let perhaps = json!({"type": ["string", "null"]});
    let fields = json!({"object": text, "type": text, "code": text, "message": text, "param": perhaps});
    let error = json!({"type": "object", "properties": fields,
        "required": ["object", "type", "code", "message", "param"]});
    json!({"type": "object", "properties": {"error": error, "request_id": text}, "required": ["error"]})
}

fn anthropic_error() -> Value {
    let text = json!({"type": "string"});
    let error = json!({"type": "object", "properties": {"type": text, "message": text},
        "required": ["type", "message"]});
    json!({"type": "object", "properties": {"type": {"const": "error"}, "error": error, "request_id": text},
        "required": ["type", "error"]})
}

// === impl Closed ===

impl Transform for Closed {
    fn transform(&mut self, schema: &mut Schema) {
        if schema.get("properties").is_some() {
            schema.insert("additionalProperties".into(), false.into());
        }
        transform_subschemas(self, schema);
    }
}
