//! Causal attention over the paged cache: divides a step's rows into tasks.
//!
//! Bounds: a decode reads each KV head's past once (`4 · dim` bytes a position), so long contexts run at
//! memory bandwidth; a prompt does `4 · dim` floating-point operations per head and pair of positions out of
//! L1 and L2, so it runs at the rate of fused multiply-adds.
//!
//! How rows are divided changes no bit (see `kernel.rs`): prompts are cut by positions, and the past of
//! decodes by tiles where there are too few of them for the threads.

mod kernel;
mod plan;
#[cfg(test)]
mod tests;
mod tile;

use std::sync::Mutex;

use self::kernel::{Attend, Fold, Rows, Sink, part_len};
use self::plan::{Plan, Split, Task, first_tile};
use self::tile::TILE;
use super::cache::{Cache, Shape};
use super::isa::Isa;
use super::pool::Pool;
use super::scratch::{self, Scratch, Shared};
use super::simd;
use crate::{BLOCK_TOKENS, Batch, Heads};

/// Memory that attention keeps between calls.
#[derive(Default)]
pub(crate) struct Attention {
    parts: Mutex<Scratch>,
}

/// What a call works on.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) layer: usize,
    pub(crate) heads: Heads,
    /// `[rows][(heads + 2 kv_heads) · dim]`.
    pub(crate) qkv: &'a [f32],
    pub(crate) cache: &'a Cache,
}

// === impl Attention ===

impl Attention {
    /// Computes `out`, `[rows][heads · dim]`.
    ///
    /// # Panics
    /// If the shapes don't fit together.
    pub(crate) fn run(&self, pool: &Pool, isa: Isa, step: Step<'_>, out: &mut [f32]) {
        step.check(out.len());
        let plan = Plan::new(&step.batch.sequences, step.heads, pool.threads());
        let mut parts = scratch::lock(&self.parts);
        let parts = Shared::new(parts.numbers(plan.parts_len));
        let out = Shared::new(out);
        pool.run(plan.tasks.len(), &|i| step.attend(isa, &plan.tasks[i], parts, out));
        pool.run(plan.splits.len(), &|i| step.fold(isa, &plan.splits[i], parts, out));
    }
}

// === impl Step ===

impl Step<'_> {
    fn check(&self, out_len: usize) {
        let Heads { heads, kv_heads, dim, .. } = self.heads;
        let shape = self.cache.shape();
        assert_eq!(
            shape,
            Shape::new(shape.layers, self.heads, shape.precision),
            "the cache is for other heads"
        );
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads} KV heads");
        for sequence in &self.batch.sequences {
            let end = sequence.first_row + sequence.rows;
            assert!(end * self.qkv_stride() <= self.qkv.len(), "more rows than the QKV buffer has");
            assert!(end * heads * dim <= out_len, "more rows than the output buffer has");
            let blocks = (sequence.position + sequence.rows).div_ceil(BLOCK_TOKENS);
            assert!(blocks <= sequence.blocks.len(), "the block table is too short");
        }
    }

    fn qkv_stride(&self) -> usize {
        (self.heads.heads + 2 * self.heads.kv_heads) * self.heads.dim
    }

    fn group(&self) -> usize {
        self.heads.heads / self.heads.kv_heads
    }

    /// Where the output of a sequence's row begins, for a KV head.
    fn output(&self, sequence: usize, row: usize, kv_head: usize) -> usize {
        let row = self.batch.sequences[sequence].first_row + row;
        (row * self.heads.heads + kv_head * self.group()) * self.heads.dim
    }

    fn attend(&self, isa: Isa, task: &Task, parts: Shared, out: Shared) {
        let Heads { heads, dim, scale, window, softcap, .. } = self.heads;
        let sequence = &self.batch.sequences[task.sequence];
        let row = sequence.first_row + task.rows.start;
        let rows = Rows {
            cache: self.cache,
            blocks: &sequence.blocks,
            layer: self.layer,
            kv_heads: task.kv_heads.clone(),
            group: self.group(),
            scale,
            window,
            softcap,
            position: sequence.position + task.rows.start,
            positions: task.rows.len(),
            q: &self.qkv[row * self.qkv_stride() + task.kv_heads.start * self.group() * dim..],
            q_stride: self.qkv_stride(),
        };
        let sink = match task.parts {
            // SAFETY: the plan has counted the parts; each task has its own rows and tiles.
            Some(at) => unsafe {
                Sink::Parts { parts: parts.at(at), stride: plan::tiles(sequence) * part_len(dim) }
            },
            // SAFETY: `check` has checked the size of `out`; each task has its own rows and heads.
            None => unsafe {
                let at = self.output(task.sequence, task.rows.start, task.kv_heads.start);
                Sink::Output { out: out.at(at), stride: heads * dim }
            },
        };
        let tiles = task.tiles.clone();
        scratch::with(rows.scratch_len(), |scratch| {
            // SAFETY: this machine has `isa`; `check` has checked the shapes.
            unsafe { simd::run(isa, Attend { rows, tiles, sink, scratch }) }
        });
    }

    /// Puts the parts of a KV head together.
    fn fold(&self, isa: Isa, split: &Split, parts: Shared, out: Shared) {
        let (dim, group) = (self.heads.dim, self.group());
        let sequence = &self.batch.sequences[split.sequence];
        let stride = plan::tiles(sequence) * part_len(dim);
        for row in 0..sequence.rows * group {
            let (position, head) = (row / group, row % group);
            let absolute = sequence.position + position;
            let tiles = first_tile(absolute, self.heads)..absolute / TILE + 1;
            let at = self.output(split.sequence, position, split.kv_head) + head * dim;
            scratch::with(part_len(dim), |scratch| {
                // SAFETY: as in `attend`; the section before has written the parts.
                unsafe {
                    let (parts, out) = (parts.at(split.parts + row * stride), out.at(at));
                    simd::run(isa, Fold { parts, tiles: tiles.clone(), dim, out, scratch });
                }
            });
        }
    }
}
