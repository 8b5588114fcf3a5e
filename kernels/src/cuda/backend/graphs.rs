//! Passes of steps that only decode: steps are padded to a few sizes, and what a pass launches for a size is kept as a
//! graph, which is launched as one. It reads all that differs from step to step from the device's memory.

use std::collections::HashMap;

use super::{CudaBackend, step::Step};
use crate::{Error, cuda::Graph};

/// Rows of the largest size.
pub(super) const MOST_ROWS: usize = 512;

/// What is kept.
#[derive(Default)]
pub(super) struct Graphs {
    /// By rows.
    kept: HashMap<usize, Kept>,
    /// One could not be made: there shall be no more.
    failed: bool,
}

enum Kept {
    /// Nothing yet: a size that is met once is not worth a graph.
    Met,
    /// The pass, over so many pages of each layer.
    Graph { graph: Box<dyn Graph>, pages: usize },
}

/// The size that a step of so many rows is padded to.
pub(super) fn size(rows: usize) -> usize {
    match rows {
        0..=8 => rows.next_power_of_two(),
        9..=64 => rows.next_multiple_of(8),
        65..=128 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(32),
    }
}

impl CudaBackend {
    pub(super) fn run_pass(&self, step: &mut Step, pass: &mut dyn FnMut(&mut Step)) {
        if !step.rows.is_fixed() {
            return pass(step);
        }
        let size = step.rows.count();
        let kept = match step.graphs.kept.remove(&size) {
            Some(kept @ Kept::Graph { .. }) => {
                self.start(|| kept.launch(step));
                kept
            }
            Some(Kept::Met) if !step.graphs.failed => self.capture(step, pass),
            _ => {
                pass(step);
                Kept::Met
            }
        };
        step.graphs.kept.insert(size, kept);
    }

    /// Makes a graph of the pass, and launches it.
    fn capture(&self, step: &mut Step, pass: &mut dyn FnMut(&mut Step)) -> Kept {
        let captured = self.device.capture(&mut || {
            pass(step);
            self.works()
        });
        match captured {
            Ok(graph) => {
                let kept = Kept::Graph { graph, pages: step.pages };
                self.start(|| kept.launch(step));
                kept
            }
            // There may be no memory left for it. What it is made of works without it, or says itself what is wrong.
            Err(error) => {
                if self.works().is_ok() {
                    tracing::warn!(%error, "no more steps are made graphs: kernels are launched one by one");
                }
                step.graphs.failed = true;
                pass(step);
                Kept::Met
            }
        }
    }
}

impl Kept {
    fn launch(&self, step: &Step) -> Result<(), Error> {
        let Self::Graph { graph, pages } = self else { return Ok(()) };
        if step.rows.pages() > *pages {
            let problem = format!("page {} of {pages}", step.rows.pages());
            return Err(Error::Arguments { operation: "a step", problem });
        }
        // SAFETY: the caller of `pass` promises the same buffers, which therefore exist; what is of the step, exists.
        unsafe { graph.launch() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_few_and_waste_little() {
        let sizes: std::collections::BTreeSet<_> = (1..=MOST_ROWS).map(size).collect();
        assert!(sizes.len() < 32 && sizes.contains(&MOST_ROWS), "{sizes:?}");
        for rows in 1..=MOST_ROWS {
            assert!((rows..=MOST_ROWS).contains(&size(rows)) && size(size(rows)) == size(rows), "{rows}");
            assert!(size(rows) - rows < (rows / 4).max(8), "{rows}: {}", size(rows));
        }
    }
}
