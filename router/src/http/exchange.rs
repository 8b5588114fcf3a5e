//! One request and its answer, as an operator sees them: an id, a line in the log, a count, a span.

use std::{
    collections::HashMap,
    sync::{
        OnceLock,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, StatusCode};
use opentelemetry::propagation::Extractor;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::error::ApiError;

/// Counted once: when its answer is complete, or (nobody finished it) when its client is gone.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The request's id, ours or the client's.
    pub id: String,
    /// The path as it was asked for.
    pub path: String,
    route: &'static str,
    started: Instant,
    /// 0: not finished.
    status: AtomicU16,
    /// The code of the error that it ended with.
    reason: OnceLock<&'static str>,
    /// The model that answers.
    model: OnceLock<String>,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
}

/// Marks a response whose body finishes the exchange itself.
#[derive(Clone, Copy)]
pub(crate) struct Streamed;

/// nginx's code for a client that closed the connection before the answer was complete.
const CLIENT_GONE: u16 = 499;

/// Routes that are asked every few seconds, and say nothing in a log.
const OPERATORS: [&str; 3] = ["/health", "/ready", "/metrics"];

// === impl Exchange ===

impl Exchange {
    /// `route`: a canonical path, or a name for all that have none.
    pub(crate) fn new(headers: &HeaderMap, path: String, route: &'static str) -> Self {
        let id = request_id(headers);
        Self {
            id,
            path,
            route,
            started: Instant::now(),
            status: AtomicU16::new(0),
            reason: OnceLock::new(),
            model: OnceLock::new(),
            prompt_tokens: AtomicU64::new(0),
            completion_tokens: AtomicU64::new(0),
        }
    }

    /// The answer is complete. Only the first call counts.
    pub(crate) fn finish(&self, status: StatusCode) {
        let _ = self.status.compare_exchange(0, status.as_u16(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The answer is an error, or ends with one. Only the first call counts, of this and [`Exchange::finish`].
    pub(crate) fn fail(&self, error: &ApiError) {
        if self.status.load(Ordering::Relaxed) == 0 {
            let _ = self.reason.set(error.code());
        }
        self.finish(error.status());
    }

    /// A model was given so many tokens, to answer with others.
    pub(crate) fn asks(&self, model: &str, prompt_tokens: u64) {
        let _ = self.model.set(model.to_owned()); // a request asks once
        self.prompt_tokens.store(prompt_tokens, Ordering::Relaxed);
    }

    /// A choice of the answer is complete, with so many tokens.
    pub(crate) fn generated(&self, tokens: u64) {
        self.completion_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Since the request's headers were read.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The first token was there.
    pub(crate) fn first_token(&self) -> Duration {
        let elapsed = self.elapsed();
        metrics::histogram!("volley_time_to_first_token_seconds", "route" => self.route).record(elapsed);
        elapsed
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let status = match *self.status.get_mut() {
            0 => CLIENT_GONE,
            status => status,
        };
        let seconds = self.elapsed().as_secs_f64();
        // To a tenth of a millisecond: less would be written as a power of ten.
        let (id, path, shown) = (&self.id, &self.path, (seconds * 1e4).round() / 1e4);
        let (prompt, completion) = (self.prompt_tokens.get_mut(), self.completion_tokens.get_mut());
        match self.model.get() {
            _ if OPERATORS.contains(&self.route) => {
                tracing::trace!(id, path, status, seconds = shown, "answered");
            }
            None => tracing::info!(id, path, status, seconds = shown, "answered"),
            Some(model) => tracing::info!(
                id,
                path,
                status,
                seconds = shown,
                model,
                prompt_tokens = *prompt,
                completion_tokens = *completion,
                "answered"
            ),
        }
        let mut labels = vec![metrics::Label::from_static_parts("route", self.route)];
        labels.push(metrics::Label::new("status", status.to_string()));
        // Codes are ours, so there are few.
        labels.extend(self.reason.get().map(|code| metrics::Label::new("reason", code.to_lowercase())));
        metrics::counter!("volley_http_requests_total", labels).increment(1);
        metrics::histogram!("volley_http_request_seconds", "route" => self.route).record(seconds);
    }
}

/// The client's `x-request-id` if it is fit to be repeated, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    given
        .filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

// === Trace context ===

/// A span for the exchange, under the client's own if it sent one.
pub(crate) fn span(exchange: &Exchange, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!("request", id = exchange.id, route = exchange.route);
    let parent = opentelemetry::global::get_text_map_propagator(|p| p.extract(&Headers(headers)));
    // Refused only when no exporter listens.
    let _ = span.set_parent(parent);
    span
}

/// The W3C context of the current span for the next hop; without an exporter, the client's own.
pub(crate) fn traceparent(headers: &HeaderMap) -> String {
    let mut carrier = HashMap::new();
    let context = Span::current().context();
    opentelemetry::global::get_text_map_propagator(|p| p.inject_context(&context, &mut carrier));
    let ours = carrier.remove("traceparent");
    ours.or_else(|| Headers(headers).get("traceparent").map(str::to_owned)).unwrap_or_default()
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
