//! Quantized weights in the order in which the skinny products read them.
//!
//! ```text
//! mod.rs         the order (that of `kernels/cuda/include/skinny.cuh`), packing and unpacking
//! gguf.rs        from GGUF's Q4_0, Q4_1, Q4_K and Q8_0
//! scaled.rs      from codes with scales beside them, as checkpoints have them
//! checkpoint.rs  from slices of codes and scales
//! ```
//!
//! Packing is done once, on the host, when a model is loaded. Codes are kept as they are; what a format's scales,
//! minimums and zero points come to is a scale and an offset per group: `weight = scale · code + offset`.

mod checkpoint;
mod gguf;
mod scaled;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;

pub use checkpoint::GptqTensors;

use crate::{Error, threads};

/// Rows of a tile: the m16 of the matrix instruction.
const TILE_ROWS: usize = 16;
/// Inputs of a tile: four matrix instructions' k16.
const STEP: usize = 64;
/// The exponent that a row's largest group scale is brought to, so that f16 holds all of them well.
const SCALE_EXPONENT: i32 = 12;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PackedFormat {
    /// int8, a scale per row.
    Int8,
    /// int8, a scale per group of a row's inputs.
    Int8Grouped,
    /// Four bits, a scale and an offset per group.
    Int4Grouped,
    /// 8-bit float (4 bits of exponent), a scale per row.
    E4m3,
}

/// A matrix of outputs × inputs, packed.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedWeights {
    pub(super) format: PackedFormat,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Inputs that share a scale; 0 where a row does.
    pub(super) group: usize,
    /// `[row / 16][step][lane]`, padded with zeros to whole tiles.
    pub(super) codes: Vec<u8>,
    /// `[row / 16][group / 2][row % 8][group % 2][row / 8 % 2]`: scale and offset as f16, the scale in the lower half.
    pub(super) group_scales: Vec<u32>,
    /// Multiplies everything of a row.
    pub(super) row_scales: Vec<f32>,
}

/// Where a code lies: byte, and bits to shift within it.
#[derive(Clone, Copy)]
struct Place {
    byte: usize,
    shift: u32,
}

// === impl PackedWeights ===

impl PackedWeights {
    /// How weights are stored.
    pub fn format(&self) -> PackedFormat {
        self.format
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes on a device.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * (self.group_scales.len() + self.row_scales.len())
    }

    /// The codes, in whole tiles of rows.
    pub(super) fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Bytes of the codes of a tile of rows.
    pub(super) fn tile_bytes(&self) -> usize {
        self.codes.len() / self.rows.div_ceil(TILE_ROWS)
    }

    /// Packs codes with a scale per row: `codes(row, out)` says a row's.
    pub(super) fn by_row(
        format: PackedFormat,
        cols: usize,
        scales: Vec<f32>,
        codes: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<Self, Error> {
        let mut packed = Self::zeros(format, scales.len(), cols, 0)?;
        packed.row_scales = scales;
        packed.fill(codes);
        Ok(packed)
    }

    /// Packs codes with a scale and an offset per group of `group` inputs: `codes(row, out)` says a row's codes,
    /// `scale(row, group)` these two.
    pub(super) fn by_group(
        format: PackedFormat,
        (rows, cols): (usize, usize),
        group: usize,
        codes: impl Fn(usize, &mut [u8]) + Sync,
        scale: impl Fn(usize, usize) -> (f32, f32) + Sync,
    ) -> Result<Self, Error> {
        let mut packed = Self::zeros(format, rows, cols, group)?;
        packed.fill_scales(scale)?;
        packed.fill(codes);
        Ok(packed)
    }

    /// All codes and group scales zero; groups of `group` inputs, 0 where a format has none.
    pub fn zeros(format: PackedFormat, rows: usize, cols: usize, group: usize) -> Result<Self, Error> {
        if rows == 0 || cols == 0 || !cols.is_multiple_of(8) {
            return Err(invalid(format!("{rows} × {cols} weights: inputs must be a multiple of 8")));
        }
        if format.grouped() != (group != 0) || (group != 0 && (group < 32 || !group.is_power_of_two())) {
            return Err(invalid(format!("groups of {group} inputs: only 32, 64, 128 … can be packed")));
        }
        let (tiles, steps) = (rows.div_ceil(TILE_ROWS), cols.div_ceil(STEP));
        let units = if format.grouped() { units(cols, group) } else { 0 };
        Ok(Self {
            format,
            rows,
            cols,
            group,
            codes: vec![0; tiles * steps * TILE_ROWS * STEP * format.bits() / 8],
            group_scales: vec![0; tiles * units * 32],
            row_scales: vec![1.0; rows],
        })
    }

    /// On several threads, each a tile of rows at a time.
    fn fill(&mut self, codes: impl Fn(usize, &mut [u8]) + Sync) {
        let Self { format, rows, cols, .. } = *self;
        let tile = self.tile_bytes();
        threads::share(self.codes.chunks_mut(tile).enumerate(), |(tile, out)| {
            let (first, mut of_row) = (tile * TILE_ROWS, vec![0; cols]);
            for row in first..rows.min(first + TILE_ROWS) {
                codes(row, &mut of_row);
                scatter(format, row - first, &of_row, out);
            }
        });
    }

    /// Likewise.
    fn fill_scales(&mut self, scale: impl Fn(usize, usize) -> (f32, f32) + Sync) -> Result<(), Error> {
        let Self { rows, cols, group, .. } = *self;
        let (groups, units) = (cols.div_ceil(group), units(cols, group));
        let wrong = AtomicUsize::new(usize::MAX);
        let tiles = self.group_scales.chunks_mut(units * 32).zip(self.row_scales.chunks_mut(TILE_ROWS));
        threads::share(tiles.enumerate(), |(tile, (group_scales, row_scales))| {
            let first = tile * TILE_ROWS;
            for row in first..rows.min(first + TILE_ROWS) {
                let pairs: Vec<(f32, f32)> = (0..groups).map(|group| scale(row, group)).collect();
                let largest = pairs.iter().fold(0.0f32, |most, (s, o)| most.max(s.abs()).max(o.abs()));
                if !largest.is_finite() || pairs.iter().any(|(s, o)| s.is_nan() || o.is_nan()) {
                    wrong.fetch_min(row, Ordering::Relaxed);
                    return;
                }
                // A power of two, so that scales that f16 holds exactly stay exact.
                let exponent = if largest > 0.0 { largest.log2().floor() as i32 - SCALE_EXPONENT } else { 0 };
                let (up, down) = ((exponent as f32).exp2(), (-exponent as f32).exp2());
                row_scales[row - first] = up;
                for (group, (s, o)) in pairs.into_iter().enumerate() {
                    let half = |x: f32| u32::from(f16::from_f32(x * down).to_bits());
                    group_scales[scale_place(row - first, units, group)] = half(s) | half(o) << 16;
                }
            }
        });
        match wrong.into_inner() {
            usize::MAX => Ok(()),
            row => Err(invalid(format!("row {row} has a scale that is no number"))),
        }
    }

    /// The weight at (row, col), as the kernels compute it but for rounding.
    pub fn weight(&self, row: usize, col: usize) -> f64 {
        let place = place(self.format, self.cols, row, col);
        let byte = self.codes[place.byte];
        let (mut scale, mut offset) = (1.0, 0.0);
        if self.format.grouped() {
            let at = scale_place(row, units(self.cols, self.group), col / self.group);
            let pair = self.group_scales[at];
            scale = f16::from_bits(pair as u16).to_f64();
            offset = f16::from_bits((pair >> 16) as u16).to_f64();
        }
        let code = match self.format {
            PackedFormat::Int4Grouped => f64::from(byte >> place.shift & 15),
            PackedFormat::E4m3 => e4m3(byte),
            PackedFormat::Int8 | PackedFormat::Int8Grouped => f64::from(byte as i8),
        };
        f64::from(self.row_scales[row]) * (scale * code + offset)
    }
}

/// Pairs of groups in a row.
fn units(cols: usize, group: usize) -> usize {
    (cols.div_ceil(STEP) * STEP).div_ceil(group).div_ceil(2)
}

fn scale_place(row: usize, units: usize, group: usize) -> usize {
    ((row / TILE_ROWS * units + group / 2) * 8 + row % 8) * 4 + group % 2 * 2 + row / 8 % 2
}

/// Puts the codes of a row of a tile where they belong in it, which was zero.
fn scatter(format: PackedFormat, row: usize, codes: &[u8], tile: &mut [u8]) {
    // All steps are alike.
    let places: [Place; STEP] = std::array::from_fn(|col| place(format, STEP, row, col));
    let steps = tile.chunks_exact_mut(TILE_ROWS * STEP * format.bits() / 8);
    for (codes, step) in codes.chunks(STEP).zip(steps) {
        for (code, place) in codes.iter().zip(&places) {
            step[place.byte] |= code << place.shift;
        }
    }
}

/// Lane `4g + t` of a warp holds rows `g` and `g + 8`, and of each 32 inputs the eight from `8t` on.
fn place(format: PackedFormat, cols: usize, row: usize, col: usize) -> Place {
    let tile = row / TILE_ROWS * cols.div_ceil(STEP) + col / STEP;
    let (g, upper) = (row % 8, row / 8 % 2);
    let (j, t, half, pair, odd) = (col / 32 % 2, col / 8 % 4, col / 4 % 2, col / 2 % 2, col % 2);
    let lane = 4 * g + t;
    match format {
        PackedFormat::Int4Grouped => {
            let nibble = upper + 2 * pair + 4 * odd;
            let byte = (tile * 32 + lane) * 16 + (2 * j + half) * 4 + nibble / 2;
            Place { byte, shift: 4 * (nibble as u32 % 2) }
        }
        _ => {
            let byte = ((tile * 2 + j) * 32 + lane) * 16 + 8 * half + 4 * pair + upper + 2 * odd;
            Place { byte, shift: 0 }
        }
    }
}

// === impl PackedFormat ===

impl PackedFormat {
    /// Bits of a code.
    pub fn bits(self) -> usize {
        if self == Self::Int4Grouped { 4 } else { 8 }
    }

    /// Whether scales are per group.
    pub fn grouped(self) -> bool {
        matches!(self, Self::Int8Grouped | Self::Int4Grouped)
    }
}

/// The value of an e4m3 code.
fn e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let magnitude =
        if exponent == 0 { fraction * 2f64.powi(-6) } else { (1.0 + fraction) * 2f64.powi(exponent - 7) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

fn invalid(problem: String) -> Error {
    Error::Arguments { operation: "packing weights", problem }
}
