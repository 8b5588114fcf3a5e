//! What the step thread reports of itself.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

const STEP_SECONDS: &str = "volley_worker_step_seconds";
const STEP_ROWS: &str = "volley_worker_step_rows";
const STEP_ROWS_MAX: &str = "volley_worker_step_rows_max";
const STEP_SEQUENCES: &str = "volley_worker_step_sequences";
const STEP_SEQUENCES_MAX: &str = "volley_worker_step_sequences_max";
const TOKENS: &str = "volley_worker_tokens_total";
const SLOTS: &str = "volley_worker_slots_in_use";
const IDLE_SECONDS: &str = "volley_worker_idle_seconds";

/// Handles, looked up once.
pub(super) struct Metrics {
    step_seconds: Histogram,
    step_rows: Histogram,
    step_rows_max: Gauge,
    step_sequences: Histogram,
    step_sequences_max: Gauge,
    tokens: Counter,
    slots: Gauge,
    idle_seconds: Histogram,
    /// The most that a step had.
    max: (usize, usize),
}

/// Tells the recorder what the metrics mean.
pub(crate) fn describe() {
    describe_histogram!(STEP_SECONDS, metrics::Unit::Seconds, "Time to compute a step");
    describe_histogram!(STEP_ROWS, "Tokens computed in a step");
    describe_gauge!(STEP_ROWS_MAX, "The most tokens that a step computed");
    describe_histogram!(STEP_SEQUENCES, "Sequences that shared a step");
    describe_gauge!(STEP_SEQUENCES_MAX, "The most sequences that shared a step");
    describe_counter!(TOKENS, "Tokens computed, of prompts and of outputs");
    describe_gauge!(SLOTS, "Slots that hold a sequence");
    describe_histogram!(IDLE_SECONDS, metrics::Unit::Seconds, "Time between steps with nothing to run");
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        Self {
            step_seconds: histogram!(STEP_SECONDS),
            step_rows: histogram!(STEP_ROWS),
            step_rows_max: gauge!(STEP_ROWS_MAX),
            step_sequences: histogram!(STEP_SEQUENCES),
            step_sequences_max: gauge!(STEP_SEQUENCES_MAX),
            tokens: counter!(TOKENS),
            slots: gauge!(SLOTS),
            idle_seconds: histogram!(IDLE_SECONDS),
            max: (0, 0),
        }
    }
}

impl Metrics {
    /// A step with this many rows of this many sequences ended.
    pub(super) fn step(&mut self, rows: usize, sequences: usize, compute: Duration, idle: Duration) {
        self.max = (self.max.0.max(rows), self.max.1.max(sequences));
        self.step_seconds.record(compute);
        self.step_rows.record(rows as f64);
        self.step_rows_max.set(self.max.0 as f64);
        self.step_sequences.record(sequences as f64);
        self.step_sequences_max.set(self.max.1 as f64);
        self.tokens.increment(rows as u64);
        self.idle_seconds.record(idle);
    }

    /// So many slots are taken.
    pub(super) fn slots(&self, taken: usize) {
        self.slots.set(taken as f64);
    }
}
