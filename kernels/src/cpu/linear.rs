//! The linear layers: activations × packed weights, and what follows each sum.
//!
//! ```text
//! linear.rs           cuts a product into tasks; biases, residuals, gating
//! linear/tile.rs      the inner loops, written once
//! linear/rows.rs      quantizing activations, expanding scales, gating
//! linear/simd.rs      what those need of an instruction set
//! linear/avx512.rs, avx2.rs, portable.rs
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod rows;
mod simd;
mod tile;

use std::mem::MaybeUninit;
use std::ops::Range;

use self::simd::{Kernels, LANES};
use self::tile::{CHUNK, Tile};
use super::formats::BLOCK;
use super::isa::Isa;
use super::pack::{PANEL, Packed, Segment, is_float};
use super::pool::Pool;
use super::prepared::{GROUP, Prepared, RECORD};
use crate::Activation;

/// What becomes of the sums. Matrices are `[rows, outputs]`, row-major.
pub enum Epilogue<'a> {
    /// `out = sums + bias`.
    Store(&'a mut [f32]),
    /// `out += sums + bias`.
    Add(&'a mut [f32]),
    /// `out = activation(sums + bias)`.
    Activated(Activation, &'a mut [f32]),
    /// `out = activation(gate) · up`, for weights packed so.
    Gated(Activation, &'a mut [f32]),
}

/// Rows whose sums a task holds at a time.
const PASS: usize = 16 * GROUP;

/// Fewest rows with which the weights of the next panel are asked for while this one is multiplied.
const AHEAD_FROM: usize = 3;

/// A cut of the product: panels of one segment (or of both, gated) × rows.
struct Task {
    segment: usize,
    panels: Range<usize>,
    rows: Range<usize>,
}

/// How a product is cut: `panels` panels × `rows` rows a task.
struct Cut {
    panels: usize,
    rows: usize,
}

/// What all tasks of a product share.
struct Product<'a> {
    kernels: &'static Kernels,
    w: &'a Packed,
    a: &'a Prepared,
    rows: usize,
    what: What,
    /// The result's first number; tasks write disjoint parts of it.
    out: *mut f32,
}

#[derive(Clone, Copy)]
enum What {
    Store,
    Add,
    Activated(Activation),
    Gated(Activation),
}

// SAFETY: the result is borrowed mutably while the product runs, and each task writes its own part of it only.
unsafe impl Sync for Product<'_> {}

/// Sums of a pass: `[row][PANEL]`.
#[repr(align(64))]
struct Sums([MaybeUninit<f32>; PASS * PANEL]);

/// Expanded scales of a chunk of blocks: `[block][1 or 2][PANEL]`.
#[repr(align(64))]
struct Expanded([MaybeUninit<f32>; CHUNK * 2 * PANEL]);

/// `a · Wᵀ` over the first `rows` rows of `a`, which were set for weights of the same inputs.
///
/// # Panics
/// If `a` or the result has no room for `rows` rows, or gated weights meet another epilogue.
pub fn matmul(pool: &Pool, isa: Isa, w: &Packed, a: &Prepared, rows: usize, epilogue: Epilogue<'_>) {
    let (what, out) = match epilogue {
        Epilogue::Store(out) => (What::Store, out),
        Epilogue::Add(out) => (What::Add, out),
        Epilogue::Activated(activation, out) => (What::Activated(activation), out),
        Epilogue::Gated(activation, out) => (What::Gated(activation), out),
    };
    assert!(a.fits(rows, w.inputs), "{rows} rows of {} activations were not prepared", w.inputs);
    assert!(out.len() >= rows * w.outputs, "{} numbers for {rows} × {} results", out.len(), w.outputs);
    assert_eq!(w.gated, matches!(what, What::Gated(_)), "gated weights need a gated epilogue");
    let product = Product { kernels: kernels(isa), w, a, rows, what, out: out.as_mut_ptr() };
    let cut = product.cut(pool.threads());
    // SAFETY: the instruction set was found, sizes are checked above, and tasks are disjoint.
    pool.run(product.tasks(&cut), &|index| unsafe { product.run(product.task(&cut, index)) });
}

/// The kernels of an instruction set.
pub(super) fn kernels(isa: Isa) -> &'static Kernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => const { &Kernels::of::<avx512::Avx512>() },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => const { &Kernels::of::<avx2::Avx2>() },
        _ => const { &Kernels::of::<portable::Portable>() },
    }
}

// === impl Product ===

impl Product<'_> {
    /// Tasks small enough that threads finish together and a preempted one holds up little, yet some
    /// microseconds long.
    fn cut(&self, threads: usize) -> Cut {
        let rows = self.rows.clamp(1, 2 * PASS);
        let row_cuts = self.rows.div_ceil(rows).max(1);
        let panels: usize = self.panel_counts().sum();
        let wanted = (threads * 8).div_ceil(row_cuts);
        // The work of a panel and its rows, in nanoseconds: arithmetic or the weights' bytes.
        let panel = self.w.inputs * PANEL;
        let cost = (panel * rows / 256).max(panel / 64).max(1);
        let least = 1000usize.div_ceil(cost);
        let most = (100_000 / cost).max(1);
        let panels = panels.div_ceil(wanted).max(least).min(most);
        Cut { panels, rows }
    }

    /// Panels of each stacked segment; those of gate and up go together.
    fn panel_counts(&self) -> impl Iterator<Item = usize> {
        let stacked = if self.w.gated { 1 } else { self.w.segments.len() };
        self.w.segments.iter().take(stacked).map(|s| s.panels)
    }

    fn tasks(&self, cut: &Cut) -> usize {
        self.panel_counts().map(|n| n.div_ceil(cut.panels)).sum::<usize>() * self.rows.div_ceil(cut.rows)
    }

    /// Tasks of the same rows follow one another, through all panels.
    fn task(&self, cut: &Cut, index: usize) -> Task {
        let per_rows: usize = self.panel_counts().map(|n| n.div_ceil(cut.panels)).sum();
        let first_row = index / per_rows * cut.rows;
        let rows = first_row..self.rows.min(first_row + cut.rows);
        let mut left = index % per_rows;
        for (segment, panels) in self.panel_counts().enumerate() {
            let tasks = panels.div_ceil(cut.panels);
            if left < tasks {
                let first = left * cut.panels;
                return Task { segment, panels: first..panels.min(first + cut.panels), rows };
            }
            left -= tasks;
        }
        Task { segment: 0, panels: 0..0, rows: 0..0 }
    }

    /// # Safety
    /// The CPU has the kernels' instruction set; no other task of the product is the same.
    unsafe fn run(&self, task: Task) {
        let mut sums = Sums([MaybeUninit::uninit(); PASS * PANEL]);
        let mut ups = Sums([MaybeUninit::uninit(); PASS * PANEL]);
        for panel in task.panels {
            for first in task.rows.clone().step_by(PASS) {
                let rows = first..task.rows.end.min(first + PASS);
                let segment = &self.w.segments[task.segment];
                // SAFETY: the caller's promise; the sums are written before they are read.
                unsafe {
                    let after = segment.panel(panel).wrapping_add(segment.layout.panel);
                    let next = if self.w.gated { self.w.segments[1].panel(panel) } else { after };
                    let sums = self.sum(segment, panel, rows.clone(), next, &mut sums);
                    let width = (segment.outputs - panel * PANEL).min(PANEL);
                    match self.what {
                        What::Gated(activation) => {
                            let up = &self.w.segments[1];
                            let ups = self.sum(up, panel, rows.clone(), after, &mut ups);
                            self.finish_gated(activation, sums, ups, rows, panel * PANEL, width);
                        }
                        _ => self.finish(sums, rows, segment.first_output + panel * PANEL, width),
                    }
                }
            }
        }
    }

    /// Sums of a panel over some rows, the first of which begins a group; `next` is what will be read after it.
    ///
    /// # Safety
    /// As for [`run`](Self::run); the panel and the rows exist.
    unsafe fn sum<'s>(
        &self,
        segment: &Segment,
        panel: usize,
        rows: Range<usize>,
        next: *const u8,
        sums: &'s mut Sums,
    ) -> &'s [[f32; PANEL]] {
        let out = sums.0.as_mut_ptr().cast::<f32>();
        let inputs = self.w.inputs;
        let column = segment.first_output + panel * PANEL;
        let panel = segment.panel(panel);
        let codes = panel.wrapping_add(segment.layout.scales);
        let float = is_float(segment.dtype);
        let mut scales = Expanded([MaybeUninit::uninit(); CHUNK * 2 * PANEL]);
        let scales = scales.0.as_mut_ptr().cast::<f32>();
        let (steps, chunk) = if float { (inputs, inputs) } else { (inputs / BLOCK, CHUNK) };
        let tiles = rows.len().div_ceil(GROUP);
        let ahead_lines = match self.rows {
            AHEAD_FROM..=PASS if !float => (segment.layout.panel / 64).div_ceil(steps * tiles),
            _ => 0,
        };
        let mut ahead = next;
        for first in (0..steps).step_by(chunk) {
            let steps = chunk.min(steps - first);
            if !float {
                // SAFETY: the panel has these blocks; the scratch has room for `CHUNK` of them.
                unsafe { (self.kernels.expand)(segment.dtype, panel, first, steps, scales) };
            }
            let weights = codes.wrapping_add(first * segment.layout.step);
            let mut row = rows.start;
            while row < rows.end {
                let activations = if float {
                    self.a.f32_group(row / GROUP, inputs).wrapping_add(first * GROUP * 4)
                } else {
                    self.a.int8_group(row / GROUP, inputs).wrapping_add(first * RECORD)
                };
                let tile_rows = self.tile_rows(row % GROUP, rows.end - row);
                let acc = out.wrapping_add((row - rows.start) * PANEL);
                let fresh = first == 0;
                let mut tile = Tile {
                    acc,
                    fresh,
                    weights,
                    scales,
                    activations,
                    row: row % GROUP,
                    out: self.out.wrapping_add(row * self.w.outputs + column).cast(),
                    out_stride: self.w.outputs * 4,
                    steps,
                    ahead,
                    ahead_lines,
                };
                ahead = ahead.wrapping_add(steps * ahead_lines * 64);
                let (kernel, columns) = (self.kernels.tile)(segment.dtype, tile_rows);
                for _ in 0..PANEL / LANES / columns {
                    // SAFETY: panel, activations and sums have the tile's extent (rows beyond `rows.end` stay
                    // within the group, for which all of them have room), and the CPU has the instructions.
                    unsafe { kernel(&tile) };
                    tile.acc = tile.acc.wrapping_add(LANES);
                    tile.scales = tile.scales.wrapping_add(LANES);
                    tile.weights =
                        tile.weights.wrapping_add(if float { segment.layout.step / 2 } else { 64 });
                }
                row += tile_rows;
            }
        }
        // SAFETY: the tiles have written all of it.
        unsafe { std::slice::from_raw_parts(out.cast(), rows.len()) }
    }

    /// Rows of the next tile: the fewest that do for what is left, within the group.
    fn tile_rows(&self, in_group: usize, left: usize) -> usize {
        let mut fitting = self.kernels.rows.iter().copied().filter(|&rows| rows <= GROUP - in_group);
        fitting.clone().find(|&rows| rows >= left).or(fitting.next_back()).unwrap_or(1)
    }

    /// # Safety
    /// The rows and columns of the result are this task's own; the CPU has the instructions.
    unsafe fn finish(&self, sums: &[[f32; PANEL]], rows: Range<usize>, column: usize, width: usize) {
        let bias = self.w.bias.as_ref().map(|b| &b[column..][..width]);
        for row in rows.clone() {
            let sums = &sums[row - rows.start][..width];
            // SAFETY: within the result, whose size was checked, and this task's own.
            let out =
                unsafe { std::slice::from_raw_parts_mut(self.out.add(row * self.w.outputs + column), width) };
            let add = matches!(self.what, What::Add);
            match (bias, add) {
                (None, false) => out.copy_from_slice(sums),
                (None, true) => out.iter_mut().zip(sums).for_each(|(o, s)| *o += s),
                (Some(bias), false) => {
                    out.iter_mut().zip(sums.iter().zip(bias)).for_each(|(o, (s, b))| *o = s + b)
                }
                (Some(bias), true) => {
                    out.iter_mut().zip(sums.iter().zip(bias)).for_each(|(o, (s, b))| *o += s + b)
                }
            }
            if let What::Activated(activation) = self.what {
                // SAFETY: the CPU has the instructions.
                unsafe { (self.kernels.activate)(activation, out) };
            }
        }
    }

    /// # Safety
    /// As for [`finish`](Self::finish).
    unsafe fn finish_gated(
        &self,
        activation: Activation,
        gates: &[[f32; PANEL]],
        ups: &[[f32; PANEL]],
        rows: Range<usize>,
        column: usize,
        width: usize,
    ) {
        for row in rows.clone() {
            let (gate, up) = (&gates[row - rows.start][..width], &ups[row - rows.start][..width]);
            // SAFETY: within the result, whose size was checked, and this task's own; the CPU has the
            // instructions.
            unsafe {
                let out = std::slice::from_raw_parts_mut(self.out.add(row * self.w.outputs + column), width);
                (self.kernels.gate)(activation, gate, up, out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
