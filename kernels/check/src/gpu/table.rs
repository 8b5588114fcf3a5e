//! What is printed last, and kept: one line to a timing.

use std::fmt::{self, Write};

use super::{correct::Summary, limits::Limits};
use crate::{Operation, Speed, Work};

/// A timing beside its limit.
pub(super) struct Row {
    what: String,
    /// Microseconds.
    time: String,
    rate: String,
    share: Option<f64>,
    goal: f64,
    /// Ours over the peer's, as time: above 1 is slower.
    peer: Option<f64>,
}

// === impl Row ===

impl Row {
    pub(super) fn new(
        operation: &str,
        speed: &Speed,
        seconds: Result<f64, String>,
        peer: Option<f64>,
        limits: &Limits,
    ) -> Self {
        let what = format!("{operation}, {}", speed.label);
        let seconds = match seconds {
            Ok(seconds) => seconds,
            Err(problem) => {
                return Self {
                    what,
                    time: problem,
                    rate: "-".into(),
                    share: None,
                    goal: speed.goal,
                    peer: None,
                };
            }
        };
        let (rate, share) = match speed.work {
            Work::Bytes(bytes) => {
                (format!("{:.2} TB/s", bytes / seconds / 1e12), Some(bytes / seconds / limits.bandwidth))
            }
            Work::Operations(count) => {
                let rate = count / seconds;
                (format!("{:.0} TFLOP/s", rate / 1e12), limits.operations.map(|limit| rate / limit))
            }
        };
        let time = format!("{:.1}", seconds * 1e6);
        Self { what, time, rate, share, goal: speed.goal, peer: peer.map(|peer| seconds / peer) }
    }

    fn cells(&self) -> [String; 6] {
        let share = self.share.map_or("-".into(), |share| format!("{:.0} %", share * 100.0));
        let goal = if self.goal > 0.0 { format!("{:.0} %", self.goal * 100.0) } else { "-".into() };
        let missed = self.goal > 0.0 && self.share.is_none_or(|share| share < self.goal);
        let peer = self.peer.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let goal = if missed { format!("{goal}, missed") } else { goal };
        [self.what.clone(), self.time.clone(), self.rate.clone(), share, goal, peer]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cells().join(" | "))
    }
}

/// Markdown.
pub(super) fn report(device: &str, summaries: &[Summary], rows: &[Row]) -> String {
    let mut text = String::new();
    let wrong: usize = summaries.iter().map(|summary| summary.failures.len()).sum();
    let cases: usize = summaries.iter().map(|summary| summary.cases).sum();
    let operations = summaries.len();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{device}: {operations} operations, {cases} cases, {wrong} wrong.\n");
    if !rows.is_empty() {
        text.push_str(
            "| what | µs | rate | of the limit | goal | time over the peer's |\n|---|---|---|---|---|---|\n",
        );
    }
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    for summary in summaries {
        for failure in &summary.failures {
            let _ = writeln!(text, "\nWRONG {}: {failure}", summary.operation);
        }
    }
    text
}

/// What an H100 (SXM, 80 GB) was seen to do: a device copy's bytes per second, read and written, and the operations per
/// second of a bf16 product at 8192³ on random numbers.
const H100: Limits = Limits { bandwidth: 3.0e12, operations: Some(798e12) };

/// The least time of each timing on an H100, as Markdown: what it moves or computes, over what the device can do.
pub(super) fn floors(operations: &[Operation]) -> String {
    let mut text =
        String::from("| what | moves or computes | at least, µs | goal, µs |\n|---|---|---|---|\n");
    for operation in operations {
        for speed in (operation.speeds)() {
            let (amount, seconds) = match speed.work {
                Work::Bytes(bytes) => (format!("{:.1} MB", bytes / 1e6), bytes / H100.bandwidth),
                Work::Operations(count) => {
                    (format!("{:.1} GFLOP", count / 1e9), H100.operations.map_or(0.0, |rate| count / rate))
                }
            };
            let goal =
                if speed.goal > 0.0 { format!("{:.1}", seconds / speed.goal * 1e6) } else { "-".into() };
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "| {}, {} | {amount} | {:.1} | {goal} |",
                operation.name,
                speed.label,
                seconds * 1e6
            );
        }
    }
    text
}
