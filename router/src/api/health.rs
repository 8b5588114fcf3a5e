//! What operators and load balancers ask. No key needed.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde_json::{Value, json};

use super::App;
use crate::{engine::Generate, http::error::ApiError};

/// What lives here, for who opens the base address in a browser.
pub(crate) async fn root() -> Json<Value> {
    let endpoints = [
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/openapi.json",
    ];
    Json(json!({"service": "volley", "api": "OpenAI and Fireworks.ai compatible", "endpoints": endpoints}))
}

/// The process runs.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// A request would be served now.
pub(crate) async fn ready<E: Generate>(State(app): State<Arc<App<E>>>) -> Result<Json<Value>, ApiError> {
    app.check_open()?;
    if app.engine.models().is_empty() {
        let message = "no model is served yet".into();
        return Err(ApiError::Unavailable { message, retry_after: Duration::from_secs(1) });
    }
    Ok(Json(json!({"status": "ready"})))
}

/// The metrics, as Prometheus reads them.
pub(crate) async fn metrics<E: Generate>(State(app): State<Arc<App<E>>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
