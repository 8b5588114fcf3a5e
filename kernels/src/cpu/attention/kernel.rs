//! Attention of some rows over a range of tiles.
//!
//! A tile is [`TILE`] positions beginning at a multiple of [`TILE`]. Each row and tile give a partial result
//! (largest score, sum of weights, weighted values) from nothing but the row and the tile; a row is the fold
//! of its tiles, first to last. Who computes a partial result, beside which other rows, changes no bit.

use std::ops::Range;

use super::tile::{TILE, TILE_BLOCKS, factors, finish, fold, scores, values, weights};
use crate::cpu::cache::{Cache, Element, Precision};
use crate::cpu::simd::{Kernel, Lanes, WIDTH};
use crate::cpu::softcap::soft_cap;
use crate::{BLOCK_TOKENS, BlockId};

/// With more rows than this, a tile's halves are converted once for all of them.
const CONVERT_ROWS: usize = 12;

/// Rows of one sequence: a row per KV head, position and query head of the group.
#[derive(Clone)]
pub(super) struct Rows<'a> {
    pub(super) cache: &'a Cache,
    pub(super) blocks: &'a [BlockId],
    pub(super) layer: usize,
    pub(super) kv_heads: Range<usize>,
    /// Query heads that share a KV head.
    pub(super) group: usize,
    pub(super) scale: f32,
    /// Keys that a row sees, its own included; none: all before it.
    pub(super) window: Option<usize>,
    /// Bounds scores.
    pub(super) softcap: Option<f32>,
    /// Absolute position of the first.
    pub(super) position: usize,
    pub(super) positions: usize,
    /// Queries from the first position's and head's on; those of the next position are `q_stride` further.
    pub(super) q: &'a [f32],
    pub(super) q_stride: usize,
}

/// Attention of rows over tiles.
pub(super) struct Attend<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) tiles: Range<usize>,
    pub(super) sink: Sink,
    /// At least [`Rows::scratch_len`] numbers.
    pub(super) scratch: &'a mut [f32],
}

/// Where results go.
#[derive(Clone, Copy)]
pub(super) enum Sink {
    /// The tiles are all that the rows see: `[positions][kv_heads × group × dim]`, positions `stride` apart.
    Output { out: *mut f32, stride: usize },
    /// `[rows][tiles][part_len]`, rows `stride` apart, for [`Fold`]; tile `t` of the cache goes to slot `t`.
    Parts { parts: *mut f32, stride: usize },
}

/// Folds the parts of one row's tiles.
pub(super) struct Fold<'a> {
    pub(super) parts: *const f32,
    pub(super) tiles: Range<usize>,
    pub(super) dim: usize,
    pub(super) out: *mut f32,
    /// At least [`part_len`] numbers.
    pub(super) scratch: &'a mut [f32],
}

/// Numbers of a part: the largest score (a vector, for alignment), sums by lane, weighted values.
pub(super) fn part_len(dim: usize) -> usize {
    2 * WIDTH + dim.next_multiple_of(WIDTH)
}

/// Scratch memory of a task. Vectors have `rows` entries, padded.
#[derive(Clone, Copy)]
struct Memory {
    q: *mut f32,
    /// Scores, then weights: `[rows][TILE]`.
    weights: *mut f32,
    /// Largest score and sums (by lane) of the tile, then of all tiles so far.
    tile_largest: *mut f32,
    tile_sums: *mut f32,
    largest: *mut f32,
    sums: *mut f32,
    /// Factors of what was folded so far, and of the tile.
    keep: *mut f32,
    take: *mut f32,
    /// Weighted values of all tiles so far: `[rows][width]`; and of the tile, for the rows at hand.
    values: *mut f32,
    tile_values: *mut f32,
    /// The tile's K `[4][dim][16]` and V `[64][width]`, converted.
    k: *mut f32,
    v: *mut f32,
}

/// A tile: its first position, and where its blocks' K and V are.
struct Tile<E> {
    start: usize,
    k: [*const E; TILE_BLOCKS],
    v: [*const E; TILE_BLOCKS],
}

/// A task under way.
struct Task<'a> {
    rows: &'a Rows<'a>,
    /// Rows of a KV head.
    count: usize,
    dim: usize,
    /// `dim` in whole vectors.
    width: usize,
    memory: Memory,
}

// === impl Memory ===

impl Memory {
    /// Numbers that `rows` rows need.
    fn len(rows: usize, dim: usize, width: usize) -> usize {
        let padded = rows + WIDTH;
        rows * (dim + TILE + 2 * WIDTH + width) + 4 * padded + 4 * width + TILE * (dim + width) + 12 * WIDTH
    }

    fn new(memory: &mut [f32], rows: usize, dim: usize, width: usize) -> Self {
        assert!(memory.len() >= Self::len(rows, dim, width), "attention's scratch memory is too small");
        let mut rest = memory.as_mut_ptr();
        let mut take = |numbers: usize| {
            let start = rest;
            // SAFETY: `len` counts all parts, each rounded up to whole vectors.
            rest = unsafe { rest.add(numbers.next_multiple_of(WIDTH)) };
            start
        };
        Self {
            k: take(TILE * dim),
            v: take(TILE * width),
            q: take(rows * dim),
            weights: take(rows * TILE),
            tile_sums: take(rows * WIDTH),
            sums: take(rows * WIDTH),
            values: take(rows * width),
            tile_values: take(4 * width),
            tile_largest: take(rows + WIDTH),
            largest: take(rows + WIDTH),
            keep: take(rows + WIDTH),
            take: take(rows + WIDTH),
        }
    }
}

// === impl Rows ===

impl Rows<'_> {
    /// Numbers of scratch memory that they need.
    pub(super) fn scratch_len(&self) -> usize {
        let dim = self.cache.shape().dim;
        let rows = self.kv_heads.len() * self.positions * self.group;
        Memory::len(rows, dim, dim.next_multiple_of(WIDTH))
    }
}

// === impl Attend ===

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { rows, tiles, sink, scratch } = self;
        let dim = rows.cache.shape().dim;
        let (count, width) = (rows.positions * rows.group, dim.next_multiple_of(WIDTH));
        let memory = Memory::new(scratch, rows.kv_heads.len() * count, dim, width);
        let task = Task { rows: &rows, count, dim, width, memory };
        // SAFETY: as the caller promises; the memory is large enough for the task.
        unsafe { task.run::<L>(tiles, sink) }
    }
}

// === impl Task ===

impl Task<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, tiles: Range<usize>, sink: Sink) {
        // SAFETY: as the caller promises.
        unsafe {
            self.begin::<L>();
            for tile in tiles {
                let start = tile * TILE;
                let Rows { position, positions, group, .. } = *self.rows;
                let first = start.saturating_sub(position) * group;
                // Rows further on see no more of it.
                let last = self.rows.window.map_or(positions, |window| {
                    (start + TILE - 1).saturating_add(window).saturating_sub(position).min(positions)
                }) * group;
                if first >= last {
                    continue;
                }
                // Heads within, since a block's lie side by side.
                for (head, kv_head) in self.rows.kv_heads.clone().enumerate() {
                    let rows = head * self.count + first..head * self.count + last;
                    match self.rows.cache.shape().precision {
                        Precision::Single => self.attend::<L, f32>(rows, &self.tile(start, kv_head).0, sink),
                        Precision::Half if rows.len() > CONVERT_ROWS => {
                            let (halves, blocks) = self.tile(start, kv_head);
                            let numbers = self.convert::<L>(&halves, blocks);
                            self.attend::<L, f32>(rows, &numbers, sink);
                        }
                        Precision::Half => self.attend::<L, u16>(rows, &self.tile(start, kv_head).0, sink),
                    }
                }
            }
            if let Sink::Output { out, stride } = sink {
                self.finish::<L>(out, stride);
            }
        }
    }

    /// Writes the results of all rows.
    #[inline(always)]
    unsafe fn finish<L: Lanes>(&self, out: *mut f32, stride: usize) {
        let Rows { group, positions, .. } = *self.rows;
        for head in 0..self.rows.kv_heads.len() {
            for position in 0..positions {
                for i in 0..group {
                    let row = (head * positions + position) * group + i;
                    // SAFETY: as the caller promises.
                    unsafe {
                        let out = out.add(position * stride + (head * group + i) * self.dim);
                        let sum = L::load(self.memory.sums.add(row * WIDTH)).sum();
                        finish::<L>(self.memory.values.add(row * self.width), sum, self.dim, out);
                    }
                }
            }
        }
    }

    /// Gathers the queries and clears what is folded.
    #[inline(always)]
    unsafe fn begin<L: Lanes>(&self) {
        let Rows { q, q_stride, positions, group, .. } = *self.rows;
        let (dim, memory) = (self.dim, self.memory);
        let (heads, len) = (self.rows.kv_heads.len(), group * dim);
        // SAFETY: as the caller promises.
        unsafe {
            for head in 0..heads {
                for i in 0..positions {
                    let from = &q[i * q_stride + head * len..][..len];
                    let to = memory.q.add((head * positions + i) * len);
                    std::ptr::copy_nonoverlapping(from.as_ptr(), to, len);
                }
            }
            let rows = heads * self.count;
            std::slice::from_raw_parts_mut(memory.sums, rows * WIDTH).fill(0.0);
            std::slice::from_raw_parts_mut(memory.values, rows * self.width).fill(0.0);
            std::slice::from_raw_parts_mut(memory.largest, rows).fill(f32::NEG_INFINITY);
        }
    }

    /// The blocks of a head's tile at `start` that a row sees, and how many.
    #[inline(always)]
    fn tile<E: Element>(&self, start: usize, kv_head: usize) -> (Tile<E>, usize) {
        let Rows { cache, blocks, layer, position, positions, .. } = *self.rows;
        let (first, seen) = (start / BLOCK_TOKENS, (position + positions).div_ceil(BLOCK_TOKENS));
        let count = (seen - first).min(TILE_BLOCKS);
        let mut tile = Tile { start, k: [std::ptr::null(); 4], v: [std::ptr::null(); 4] };
        for i in 0..count {
            let (k, v) = cache.head(layer, blocks[first + i], kv_head);
            (tile.k[i], tile.v[i]) = (k, v);
        }
        (tile, count)
    }

    /// The tile's first `blocks` blocks as f32.
    #[inline(always)]
    unsafe fn convert<L: Lanes>(&self, tile: &Tile<u16>, blocks: usize) -> Tile<f32> {
        let mut converted = Tile { start: tile.start, k: [std::ptr::null(); 4], v: [std::ptr::null(); 4] };
        for block in 0..blocks {
            // SAFETY: as the caller promises.
            unsafe {
                let k = self.memory.k.add(block * BLOCK_TOKENS * self.dim);
                let v = self.memory.v.add(block * BLOCK_TOKENS * self.width);
                for i in 0..self.dim {
                    L::load_f16(tile.k[block].add(i * WIDTH)).store(k.add(i * WIDTH));
                }
                for i in 0..self.width {
                    L::load_f16(tile.v[block].add(i * WIDTH)).store(v.add(i * WIDTH));
                }
                (converted.k[block], converted.v[block]) = (k, v);
            }
        }
        converted
    }

    /// Attention of some rows of a KV head over one tile.
    #[inline(always)]
    unsafe fn attend<L: Lanes, E: Element>(&self, range: Range<usize>, tile: &Tile<E>, sink: Sink) {
        // Groups of three where heads come in threes: then a group's rows are of one position.
        let step = if self.rows.group.is_multiple_of(3) { 3 } else { 4 };
        // SAFETY: as the caller promises.
        unsafe {
            let mut row = range.start;
            while row < range.end {
                let rows = step.min(range.end - row);
                match rows {
                    4 => self.score::<L, E, 4>(row, tile),
                    3 => self.score::<L, E, 3>(row, tile),
                    2 => self.score::<L, E, 2>(row, tile),
                    _ => self.score::<L, E, 1>(row, tile),
                }
                row += rows;
            }
            if let Sink::Output { .. } = sink {
                self.factors::<L>(range.clone());
            }
            let mut row = range.start;
            while row < range.end {
                let rows = step.min(range.end - row);
                match rows {
                    4 => self.weigh::<L, E, 4>(row, tile),
                    3 => self.weigh::<L, E, 3>(row, tile),
                    2 => self.weigh::<L, E, 2>(row, tile),
                    _ => self.weigh::<L, E, 1>(row, tile),
                }
                for i in 0..rows {
                    match sink {
                        Sink::Output { .. } => self.fold::<L>(row + i, i),
                        Sink::Parts { parts, stride } => {
                            let slot = tile.start / TILE * part_len(self.dim);
                            self.put::<L>(row + i, i, parts.add((row + i) * stride + slot));
                        }
                    }
                }
                row += rows;
            }
        }
    }

    /// How many positions of the tile `row` sees.
    #[inline(always)]
    fn seen(&self, row: usize, start: usize) -> usize {
        (self.rows.position + row % self.count / self.rows.group + 1 - start).min(TILE)
    }

    /// How many of the tile's first positions lie before the window of `row`.
    #[inline(always)]
    fn hidden(&self, row: usize, start: usize) -> usize {
        let position = self.rows.position + row % self.count / self.rows.group;
        self.rows.window.map_or(0, |window| (position + 1).saturating_sub(window).saturating_sub(start))
    }

    /// Weights of `R` rows from `row` on: e^(score − largest), with their sums by lane.
    #[inline(always)]
    unsafe fn score<L: Lanes, E: Element, const R: usize>(&self, row: usize, tile: &Tile<E>) {
        let memory = self.memory;
        let vectors = self.seen(row + R - 1, tile.start).div_ceil(WIDTH);
        // SAFETY: as the caller promises.
        unsafe {
            let (q, out) = (memory.q.add(row * self.dim), memory.weights.add(row * TILE));
            let scale = L::splat(self.rows.scale);
            let mut column = 0;
            while column < vectors {
                let (k, out) = (&tile.k[column..], out.add(column * WIDTH));
                column += match vectors - column {
                    4.. if 4 * R <= L::ACCUMULATORS => scores::<L, E, R, 4>(q, self.dim, k, scale, out),
                    2.. if 2 * R <= L::ACCUMULATORS => scores::<L, E, R, 2>(q, self.dim, k, scale, out),
                    _ => scores::<L, E, R, 1>(q, self.dim, k, scale, out),
                };
            }
            for row in row..row + R {
                let seen = self.seen(row, tile.start);
                let scores = memory.weights.add(row * TILE);
                if let Some(cap) = self.rows.softcap {
                    for at in (0..vectors).map(|column| scores.add(column * WIDTH)) {
                        soft_cap(L::load(at), L::splat(cap)).store(at);
                    }
                }
                for i in 0..self.hidden(row, tile.start) {
                    scores.add(i).write(f32::NEG_INFINITY);
                }
                let (largest, sums) = weights::<L>(scores, seen);
                *memory.tile_largest.add(row) = largest;
                sums.store(memory.tile_sums.add(row * WIDTH));
            }
        }
    }

    /// Factors that bring the rows' sums so far and the tile's to their new largest scores.
    #[inline(always)]
    unsafe fn factors<L: Lanes>(&self, rows: Range<usize>) {
        let memory = self.memory;
        for row in rows.clone().step_by(WIDTH) {
            // SAFETY: as the caller promises; these vectors are padded. What lies behind the rows may be the
            // next head's: its largest scores stay, and its factors are computed again before they are used.
            unsafe {
                let (old, tile) = (L::load(memory.largest.add(row)), L::load(memory.tile_largest.add(row)));
                let (new, keep, take) = factors(old, tile);
                new.first((rows.end - row).min(WIDTH), old).store(memory.largest.add(row));
                keep.store(memory.keep.add(row));
                take.store(memory.take.add(row));
            }
        }
    }

    /// Weighted values of `R` rows from `row` on, into `tile_values`.
    #[inline(always)]
    unsafe fn weigh<L: Lanes, E: Element, const R: usize>(&self, row: usize, tile: &Tile<E>) {
        let (memory, width) = (self.memory, self.width);
        let all = self.seen(row, tile.start);
        // SAFETY: as the caller promises.
        unsafe {
            let weights = memory.weights.add(row * TILE);
            let mut column = 0;
            while column < width {
                let out = memory.tile_values.add(column);
                column += WIDTH
                    * match (width - column) / WIDTH {
                        4.. if 4 * R <= L::ACCUMULATORS => {
                            values::<L, E, R, 4>(weights, 0..all, &tile.v, column, width, out)
                        }
                        2.. if 2 * R <= L::ACCUMULATORS => {
                            values::<L, E, R, 2>(weights, 0..all, &tile.v, column, width, out)
                        }
                        _ => values::<L, E, R, 1>(weights, 0..all, &tile.v, column, width, out),
                    };
            }
            // Rows further on see more: never the first row, nor does a row touch what it doesn't see.
            for i in 1..R {
                let seen = self.seen(row + i, tile.start);
                for column in (0..if seen > all { width } else { 0 }).step_by(WIDTH) {
                    let out = memory.tile_values.add(i * width + column);
                    values::<L, E, 1, 1>(weights.add(i * TILE), all..seen, &tile.v, column, width, out);
                }
            }
        }
    }

    /// Folds the tile's results of `row`, the `i`th in `tile_values`, into all so far.
    #[inline(always)]
    unsafe fn fold<L: Lanes>(&self, row: usize, i: usize) {
        let memory = self.memory;
        // SAFETY: as the caller promises.
        unsafe {
            let (keep, take) = (L::splat(*memory.keep.add(row)), L::splat(*memory.take.add(row)));
            fold(memory.sums.add(row * WIDTH), memory.tile_sums.add(row * WIDTH), WIDTH, keep, take);
            let values = memory.values.add(row * self.width);
            fold(values, memory.tile_values.add(i * self.width), self.width, keep, take);
        }
    }

    /// Writes the tile's results of `row`, the `i`th in `tile_values`, as a part.
    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, row: usize, i: usize, part: *mut f32) {
        let memory = self.memory;
        // SAFETY: as the caller promises.
        unsafe {
            L::splat(*memory.tile_largest.add(row)).store(part);
            L::load(memory.tile_sums.add(row * WIDTH)).store(part.add(WIDTH));
            for column in (0..self.width).step_by(WIDTH) {
                let values = L::load(memory.tile_values.add(i * self.width + column));
                values.store(part.add(2 * WIDTH + column));
            }
        }
    }
}

// === impl Fold ===

impl Kernel for Fold<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.dim.next_multiple_of(WIDTH);
        let (sums, values) = self.scratch[..WIDTH + width].split_at_mut(WIDTH);
        sums.fill(0.0);
        values.fill(0.0);
        let (sums, values) = (sums.as_mut_ptr(), values.as_mut_ptr());
        // SAFETY: as the caller promises.
        unsafe {
            let mut largest = L::splat(f32::NEG_INFINITY);
            for tile in self.tiles {
                let part = self.parts.add(tile * part_len(self.dim));
                let (new, keep, take) = factors(largest, L::load(part));
                largest = new;
                fold(sums, part.add(WIDTH), WIDTH, keep, take);
                fold(values, part.add(2 * WIDTH), width, keep, take);
            }
            finish::<L>(values, L::load(sums).sum(), self.dim, self.out);
        }
    }
}
