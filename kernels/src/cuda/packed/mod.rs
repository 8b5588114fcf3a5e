//! Quantized weights in the order in which the skinny products read them.
//!
//! ```text
//! mod.rs         the order (that of `kernels/cuda/include/skinny.cuh`)
//! packing.rs     bringing codes and scales into it
//! gguf.rs        from GGUF's Q4_0, Q4_1, Q4_K and Q8_0
//! scaled.rs      from codes with scales beside them, as checkpoints have them
//! checkpoint.rs  from slices of codes and scales
//! ```
//!
//! Packing is done once, on the host, when a model is loaded. Codes are kept as they are; what a format's scales,
//! minimums and zero points come to is a scale and an offset per group: `weight = scale · code + offset`.

mod checkpoint;
mod gguf;
mod packing;
mod scaled;
#[cfg(test)]
mod tests;

use half::f16;

pub use checkpoint::GptqTensors;
pub(super) use packing::Packing;

use crate::Error;

/// Rows of a tile: the m16 of the matrix instruction.
const TILE_ROWS: usize = 16;
/// Inputs of a tile: four matrix instructions' k16.
const STEP: usize = 64;
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

    /// Bytes of the codes, in whole tiles of rows.
    pub(in crate::cuda) fn code_bytes(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS) * self.tile_bytes()
    }

    /// Bytes of the codes of a tile of rows.
    pub(in crate::cuda) fn tile_bytes(&self) -> usize {
        self.cols.div_ceil(STEP) * TILE_ROWS * STEP * self.format.bits() / 8
    }

    /// All codes and group scales zero; groups of `group` inputs, 0 where a format has none.
    pub fn zeros(format: PackedFormat, rows: usize, cols: usize, group: usize) -> Result<Self, Error> {
        let packed = Self::without_codes(format, rows, cols, group)?;
        Ok(Self { codes: vec![0; packed.code_bytes()], ..packed })
    }

    fn without_codes(format: PackedFormat, rows: usize, cols: usize, group: usize) -> Result<Self, Error> {
        if rows == 0 || cols == 0 || !cols.is_multiple_of(8) {
            return Err(invalid(format!("{rows} × {cols} weights: inputs must be a multiple of 8")));
        }
        if format.grouped() != (group != 0) || (group != 0 && (group < 32 || !group.is_power_of_two())) {
            return Err(invalid(format!("groups of {group} inputs: only 32, 64, 128 … can be packed")));
        }
        let tiles = rows.div_ceil(TILE_ROWS);
        let units = if format.grouped() { units(cols, group) } else { 0 };
        Ok(Self {
            format,
            rows,
            cols,
            group,
            codes: Vec::new(),
            group_scales: vec![0; tiles * units * 32],
            row_scales: vec![1.0; rows],
        })
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
