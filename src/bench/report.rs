//! Figures out of what was seen, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::load::Seen;
use crate::cli::BenchArgs;

/// One load's figures. Times in milliseconds unless named otherwise.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    model: String,
    mode: String,
    endpoint: String,
    max_tokens: u32,
    concurrency: usize,
    requests: usize,
    pub(super) ok: usize,
    errors: usize,
    /// How often a stream went on at another server.
    pub(super) resumed: u64,
    /// SHA-256 of what all answers say, in the requests' order: equal for equal prompts (`--seed`) at temperature 0.
    text_sha256: String,
    pub(super) first_error: Option<String>,
    wall_s: f64,
    output_tokens: u64,
    output_tok_s: f64,
    requests_s: f64,
    /// Mean; absent when the server sends no usage.
    prompt_tokens: Option<f64>,
    tok_per_chunk: f64,
    ttft_p50_ms: Option<f64>,
    ttft_p99_ms: Option<f64>,
    itl_p50_ms: Option<f64>,
    itl_p99_ms: Option<f64>,
    e2e_p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_p99_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_errors: Option<usize>,
}

/// Summarizes one load.
pub(super) fn row(args: &BenchArgs, model: &str, seen: &Seen) -> Row {
    let wall = seen.wall.as_secs_f64();
    let per_second = |amount: f64| if wall > 0.0 { round(amount / wall, 2) } else { 0.0 };
    let tokens = seen.answers.iter().map(|a| a.usage.map_or(a.chunks, |u| u.completion_tokens)).sum::<u64>();
    let chunks = seen.answers.iter().map(|a| a.chunks).sum::<u64>();
    let prompts: Vec<_> =
        seen.answers.iter().filter_map(|a| a.usage).map(|u| u.prompt_tokens as f64).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let first = Sorted::new(seen.answers.iter().map(|a| a.first));
    let gaps = Sorted::new(seen.answers.iter().flat_map(|a| a.gaps.iter().copied()));
    let whole = Sorted::new(seen.answers.iter().map(|a| a.whole));
    let health = Sorted::new(seen.health.iter().copied());
    Row {
        model: model.to_owned(),
        mode: args.mode.to_string(),
        endpoint: args.endpoint.to_string(),
        max_tokens: args.max_tokens,
        concurrency: seen.concurrency,
        requests: seen.requests,
        ok: seen.answers.len(),
        errors: seen.errors.len(),
        resumed: seen.answers.iter().map(|answer| answer.resumed).sum(),
        text_sha256: digest(seen),
        first_error: seen.errors.first().cloned(),
        wall_s: round(wall, 3),
        output_tokens: tokens,
        output_tok_s: per_second(tokens as f64),
        requests_s: per_second(seen.answers.len() as f64),
        prompt_tokens: (!prompts.is_empty()).then(|| round(mean(&prompts), 1)),
        tok_per_chunk: round(tokens as f64 / chunks.max(1) as f64, 2),
        ttft_p50_ms: first.percentile(50.0),
        ttft_p99_ms: first.percentile(99.0),
        itl_p50_ms: gaps.percentile(50.0),
        itl_p99_ms: gaps.percentile(99.0),
        e2e_p50_ms: whole.percentile(50.0),
        health_p50_ms: health.percentile(50.0),
        health_p99_ms: health.percentile(99.0),
        health_errors: args.health.then_some(seen.health_errors),
    }
}

fn digest(seen: &Seen) -> String {
    let mut answers: Vec<_> = seen.answers.iter().map(|answer| (answer.number, answer.digest)).collect();
    answers.sort_unstable();
    let mut all = Sha256::new();
    answers.iter().for_each(|(_, digest)| all.update(digest));
    all.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The table's head; times in milliseconds.
pub(super) fn head(health: bool) -> String {
    let mut head = format!(
        "{:>7} {:>8} {:>9} {:>8} {:>7} {:>9} {:>9} {:>8} {:>8} {:>9} {:>6}",
        "streams",
        "requests",
        "tok/s",
        "req/s",
        "prompt",
        "TTFT p50",
        "p99",
        "ITL p50",
        "p99",
        "e2e p50",
        "errors"
    );
    if health {
        head += &format!(" {:>10} {:>8}", "health p50", "p99");
    }
    head
}

/// One line of the table.
pub(super) fn line(row: &Row, health: bool) -> String {
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
    let mut line = format!(
        "{:>7} {:>8} {:>9.1} {:>8.2} {:>7} {:>9} {:>9} {:>8} {:>8} {:>9} {:>6}",
        row.concurrency,
        row.requests,
        row.output_tok_s,
        row.requests_s,
        row.prompt_tokens.map_or("-".to_owned(), |t| format!("{t:.0}")),
        ms(row.ttft_p50_ms),
        ms(row.ttft_p99_ms),
        ms(row.itl_p50_ms),
        ms(row.itl_p99_ms),
        ms(row.e2e_p50_ms),
        row.errors
    );
    if health {
        line += &format!(" {:>10} {:>8}", ms(row.health_p50_ms), ms(row.health_p99_ms));
    }
    line
}

/// Milliseconds in order.
struct Sorted(Vec<f64>);

// === impl Sorted ===

impl Sorted {
    fn new(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.map(|t| t.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// Interpolated between the two nearest; `None` without any.
    fn percentile(&self, percent: f64) -> Option<f64> {
        let rank = self.0.len().checked_sub(1)? as f64 * percent / 100.0;
        let (below, above) = (self.0[rank.floor() as usize], self.0[rank.ceil() as usize]);
        Some(round(below + (above - below) * rank.fract(), 2))
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bench::answer::Answer, cli::BenchArgs, client::Usage};

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn percentiles_interpolate() {
        let sorted = Sorted::new([4, 1, 3, 2].into_iter().map(ms));
        assert_eq!(sorted.percentile(50.0), Some(2.5));
        assert_eq!(sorted.percentile(100.0), Some(4.0));
        assert_eq!(Sorted::new(std::iter::empty()).percentile(50.0), None);
    }

    #[test]
    fn tokens_are_the_servers_usage_where_there_is_one() {
        let answer = |usage| Answer {
            number: 0,
            first: ms(10),
            gaps: vec![ms(2), ms(4)],
            whole: ms(20),
            chunks: 3,
            usage,
            resumed: 1,
            digest: [0; 32],
        };
        let usage = Usage { prompt_tokens: 30, completion_tokens: 7 };
        let seen = Seen {
            concurrency: 2,
            requests: 3,
            wall: ms(2000),
            answers: vec![answer(Some(usage)), answer(None)],
            errors: vec!["broke".into()],
            ..Seen::default()
        };
        let row = row(&BenchArgs::of(&[]), "m", &seen);
        assert_eq!((row.output_tokens, row.output_tok_s, row.requests_s), (10, 5.0, 1.0));
        assert_eq!((row.ok, row.errors, row.prompt_tokens), (2, 1, Some(30.0)));
        assert_eq!(row.resumed, 2);
        assert_eq!((row.ttft_p50_ms, row.itl_p50_ms, row.e2e_p50_ms), (Some(10.0), Some(3.0), Some(20.0)));
        assert_eq!(head(true).len(), line(&row, true).len());
        assert_eq!(head(false).len(), line(&row, false).len());
    }
}
