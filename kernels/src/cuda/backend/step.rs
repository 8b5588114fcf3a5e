//! A step on the device: its rows, the plans of its attention, and what its operations compute with.

use std::sync::Arc;

use half::bf16;

use super::{
    draws::Draws,
    graphs::{self, Graphs},
    staging::{Part, Staging},
    unpacked::Scratch,
};
use crate::{
    BLOCK_TOKENS, Batch, Error, Heads, Sequence, StepLimits,
    cuda::{
        Device, Memory, View,
        ops::{
            AttentionCapacity, AttentionLimits, AttentionPlan, AttentionSequence, AttentionShape, DRAWN,
            PlannedView,
        },
    },
};

/// Rows of the smallest attention tile.
const TILE_ROWS: usize = 16;
/// Parts that attention may be cut into along its keys, and the most numbers that their sums may take.
const PARTS: usize = 1024;
const MOST_SUMS: usize = 16 << 20;
/// Words of the lists of an attention plan: of a sequence, and of a tile or part with its merge.
const SEQUENCE_WORDS: usize = 3;
const ITEM_WORDS: usize = 6 + 5;
/// Of sequences that decode, and of those with many new tokens.
const PLANS: usize = 2;

/// A step, with memory for the largest.
pub struct Step {
    pub(super) limits: StepLimits,
    pub(super) rows: Rows,
    pub(super) graphs: Graphs,
    /// Of each layer, in the cache that the last attention was over.
    pub(super) pages: usize,
    /// Sums of the parts of attention.
    pub(super) sums: Memory<f32>,
    /// Normed rows.
    pub(super) normed: Memory<bf16>,
    /// `[gate | up]` of each row.
    pub(super) pairs: Memory<bf16>,
    /// A rank's part of what is added to the residual stream, where this machine adds the parts up.
    pub(super) part: Memory<f32>,
    /// The chosen rows of the residual stream, and of what is to be added to it.
    pub(super) chosen: [Memory<bf16>; 2],
    pub(super) scratch: Scratch,
    pub(super) draws: Draws,
}

/// The rows, as the kernels read them.
pub(super) struct Rows {
    count: usize,
    /// Whether they, and their plan, are laid out as in any step of so many rows that only decodes.
    fixed: bool,
    staging: Staging,
    tokens: Part,
    positions: Part,
    slots: Part,
    plans: Vec<Planned>,
}

/// A plan, for layers of which window, and where its lists lie.
struct Planned {
    window: Option<usize>,
    plan: AttentionPlan,
    capacity: AttentionCapacity,
    lists: Part,
    table: Part,
}

// === impl Step ===

impl Step {
    /// `grouped` says whether it is a rank's, whose parts of sums this machine adds up;
    /// `unpacked`, how many numbers of packed weights large products take at a time.
    pub(super) fn new(
        device: &Arc<dyn Device>,
        limits: &StepLimits,
        grouped: bool,
        unpacked: usize,
    ) -> Result<Self, Error> {
        let StepLimits { rows, draws, width, hidden, heads, vocab, .. } = *limits;
        let qkv = (heads.heads + 2 * heads.kv_heads) * heads.dim;
        let largest = vocab.max(qkv).max(2 * hidden).max(width);
        Ok(Self {
            limits: *limits,
            rows: Rows::new(device, limits)?,
            graphs: Graphs::default(),
            pages: 0,
            sums: Memory::new(device, parts(heads) * part(heads))?,
            normed: Memory::new(device, rows.max(draws) * width)?,
            pairs: Memory::new(device, rows * 2 * hidden)?,
            part: Memory::new(device, if grouped { rows * width } else { 0 })?,
            chosen: [Memory::new(device, draws * width)?, Memory::new(device, draws * width)?],
            scratch: Scratch::new(device, largest, unpacked)?,
            draws: Draws::new(device, draws, vocab)?,
        })
    }

    /// Lays out a batch and starts its way to the device.
    pub(super) fn begin(
        &mut self,
        device: &dyn Device,
        batch: &Batch,
        invariant: bool,
        graphs: bool,
    ) -> Result<(), Error> {
        let (rows, sequences) = (batch.tokens.len(), batch.sequences.len());
        if rows > self.limits.rows || sequences > self.limits.sequences {
            return Err(misfit(format!(
                "{rows} rows of {sequences} sequences; {} of {} are the most",
                self.limits.rows, self.limits.sequences
            )));
        }
        let limits = AttentionLimits { invariant, scratch: self.sums.len(), items: usize::MAX };
        self.rows.lay_out(device, batch, &self.limits, limits, graphs)
    }
}

/// The windows that layers have.
fn windows(limits: &StepLimits) -> impl Iterator<Item = Option<usize>> {
    let local = limits.local.map(Some).filter(|&local| local != limits.heads.window);
    [limits.heads.window].into_iter().chain(local)
}

/// Numbers that the sums of a part take, of the smallest tile.
fn part(heads: Heads) -> usize {
    TILE_ROWS * heads.kv_heads.max(1) * (heads.dim + 2)
}

/// Parts that there is room for.
fn parts(heads: Heads) -> usize {
    PARTS.min(MOST_SUMS / part(heads))
}

/// Tiles that a sequence which decodes takes at most.
fn tiles_of_one(heads: Heads) -> usize {
    (heads.heads / heads.kv_heads.max(1)).div_ceil(TILE_ROWS).max(1)
}

/// Parts of attention that steps of a fixed layout may have besides one for each sequence, for each KV head: as many as
/// a device runs at a time.
fn more_parts(heads: Heads, device: &dyn Device) -> usize {
    (4 * device.properties().processors as usize).div_ceil(heads.kv_heads.max(1))
}

fn misfit(problem: String) -> Error {
    Error::Arguments { operation: "a step", problem }
}

// === impl Rows ===

impl Rows {
    fn new(device: &Arc<dyn Device>, limits: &StepLimits) -> Result<Self, Error> {
        let StepLimits { rows, sequences, blocks, heads, .. } = *limits;
        let tiles = (rows * heads.heads).div_ceil(heads.kv_heads.max(1) * TILE_ROWS) + sequences;
        let words = sequences * (SEQUENCE_WORDS + blocks) + ITEM_WORDS * (tiles + PLANS * parts(heads));
        let windows = windows(limits).count();
        // A fixed layout has room for more than there is.
        let most = rows.min(graphs::MOST_ROWS);
        let fixed = (SEQUENCE_WORDS + ITEM_WORDS * tiles_of_one(heads)) * most
            + ITEM_WORDS * more_parts(heads, &**device);
        let bytes = rows * (4 + 4 + 8) + windows * 4 * (words + fixed + PLANS);
        Ok(Self {
            count: 0,
            fixed: false,
            staging: Staging::new(device, bytes, 3 + (windows + 1) * PLANS)?,
            tokens: Part::default(),
            positions: Part::default(),
            slots: Part::default(),
            plans: Vec::with_capacity(windows * PLANS),
        })
    }

    fn lay_out(
        &mut self,
        device: &dyn Device,
        batch: &Batch,
        step: &StepLimits,
        limits: AttentionLimits,
        graphs: bool,
    ) -> Result<(), Error> {
        let (rows, group) = (batch.tokens.len(), step.heads.heads / step.heads.kv_heads.max(1));
        let decodes = |sequence: &Sequence| sequence.rows == 1 || sequence.rows * group <= TILE_ROWS;
        self.fixed = graphs && rows <= graphs::MOST_ROWS && batch.sequences.iter().all(decodes);
        self.count = if self.fixed { graphs::size(rows).min(step.rows) } else { rows };
        self.staging.clear()?;
        let mut tokens = batch.tokens.clone();
        for &(row, draw) in &batch.drawn {
            let token = tokens.get_mut(row).filter(|_| draw < step.draws);
            let token = token.ok_or_else(|| misfit(format!("row {row} is of draw {draw}")))?;
            *token = DRAWN + draw as u32;
        }
        tokens.resize(self.count, 0);
        let (mut positions, mut slots) = (vec![0u32; self.count], vec![-1i64; self.count]);
        for sequence in &batch.sequences {
            for i in 0..sequence.rows {
                let (row, position) = (sequence.first_row + i, sequence.position + i);
                let block = sequence.blocks.get(position / BLOCK_TOKENS).filter(|_| row < rows);
                let block = block.ok_or_else(|| misfit(format!("row {row} has no block at {position}")))?;
                positions[row] = position as u32;
                slots[row] = i64::from(block.0) * BLOCK_TOKENS as i64 + (position % BLOCK_TOKENS) as i64;
            }
        }
        self.tokens = self.staging.put(&tokens)?;
        self.positions = self.staging.put(&positions)?;
        self.slots = self.staging.put(&slots)?;
        self.plans.clear();
        // Sequences that decode are planned apart from those with many new tokens.
        let (decodes, others) = batch.sequences.iter().partition::<Vec<_>, _>(|sequence| decodes(sequence));
        for sequences in [decodes, others].iter().filter(|sequences| !sequences.is_empty()) {
            self.plan(device, sequences, step, limits)?;
        }
        self.staging.upload()
    }

    /// For each window. Block tables are of any size, so they come last: all else has its place by the number of rows.
    fn plan(
        &mut self,
        device: &dyn Device,
        sequences: &[&Sequence],
        step: &StepLimits,
        limits: AttentionLimits,
    ) -> Result<(), Error> {
        let (heads, more, first) = (step.heads, more_parts(step.heads, device), self.plans.len());
        let tables = sequences.iter().map(|sequence| sequence.blocks.iter().map(|block| block.0).collect());
        let tables: Vec<Vec<u32>> = tables.collect();
        let sequences = sequences.iter().zip(&tables).map(|(sequence, pages)| AttentionSequence {
            first_row: sequence.first_row,
            tokens: sequence.rows,
            position: sequence.position,
            pages,
        });
        let sequences: Vec<_> = sequences.collect();
        let tiles = tiles_of_one(heads);
        let items = if self.fixed { sequences.len() * tiles + more } else { limits.items };
        let limits = AttentionLimits { items, ..limits };
        for window in windows(step) {
            let shape = AttentionShape {
                heads: heads.heads,
                kv_heads: heads.kv_heads,
                dim: heads.dim,
                page_tokens: BLOCK_TOKENS,
                e4m3: false,
                window,
                softcap: heads.softcap,
                scale: heads.scale,
            };
            let plan = AttentionPlan::new(&shape, &sequences, &limits, device.properties())?;
            let mut capacity = plan.capacity();
            if self.fixed {
                capacity = AttentionCapacity {
                    sequences: self.count,
                    entries: self.count * step.blocks,
                    items: self.count * tiles + more,
                    // Each is of two items at least.
                    merges: (self.count * tiles).min(self.count * (tiles - 1) + more),
                    slots: limits.scratch / plan.scratch(1),
                    rows: self.count,
                    pages: capacity.pages,
                    folds: limits.invariant,
                };
            }
            let lists = self.staging.put(&plan.lists(&capacity)?)?;
            self.plans.push(Planned { window, plan, capacity, lists, table: Part::default() });
        }
        let of_all = &mut self.plans[first..];
        let table = self.staging.put(of_all.first().map_or(&[][..], |planned| planned.plan.table()))?;
        of_all.iter_mut().for_each(|planned| planned.table = table.clone());
        Ok(())
    }

    /// How many, those that only fill a fixed layout included.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether steps of so many rows are all laid out like this one.
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// Pages of the cache that attention reads, from the first on.
    pub(super) fn pages(&self) -> usize {
        self.plans.iter().map(|planned| planned.capacity.pages).max().unwrap_or(0)
    }

    pub(super) fn tokens(&self) -> View<'_, u32> {
        self.staging.view(&self.tokens)
    }

    pub(super) fn positions(&self) -> View<'_, u32> {
        self.staging.view(&self.positions)
    }

    /// Places in the cache.
    pub(super) fn slots(&self) -> View<'_, i64> {
        self.staging.view(&self.slots)
    }

    /// Launches of attention that cover all rows, in layers of such a window.
    pub(super) fn plans(&self, window: Option<usize>) -> impl Iterator<Item = PlannedView<'_>> {
        self.plans.iter().filter(move |planned| planned.window == window).map(|planned| {
            let Planned { plan, capacity, lists, table, .. } = planned;
            PlannedView::new(plan, capacity, self.staging.view(lists), self.staging.view(table))
        })
    }
}
