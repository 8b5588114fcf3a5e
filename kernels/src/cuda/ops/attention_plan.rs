//! How a step's attention is cut up for the SMs: pure, from lengths to the lists that the kernels read.
//!
//! A row is a query token and one of the query heads that share a KV head. Rows of a sequence are cut into tiles; a
//! tile whose keys would keep one SM busy long after the others is cut along its keys too, each part's sums go to
//! scratch memory, and a merge folds them. With `invariant` sums restart at absolute multiples of [`SEGMENT`] keys
//! wherever the cuts are, so that they don't show in the bits.

use super::{int, require};
use crate::{Error, cuda::Properties};

pub(super) const OPERATION: &str = "attention";
/// Keys of a tile: parts of a row tile's keys start at multiples of it.
const TILE: usize = 128;
/// Keys after which sums restart in batch-invariant mode.
const SEGMENT: usize = 512;
/// Words of one entry of the lists, as the kernels' structs have them.
const SEQUENCE_WORDS: usize = 3;
const ITEM_WORDS: usize = 6;
const MERGE_WORDS: usize = 5;

/// How a layer's attention is laid out; the same for all sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads: a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Dimensions of a head: 64, 80, 96, 128 or 256.
    pub dim: usize,
    /// Tokens of a page: a multiple of 16.
    pub page_tokens: usize,
    /// Keys and values are e4m3, not bf16.
    pub e4m3: bool,
    /// Keys that a token sees, itself included; none: all before it.
    pub window: Option<usize>,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Multiplies scores.
    pub scale: f32,
}

/// The new tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSequence<'a> {
    /// Row of the queries of its first new token.
    pub first_row: usize,
    /// New tokens.
    pub tokens: usize,
    /// Absolute position of the first: so many keys come before it.
    pub position: usize,
    /// Its pages, from position 0 on; those wholly outside the window are not read and may be anything.
    pub pages: &'a [u32],
}

/// The kernel that a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernel {
    /// Tiles of 16 rows: decoding.
    Small,
    /// Tiles of 64 rows (32 for 256 dimensions): prefill, and groups of more than 16 query heads.
    Large,
    /// Tiles of 128 rows with wgmma; never batch-invariant.
    Hopper,
}

/// What a plan may choose from.
#[derive(Clone, Copy, Debug)]
pub struct AttentionLimits {
    /// A row's bits depend on its own sequence only, however it is computed.
    pub invariant: bool,
    /// Elements of scratch memory for parts; 0: never cut along keys.
    pub scratch: usize,
    /// Blocks of threads for each KV head, unless there are more tiles of rows.
    pub items: usize,
}

/// The lists, and what a launch needs to know of them.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionPlan {
    /// What it was made for.
    pub shape: AttentionShape,
    /// The kernel.
    pub kernel: AttentionKernel,
    /// Sums restart after so many keys; 0: never.
    pub segment: usize,
    folds: bool,
    /// Rows of queries and outputs are touched up to here.
    rows: usize,
    /// Pages are touched up to here.
    pages: usize,
    sequences: Vec<[i32; SEQUENCE_WORDS]>,
    table: Vec<i32>,
    items: Vec<[i32; ITEM_WORDS]>,
    merges: Vec<[i32; MERGE_WORDS]>,
    /// Parts: each has room for a tile's rows in every KV head.
    slots: usize,
}

/// What the plans that a captured graph is to run may have and touch at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionCapacity {
    /// Sequences.
    pub sequences: usize,
    /// Entries of all block tables together.
    pub entries: usize,
    /// Blocks of threads for each KV head.
    pub items: usize,
    /// Row tiles that are merged.
    pub merges: usize,
    /// Parts in scratch memory.
    pub slots: usize,
    /// Rows of queries and outputs.
    pub rows: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// A block may fold segments by itself, which takes shared memory.
    pub folds: bool,
}

/// A tile of rows: whose, which, and the keys that any of them sees.
#[derive(Clone, Copy)]
struct RowTile {
    sequence: usize,
    first: usize,
    rows: usize,
    begin: usize,
    end: usize,
}

// === impl AttentionShape ===

impl AttentionShape {
    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn check(&self) -> Result<(), Error> {
        let fits = self.kv_heads > 0 && self.heads > 0 && self.heads.is_multiple_of(self.kv_heads);
        require(OPERATION, fits, || format!("{} heads over {} KV heads", self.heads, self.kv_heads))?;
        require(OPERATION, [64, 80, 96, 128, 256].contains(&self.dim), || {
            format!("heads of 64, 80, 96, 128 or 256 dimensions are supported, not of {}", self.dim)
        })?;
        let pages = self.page_tokens > 0 && self.page_tokens.is_multiple_of(16);
        require(OPERATION, pages, || format!("a page of {} tokens is no multiple of 16", self.page_tokens))?;
        require(OPERATION, self.scale > 0.0 && self.scale.is_finite(), || {
            format!("scale must be positive, not {}", self.scale)
        })?;
        require(OPERATION, self.softcap.is_none_or(|cap| cap > 0.0 && cap.is_finite()), || {
            format!("softcap must be positive, not {:?}", self.softcap)
        })?;
        require(OPERATION, self.window != Some(0), || "a window has at least one key".into())
    }
}

// === impl AttentionKernel ===

impl AttentionKernel {
    /// Rows of a tile.
    pub fn rows(self, dim: usize) -> usize {
        match self {
            Self::Small => 16,
            Self::Large if dim > 128 => 32,
            Self::Large => 64,
            Self::Hopper => 128,
        }
    }

    /// Dynamic shared memory of a block: as `AttentionShape` in `attention.cuh` and `HopperAttention` lay it out.
    pub(super) fn shared(self, shape: &AttentionShape, folds: bool) -> usize {
        let (dim, rows) = (shape.dim, self.rows(shape.dim));
        if self == Self::Hopper {
            let (groups, keys) = (dim.div_ceil(64), if dim > 128 { 64 } else { 128 });
            return groups * 128 * (rows + 4 * keys) + 8 * 8;
        }
        let bytes = if shape.e4m3 { dim } else { 2 * dim };
        let stride = if (bytes / 16) % 2 == 1 { bytes } else { bytes + 16 };
        let stages = if bytes > 256 { 1 } else { 2 };
        let tiles = 2 * stages * 64 * stride;
        let queries = rows * (2 * dim + 16) + rows * (2 * 64 + 16);
        let total = rows / 16 * ((dim / 16).div_ceil(4) * 8 + 4) * 128 * 4;
        tiles + queries + 4 * rows * 4 + rows * 4 + if folds { total } else { 0 }
    }

    /// The most suitable one for tiles of up to `rows` rows a sequence.
    fn choose(shape: &AttentionShape, rows: usize, invariant: bool, device: &Properties) -> Self {
        let hopper = device.arch == 90 && !invariant && !shape.e4m3;
        let fits = |kernel: Self| kernel.shared(shape, invariant) <= device.shared_bytes;
        if rows > 64 && hopper && fits(Self::Hopper) {
            Self::Hopper
        } else if rows > 16 && fits(Self::Large) {
            Self::Large
        } else {
            Self::Small
        }
    }
}

// === impl AttentionPlan ===

impl AttentionPlan {
    /// Plans the attention of some sequences. All are run by one kernel, chosen for the one with most rows: plan those
    /// that decode apart from those that have many new tokens.
    pub fn new(
        shape: &AttentionShape,
        sequences: &[AttentionSequence<'_>],
        limits: &AttentionLimits,
        device: &Properties,
    ) -> Result<Self, Error> {
        shape.check()?;
        let most = sequences.iter().map(|s| s.tokens * shape.group()).max().unwrap_or(0);
        let kernel = AttentionKernel::choose(shape, most, limits.invariant, device);
        let mut plan = Self {
            shape: *shape,
            kernel,
            segment: if limits.invariant { SEGMENT } else { 0 },
            folds: false,
            rows: 0,
            pages: 0,
            sequences: Vec::new(),
            table: Vec::new(),
            items: Vec::new(),
            merges: Vec::new(),
            slots: 0,
        };
        let mut tiles = Vec::new();
        for sequence in sequences {
            plan.add(sequence, &mut tiles)?;
        }
        let part = kernel.rows(shape.dim) * shape.kv_heads * (shape.dim + 2);
        plan.cut(&tiles, (limits.scratch / part, limits.items), plan.resident(device))?;
        Ok(plan)
    }

    /// Elements of scratch memory that so many parts take.
    pub fn scratch(&self, slots: usize) -> usize {
        slots * self.part_rows() * self.shape.kv_heads * (self.shape.dim + 2)
    }

    /// The capacity that just holds it.
    pub fn capacity(&self) -> AttentionCapacity {
        AttentionCapacity {
            sequences: self.sequences.len(),
            entries: self.table.len(),
            items: self.items.len(),
            merges: self.merges.len(),
            slots: self.slots,
            rows: self.rows,
            pages: self.pages,
            folds: self.folds,
        }
    }

    pub(super) fn part_rows(&self) -> usize {
        self.kernel.rows(self.shape.dim)
    }

    /// The lists one after another, each with room for the capacity's; what is empty does nothing.
    pub(in crate::cuda) fn lists(&self, capacity: &AttentionCapacity) -> Result<Vec<i32>, Error> {
        let has = self.capacity();
        require(OPERATION, has.fits(capacity), || {
            format!("a plan of {has:?} doesn't fit into {capacity:?}")
        })?;
        let mut words = Vec::with_capacity(capacity.lists());
        words.extend(self.sequences.iter().flatten());
        words.resize(capacity.items_at(), 0);
        words.extend(self.items.iter().flatten());
        words.resize(capacity.merges_at(), 0);
        words.extend(self.merges.iter().flatten());
        words.resize(capacity.lists(), 0);
        Ok(words)
    }

    /// The block tables: the same for any window.
    pub(in crate::cuda) fn table(&self) -> &[i32] {
        &self.table
    }

    /// Blocks that the device runs at a time, for all KV heads together.
    fn resident(&self, device: &Properties) -> usize {
        // An SM has a kilobyte more than a block can have; each block takes one.
        let block = self.kernel.shared(&self.shape, self.segment > 0) + 1024;
        let by_registers = if self.kernel == AttentionKernel::Small { 4 } else { 2 };
        device.processors as usize * ((device.shared_bytes + 1024) / block).clamp(1, by_registers)
    }

    /// Takes a sequence in, and cuts its rows into tiles.
    fn add(&mut self, sequence: &AttentionSequence<'_>, tiles: &mut Vec<RowTile>) -> Result<(), Error> {
        let (page, group) = (self.shape.page_tokens, self.shape.group());
        let keys = sequence.position + sequence.tokens;
        let pages = keys.div_ceil(page);
        require(OPERATION, sequence.pages.len() >= pages, || {
            format!("{keys} keys need {pages} pages, not {}", sequence.pages.len())
        })?;
        let window = self.shape.window.unwrap_or(keys);
        let first_page = (sequence.position + 1).saturating_sub(window) / page;
        for (i, &id) in sequence.pages[..pages].iter().enumerate() {
            let read = i >= first_page;
            self.pages = self.pages.max(if read { id as usize + 1 } else { 0 });
            // What is not read may be anything.
            let known = int(OPERATION, "a page id", id as usize);
            self.table.push(if read { known? } else { known.unwrap_or(0) });
        }
        let at = self.table.len() - pages;
        self.rows = self.rows.max(sequence.first_row + sequence.tokens);
        let words = [sequence.first_row, sequence.position, at];
        let mut entry = [0; SEQUENCE_WORDS];
        for (word, size) in entry.iter_mut().zip(words) {
            *word = int(OPERATION, "a row or position", size)?;
        }
        int(OPERATION, "a sequence's rows", sequence.tokens * group)?;
        int(OPERATION, "a sequence's keys", keys)?;
        self.sequences.push(entry);
        let (unit, most, all) = (self.segment.max(TILE), self.part_rows(), sequence.tokens * group);
        for first in (0..all).step_by(most) {
            let rows = most.min(all - first);
            let sees = sequence.position + first / group + 1;
            tiles.push(RowTile {
                sequence: self.sequences.len() - 1,
                first,
                rows,
                begin: sees.saturating_sub(window) / unit * unit,
                end: sequence.position + (first + rows - 1) / group + 1,
            });
        }
        Ok(())
    }

    /// Makes items of row tiles, in parts of about the length that ends soonest.
    fn cut(&mut self, tiles: &[RowTile], most: (usize, usize), resident: usize) -> Result<(), Error> {
        let unit = self.segment.max(TILE);
        let length = best_part(
            tiles,
            unit,
            most,
            self.segment,
            resident.div_ceil(self.shape.kv_heads),
            self.part_rows(),
        );
        for tile in tiles {
            let keys = tile.end - tile.begin;
            let parts = keys.div_ceil(length);
            if parts <= 1 {
                self.folds |= self.segment > 0 && keys > self.segment;
                self.item(tile, tile.begin, tile.end, None)?;
                continue;
            }
            let (each, first_slot) = (keys.div_ceil(parts).next_multiple_of(unit), self.slots);
            for begin in (tile.begin..tile.end).step_by(each) {
                let end = tile.end.min(begin + each);
                self.item(tile, begin, end, Some(self.slots))?;
                self.slots += if self.segment > 0 { (end - begin).div_ceil(self.segment) } else { 1 };
            }
            let [row, ..] = self.sequences[tile.sequence];
            let words = [tile.first, tile.rows, first_slot, self.slots - first_slot];
            let mut merge = [row; MERGE_WORDS];
            for (word, size) in merge[1..].iter_mut().zip(words) {
                *word = int(OPERATION, "a part", size)?;
            }
            self.merges.push(merge);
        }
        // The longest start first, so that none is left running alone.
        self.items.sort_by_key(|item| item[3] - item[4]);
        Ok(())
    }

    fn item(&mut self, tile: &RowTile, begin: usize, end: usize, slot: Option<usize>) -> Result<(), Error> {
        let mut item = [-1; ITEM_WORDS];
        let words = [tile.sequence, tile.first, tile.rows, begin, end].into_iter().chain(slot);
        for (word, size) in item.iter_mut().zip(words) {
            *word = int(OPERATION, "an item", size)?;
        }
        self.items.push(item);
        Ok(())
    }
}

/// Keys of a part, so that the whole ends soonest as far as list scheduling can promise: all work spread evenly, and
/// then one part alone. A part costs some keys' time on top of its own.
fn best_part(
    tiles: &[RowTile],
    unit: usize,
    (slots, blocks): (usize, usize),
    segment: usize,
    places: usize,
    rows: usize,
) -> usize {
    let longest = tiles.iter().map(|tile| tile.end - tile.begin).max().unwrap_or(0).max(1);
    let total: usize = tiles.iter().map(|tile| tile.end - tile.begin).sum();
    let estimate = |length: usize| {
        let (mut items, mut parts, mut used) = (0, 0, 0);
        for tile in tiles {
            let keys = tile.end - tile.begin;
            let n = keys.div_ceil(length);
            items += n;
            if n > 1 {
                parts += n;
                used += if segment > 0 { keys.div_ceil(segment) } else { n };
            }
        }
        let work = total + items * 32 + parts * 2 * rows;
        (used <= slots && items <= blocks).then(|| work.div_ceil(places) + length.min(longest))
    };
    let whole = longest.next_multiple_of(unit);
    let halves = std::iter::successors(Some(whole), |&length| {
        let half = (length / 2).next_multiple_of(unit);
        (half < length).then_some(half)
    });
    halves
        .filter_map(|length| Some((estimate(length)?, length)))
        .min_by_key(|&(cost, _)| cost)
        .map_or(whole, |(_, length)| length)
}

// === impl AttentionCapacity ===

impl AttentionCapacity {
    /// Whether nothing of it is more than `other` has.
    fn fits(&self, other: &Self) -> bool {
        let sizes =
            |c: &Self| [c.sequences, c.entries, c.items, c.merges, c.slots, c.rows, c.pages, c.folds.into()];
        sizes(self).iter().zip(sizes(other)).all(|(one, most)| *one <= most)
    }

    pub(super) fn items_at(&self) -> usize {
        SEQUENCE_WORDS * self.sequences
    }

    pub(super) fn merges_at(&self) -> usize {
        self.items_at() + ITEM_WORDS * self.items
    }

    /// Words of all lists.
    pub(super) fn lists(&self) -> usize {
        self.merges_at() + MERGE_WORDS * self.merges
    }
}

#[cfg(test)]
#[path = "attention_plan_tests.rs"]
mod tests;
