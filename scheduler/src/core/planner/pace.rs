//! How fast a long prompt may go beside streams.
//!
//! Every row of a prompt makes the step longer, and every stream beside it waits. How much is measured: the
//! time of steps that only decode, and what a prompt's row adds to it. A long prompt is given so many rows
//! that a step takes at most half as long again as without it.

use crate::core::types::TokenCount;

/// By how much of its time a step may get longer.
const STRETCH: f64 = 0.5;
/// What a new measurement counts for.
const WEIGHT: f64 = 0.125;

/// What steps take on this worker, in microseconds; 0 where nothing has been measured.
#[derive(Debug, Default)]
pub(super) struct Pace {
    decodes: f64,
    row: f64,
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

    /// Rows of long prompts in a step with decodes, of the `share` that prompts have in it. Never so few that
    /// they come to a standstill.
    pub(super) fn rows(&self, share: TokenCount) -> TokenCount {
        if self.decodes == 0.0 || self.row == 0.0 {
            return share;
        }
        let rows = STRETCH * self.decodes / self.row;
        (rows as usize).clamp(share.div_ceil(16), share.max(1))
    }
}

fn blend(mean: &mut f64, measured: f64) {
    *mean = if *mean == 0.0 { measured } else { *mean + WEIGHT * (measured - *mean) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_with_a_long_prompt_takes_half_as_long_again() {
        let mut pace = Pace::default();
        assert_eq!(pace.rows(128), 128, "nothing is known yet");
        pace.measure(0, 512, 512 * 150);
        pace.measure(8, 0, 20_000);
        for _ in 0..50 {
            let rows = pace.rows(128);
            pace.measure(8, rows, 20_000 + 200 * rows as u64);
        }
        assert_eq!(pace.rows(128), 50);
        assert_eq!((pace.rows(40), pace.rows(1)), (40, 1));
        (0..50).for_each(|_| pace.measure(1, 0, 100));
        assert_eq!(pace.rows(128), 8, "a prompt goes on however fast the streams are");
    }
}
