//! How fast a long prompt may go beside streams.
//!
//! Every row of a prompt makes the step longer, and every stream beside it waits. How much is measured: the
//! time of steps that only decode, and what a prompt's row adds to it (more, the further the prompt is). Each
//! step with decodes earns long prompts half of its time, so steps take at most half as long again as without
//! them, on average. A row costs less beside others of its prompt, with which it shares a look at the past; so
//! where a step doesn't earn a chunk of a few, several steps save up for one.

use crate::core::types::TokenCount;

/// By how much of its time a step may get longer.
const STRETCH: f64 = 0.5;
/// Rows that share a look at all that came before them, at least.
const CHUNK: TokenCount = 4;
/// What a new measurement counts for.
const WEIGHT: f64 = 0.125;

/// What steps take on this worker, in microseconds; 0 where nothing has been measured.
#[derive(Debug, Default)]
pub(super) struct Pace {
    decodes: f64,
    row: f64,
    /// Time that long prompts have earned and not taken: less than a step's and a chunk's.
    earned: f64,
}

// === impl Pace ===

impl Pace {
    /// A step with so many decodes and so many rows of prompts took `micros`.
    pub(super) fn measure(&mut self, decodes: usize, rows: TokenCount, micros: u64) {
        let micros = micros as f64;
        match (decodes, rows) {
            _ if micros == 0.0 => {}
            (0, 0) => {}
            (_, 0) => blend(&mut self.decodes, micros),
            (0, rows) => blend(&mut self.row, micros / rows as f64),
            (_, rows) if self.decodes > 0.0 => {
                blend(&mut self.row, (micros - self.decodes).max(0.0) / rows as f64);
            }
            _ => {}
        }
    }

    /// Rows that long prompts may have in the next step with decodes, of the `share` that prompts have in it.
    pub(super) fn rows(&mut self, share: TokenCount) -> TokenCount {
        if self.decodes == 0.0 || self.row == 0.0 {
            return share;
        }
        let earns = STRETCH * self.decodes;
        let chunk = CHUNK.min(share);
        self.earned = (self.earned + earns).min(earns + chunk as f64 * self.row);
        let rows = (self.earned / self.row) as TokenCount;
        if rows < chunk { 0 } else { rows.min(share) }
    }

    /// They took so many.
    pub(super) fn took(&mut self, rows: TokenCount) {
        self.earned = (self.earned - rows as f64 * self.row).max(0.0);
    }
}

fn blend(mean: &mut f64, measured: f64) {
    *mean = if *mean == 0.0 { measured } else { *mean + WEIGHT * (measured - *mean) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps that a long prompt has `rows` of; each takes 20 ms and what `cost` says of each row.
    fn steps(pace: &mut Pace, count: usize, cost: u64) -> Vec<TokenCount> {
        let step = |pace: &mut Pace| {
            let rows = pace.rows(128);
            pace.took(rows);
            pace.measure(8, rows, 20_000 + cost * rows as u64);
            rows
        };
        (0..count).map(|_| step(pace)).collect()
    }

    #[test]
    fn a_step_with_a_long_prompt_takes_half_as_long_again() {
        let mut pace = Pace::default();
        assert_eq!(pace.rows(128), 128, "nothing is known yet");
        pace.measure(0, 512, 512 * 150);
        pace.measure(8, 0, 20_000);
        steps(&mut pace, 60, 200);
        let rows: usize = steps(&mut pace, 100, 200).iter().sum();
        assert!((4990..=5050).contains(&rows), "10 ms of 200 µs a row is 50 rows a step: {rows}");
        assert_eq!(pace.rows(40), 40);
    }

    #[test]
    fn a_chunk_that_costs_more_than_a_step_earns_is_saved_up_for() {
        let mut pace = Pace::default();
        pace.measure(8, 0, 20_000);
        pace.measure(0, 10, 200_000);
        let rows = steps(&mut pace, 80, 20_000);
        assert_eq!(rows.iter().sum::<usize>(), 40, "4 rows in one of eight steps: {rows:?}");
        assert!(rows.iter().all(|rows| [0, 4].contains(rows)), "{rows:?}");
    }
}
