//! Metrics and spans.

use std::collections::HashMap;

use metrics::{Counter, Gauge, Histogram};
use opentelemetry::global;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use volley_proto::v1::{self, failure::Reason};

use crate::core::planner::{Load, Totals};

/// The metrics of one worker, labelled with its id.
pub(crate) struct WorkerMetrics {
    running: Gauge,
    waiting: Gauge,
    waiting_tokens: Gauge,
    blocks_free: Gauge,
    blocks_total: Gauge,
    preemptions: Counter,
    wasted_tokens: Counter,
    draft_tokens: Counter,
    accepted_tokens: Counter,
    recomputed_tokens: Counter,
    cached_tokens: Counter,
    evictions: Counter,
    step_rows: Histogram,
    step_sequences: Histogram,
    step_seconds: Histogram,
    worker_idle_seconds: Histogram,
    seen: Totals,
}

/// Tells the recorder what the metrics mean.
pub(crate) fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_gauge!("volley_scheduler_workers", "Workers that this scheduler is connected to");
    describe_counter!(
        "volley_scheduler_moves_total",
        "Sequences given another worker here after theirs was lost"
    );
    describe_counter!(
        "volley_scheduler_handed_back_total",
        "Sequences given back to routers: their worker was lost, and no other serves the model here"
    );
    describe_counter!(
        "volley_scheduler_failures_total",
        "Sequences refused, given up or handed back, by the reason that their router was told"
    );
    describe_gauge!("volley_scheduler_running", "Sequences in slots");
    describe_gauge!("volley_scheduler_waiting", "Sequences that wait for a slot");
    describe_gauge!("volley_scheduler_waiting_tokens", "Their tokens");
    describe_gauge!(
        "volley_kv_blocks_free",
        "KV blocks that no sequence holds, whether or not they are cached"
    );
    describe_gauge!("volley_kv_blocks_total", "KV blocks that the worker has");
    describe_counter!(
        "volley_scheduler_preemptions_total",
        "Sequences that had to give way, to be computed again"
    );
    describe_counter!(
        "volley_scheduler_wasted_tokens_total",
        "Tokens computed in vain; wrong guesses aren't counted"
    );
    describe_counter!("volley_scheduler_draft_tokens_total", "Tokens that were guessed, and computed");
    describe_counter!("volley_scheduler_accepted_tokens_total", "Guessed tokens that were right");
    describe_counter!(
        "volley_scheduler_recomputed_tokens_total",
        "Tokens computed again, since their sequence had to give way"
    );
    describe_counter!(
        "volley_prefix_cache_hit_tokens_total",
        "Tokens that needn't be computed, since their KV blocks were there"
    );
    describe_counter!(
        "volley_prefix_cache_evictions_total",
        "KV blocks whose content could be found, and had to give way to other content"
    );
    describe_histogram!("volley_step_rows", "Tokens computed in a step");
    describe_histogram!("volley_step_sequences", "Sequences that shared a step");
    describe_histogram!("volley_step_seconds", Unit::Seconds, "Time to compute a step");
    describe_histogram!("volley_step_wait_seconds", Unit::Seconds, "Time that the worker waited for a step");
}

// === impl WorkerMetrics ===

impl WorkerMetrics {
    pub(crate) fn new(worker: &str) -> Self {
        let worker = || [("worker", worker.to_owned())];
        Self {
            running: metrics::gauge!("volley_scheduler_running", &worker()),
            waiting: metrics::gauge!("volley_scheduler_waiting", &worker()),
            waiting_tokens: metrics::gauge!("volley_scheduler_waiting_tokens", &worker()),
            blocks_free: metrics::gauge!("volley_kv_blocks_free", &worker()),
            blocks_total: metrics::gauge!("volley_kv_blocks_total", &worker()),
            preemptions: metrics::counter!("volley_scheduler_preemptions_total", &worker()),
            wasted_tokens: metrics::counter!("volley_scheduler_wasted_tokens_total", &worker()),
            draft_tokens: metrics::counter!("volley_scheduler_draft_tokens_total", &worker()),
            accepted_tokens: metrics::counter!("volley_scheduler_accepted_tokens_total", &worker()),
            recomputed_tokens: metrics::counter!("volley_scheduler_recomputed_tokens_total", &worker()),
            cached_tokens: metrics::counter!("volley_prefix_cache_hit_tokens_total", &worker()),
            evictions: metrics::counter!("volley_prefix_cache_evictions_total", &worker()),
            step_rows: metrics::histogram!("volley_step_rows", &worker()),
            step_sequences: metrics::histogram!("volley_step_sequences", &worker()),
            step_seconds: metrics::histogram!("volley_step_seconds", &worker()),
            worker_idle_seconds: metrics::histogram!("volley_step_wait_seconds", &worker()),
            seen: Totals::default(),
        }
    }

    pub(crate) fn step(&self, result: &v1::StepResult) {
        if result.rows == 0 {
            return; // nothing was computed: it only released slots
        }
        self.step_rows.record(f64::from(result.rows));
        self.step_sequences.record(result.slots.len() as f64);
        self.step_seconds.record(result.compute_us as f64 * 1e-6);
        self.worker_idle_seconds.record(result.wait_us as f64 * 1e-6);
    }

    pub(crate) fn state(&mut self, load: Load, totals: Totals) {
        self.running.set(load.running as f64);
        self.waiting.set(load.waiting as f64);
        self.waiting_tokens.set(load.waiting_tokens as f64);
        self.blocks_free.set(load.free_blocks as f64);
        self.blocks_total.set(load.total_blocks as f64);
        self.preemptions.increment(totals.preemptions - self.seen.preemptions);
        self.wasted_tokens.increment(totals.wasted_tokens - self.seen.wasted_tokens);
        self.draft_tokens.increment(totals.draft_tokens - self.seen.draft_tokens);
        self.accepted_tokens.increment(totals.accepted_tokens - self.seen.accepted_tokens);
        self.recomputed_tokens.increment(totals.recomputed_tokens - self.seen.recomputed_tokens);
        self.cached_tokens.increment(totals.cached_tokens - self.seen.cached_tokens);
        self.evictions.increment(totals.evictions - self.seen.evictions);
        self.seen = totals;
    }
}

impl Drop for WorkerMetrics {
    fn drop(&mut self) {
        self.state(Load::default(), self.seen);
    }
}

/// Counts a sequence that ended with a failure.
pub(crate) fn failed(reason: Reason) {
    let reason = match reason {
        Reason::Overloaded => "overloaded",
        Reason::TooLarge => "too_large",
        Reason::NoWorker => "no_worker",
        Reason::GaveUp => "gave_up",
        Reason::Deadline => "deadline",
        Reason::Internal | Reason::Unspecified => "internal",
    };
    metrics::counter!("volley_scheduler_failures_total", "reason" => reason).increment(1);
}

/// A sequence's span, a child of the router's, and its own trace context for the worker. When tracing is off
/// the router's context is passed on as it is.
pub(crate) fn sequence_span(submission: &v1::Submission, choice: u32) -> (tracing::Span, String) {
    let span = tracing::info_span!("sequence", request = submission.request_id, choice);
    if span.is_disabled() {
        return (span, submission.traceparent.clone());
    }
    let mut carrier = HashMap::from([("traceparent".to_owned(), submission.traceparent.clone())]);
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    // Fails when no exporter is set up.
    let _ = span.set_parent(parent);
    global::get_text_map_propagator(|propagator| propagator.inject_context(&span.context(), &mut carrier));
    let traceparent = carrier.remove("traceparent").unwrap_or_default();
    (span, traceparent)
}
