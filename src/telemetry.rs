//! Logs, traces and metrics of the process: set up once, before anything else runs.
//!
//! Traces go out over OTLP when an endpoint is named; trace context crosses the gRPC boundary either way, so that a
//! part with an exporter continues the trace of one without.

use std::{io::IsTerminal, time::Duration};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig, WithTonicConfig,
    tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{ParseError, Targets},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::cli::{LogFormat, TelemetryArgs};

/// Seconds: the buckets that the GenAI conventions name for latencies, with finer and longer ones around.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 30.0, 60.0, 300.0,
];
/// Counts of rows, tokens, sequences.
const COUNTS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0,
    1048576.0,
];
/// How often the recorder sorts what it has got into buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long the last traces may take to go out.
const FLUSH: Duration = Duration::from_secs(3);

/// What lives as long as the process; [`Telemetry::shut_down`] sends what is still buffered.
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Telemetry that could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// `--log` is no filter.
    #[error("--log: {0}")]
    Filter(#[from] ParseError),
    /// The exporter's endpoint is unusable.
    #[error("--otlp-endpoint: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// Something else has set up logs already.
    #[error("logs: {0}")]
    Init(#[from] TryInitError),
    /// Something else has set up metrics already.
    #[error("metrics: {0}")]
    Metrics(#[from] BuildError),
}

/// Starts logs, and traces if asked for. `service` names the process in traces; `level` is the log level without
/// `--log`. Needs the tokio runtime.
pub(crate) fn start(args: &TelemetryArgs, service: &str, level: &str) -> Result<Telemetry, Error> {
    let filter = EnvFilter::try_new(args.log.as_deref().unwrap_or(level))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match args.log_format {
        LogFormat::Text => lines.with_target(false).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let traces = exporting(args).then(|| tracer_provider(args, service)).transpose()?;
    let spans = traces.as_ref().map(|provider| {
        // Our own spans whatever the log says, and none of the libraries', the exporter's own calls among them.
        let ours = Targets::new().with_target("volley", LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(provider.tracer("volley")).with_filter(ours)
    });
    tracing_subscriber::registry().with(lines).with(spans).try_init()?;
    Ok(Telemetry { traces })
}

/// Installs the metrics recorder; the handle renders what /metrics shows. Needs the tokio runtime.
pub(crate) fn metrics() -> Result<PrometheusHandle, Error> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets(COUNTS)?
        .install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut period = tokio::time::interval(UPKEEP);
        loop {
            period.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

fn exporting(args: &TelemetryArgs) -> bool {
    let standard = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    !disabled && (args.otlp_endpoint.is_some() || standard.into_iter().any(set))
}

fn tracer_provider(args: &TelemetryArgs, service: &str) -> Result<SdkTracerProvider, Error> {
    // Matters to an https endpoint only.
    let tls = ClientTlsConfig::new().with_enabled_roots();
    let exporter = SpanExporter::builder().with_tonic().with_tls_config(tls);
    let exporter = match &args.otlp_endpoint {
        Some(endpoint) => exporter.with_endpoint(endpoint).build()?,
        None => exporter.build()?, // reads the standard variables
    };
    // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win, as the builder reads them.
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
    let resource = Resource::builder();
    let resource = if named { resource } else { resource.with_service_name(service.to_owned()) };
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}

// === impl Telemetry ===

impl Telemetry {
    /// Sends what is buffered, for a few seconds at most. Blocks.
    pub(crate) fn shut_down(self) {
        if let Some(Err(error)) = self.traces.map(|traces| traces.shutdown_with_timeout(FLUSH)) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Bytes, routing::post};
    use clap::Parser;
    use tokio::sync::mpsc;

    use super::*;
    use crate::cli::Cli;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn spans_reach_the_collector_and_the_last_ones_before_the_exit() {
        let (sender, mut exported) = mpsc::unbounded_channel();
        let export = async move |body: Bytes| {
            sender.send(body).unwrap();
            // An empty ExportTraceServiceResponse: no compression, no bytes.
            ([("content-type", "application/grpc"), ("grpc-status", "0")], vec![0u8; 5])
        };
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", collector.local_addr().unwrap());
        tokio::spawn(async { axum::serve(collector, Router::new().route(path, post(export))).await });

        let args = Cli::parse_from(["volley", "router", "--otlp-endpoint", &url]).telemetry;
        let telemetry = start(&args, "volley-test", "warn").unwrap();
        tracing::info_span!(target: "volley_router", "a request").in_scope(|| {});
        tracing::info_span!(target: "h2", "noise").in_scope(|| {});
        tokio::task::spawn_blocking(|| telemetry.shut_down()).await.unwrap();

        let sent = exported.recv().await.unwrap();
        let has = |text: &str| sent.windows(text.len()).any(|w| w == text.as_bytes());
        assert!(has("a request") && has("volley-test") && !has("noise"));
    }
}
