//! An embedding in the making: the final hidden states of a prompt, pooled as its steps compute them.

use crate::config::Pooling;

/// What one sequence has of its embedding.
pub(super) struct Pool {
    pooling: Pooling,
    /// Added up position by position, so that no way of cutting a prompt into steps changes a bit.
    sum: Vec<f64>,
    positions: usize,
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(pooling: Pooling) -> Self {
        Self { pooling, sum: Vec::new(), positions: 0 }
    }

    /// How many of a run's `rows` rows count, of its last ones; `ends`: the run reaches the prompt's end.
    pub(super) fn wants(&self, rows: usize, ends: bool) -> usize {
        match self.pooling {
            Pooling::Mean => rows,
            Pooling::Last => usize::from(ends),
        }
    }

    /// Adds hidden states, in the order of their positions: `[rows, width]`.
    pub(super) fn add(&mut self, hidden: &[f32], width: usize) {
        self.sum.resize(width, 0.0);
        for row in hidden.chunks_exact(width) {
            self.sum.iter_mut().zip(row).for_each(|(sum, number)| *sum += f64::from(*number));
            self.positions += 1;
        }
    }

    /// The embedding of what was added.
    pub(super) fn embedding(&self) -> Vec<f32> {
        let positions = self.positions.max(1) as f64;
        self.sum.iter().map(|sum| (sum / positions) as f32).collect()
    }
}
