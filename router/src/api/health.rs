//! What operators and load balancers ask. No key needed.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde_json::{Value, json};

use super::App;
use crate::{engine::Generate, http::error::ApiError};

/// The process runs.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// A request would be served now.
pub(crate) async fn ready<E: Generate>(State(app): State<Arc<App<E>>>) -> Result<Json<Value>, ApiError> {
    let missing = if app.draining.is_cancelled() {
        "the server is shutting down"
    } else if app.engine.models().is_empty() {
        "no model is served yet"
    } else {
        return Ok(Json(json!({"status": "ready"})));
    };
    Err(ApiError::Unavailable { message: missing.into(), retry_after: Duration::from_secs(1) })
}

/// The metrics, as Prometheus reads them.
pub(crate) async fn metrics<E: Generate>(State(app): State<Arc<App<E>>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
