//! A span per sequence, under the request's own trace.

use opentelemetry::{global, propagation::Extractor};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use volley_proto::v1::NewSequence;

/// The W3C header that came with a sequence.
struct TraceParent<'a>(&'a str);

/// Opens the span of a sequence's stay in its slot.
pub(super) fn sequence(new: &NewSequence) -> Span {
    let span = info_span!(
        "sequence",
        request_id = new.request_id,
        choice = new.choice,
        slot = new.slot,
        known = new.tokens.len(),
        computed = new.computed,
    );
    if !new.traceparent.is_empty() && !span.is_disabled() {
        let parent = global::get_text_map_propagator(|p| p.extract(&TraceParent(&new.traceparent)));
        // Fails only where no OpenTelemetry layer listens: then there is no trace to join.
        let _ = span.set_parent(parent);
    }
    span
}

// === impl TraceParent ===

impl Extractor for TraceParent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}
