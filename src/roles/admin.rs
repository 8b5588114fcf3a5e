//! /health, /ready and /metrics of a scheduler or a worker, for probes and for Prometheus.

use std::net::SocketAddr;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, sync::watch};

use super::{Error, address};

#[derive(Clone)]
struct Shared {
    metrics: PrometheusHandle,
    ready: watch::Receiver<bool>,
}

/// Serves until the process ends. /health answers from the start; /ready once, and as long as, `ready` holds.
pub(super) async fn start(
    listen: Option<SocketAddr>,
    metrics: PrometheusHandle,
    ready: watch::Receiver<bool>,
) -> Result<(), Error> {
    let Some(listen) = listen else { return Ok(()) };
    let (listener, address) = address::bind(&listen.to_string()).await?;
    tracing::info!(%address, "admin endpoints");
    tokio::spawn(serve(listener, Shared { metrics, ready }));
    Ok(())
}

async fn serve(listener: TcpListener, shared: Shared) {
    let metrics = |State(shared): State<Shared>| async move { shared.metrics.render() };
    let ready = |State(shared): State<Shared>| async move {
        match *shared.ready.borrow() {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        }
    };
    let routes = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, routes).await {
        tracing::error!(%error, "the admin endpoints ended");
    }
}
