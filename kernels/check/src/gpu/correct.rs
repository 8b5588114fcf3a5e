//! The cases of an operation on a GPU.

use std::{fmt, sync::Arc, time::Instant};

use volley_kernels::cuda::Device;

use super::Options;
use crate::{Operation, Random, Size};

const SEED: u64 = 1;

/// What came of an operation's cases.
pub(super) struct Summary {
    pub(super) operation: &'static str,
    pub(super) cases: usize,
    /// The largest relative error.
    pub(super) error: f64,
    pub(super) failures: Vec<String>,
    seconds: f64,
}

/// Runs the cases, each twice: a kernel gives the same bits every time.
pub(super) fn check(operation: &Operation, device: &Arc<dyn Device>, options: &Options) -> Summary {
    let start = Instant::now();
    let mut summary =
        Summary { operation: operation.name, cases: 0, error: 0.0, failures: Vec::new(), seconds: 0.0 };
    let cases = (operation.cases)(&mut Random::new(SEED));
    let chosen = cases.iter().enumerate().filter(|(_, case)| !options.small || case.size == Size::Small);
    for (i, case) in chosen.take(options.each.unwrap_or(usize::MAX)) {
        let trial = case.trial(SEED + i as u64);
        summary.cases += 1;
        let twice = trial.run(device).and_then(|first| trial.run(device).map(|second| (first, second)));
        match twice {
            Ok((first, second)) => {
                summary.error = summary.error.max(first.error);
                if !first.same_bits(&second) {
                    summary.failures.push(format!("{}: not the same bits twice", case.label));
                }
            }
            Err(problem) => summary.failures.push(format!("{}: {problem}", case.label)),
        }
    }
    summary.seconds = start.elapsed().as_secs_f64();
    summary
}

// === impl Summary ===

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, cases, error, failures, seconds } = self;
        let verdict = if failures.is_empty() { "ok" } else { "WRONG" };
        write!(f, "{verdict:<6} {operation:<20} {cases:>4} cases, error ≤ {error:.1e}, {seconds:.1} s")?;
        for failure in failures {
            write!(f, "\n         {failure}")?;
        }
        Ok(())
    }
}
