//! From GGUF's blocks.

use super::{PackedFormat, PackedWeights};
use crate::{
    DType, Error, Tensor,
    cpu::formats::{self, BLOCK, Scales},
};

/// One block of 32 numbers.
struct Block {
    codes: [u8; BLOCK],
    scales: Scales,
}

impl PackedWeights {
    /// Packs a matrix in Q4_0, Q4_1 or Q4_K (as four bits) or Q8_0 (as int8), groups of 32. Q4_K's scales are the
    /// products of two numbers and are rounded to f16; the others stay exact.
    pub fn from_gguf(tensor: &Tensor) -> Result<Self, Error> {
        formats::check(tensor)?;
        let format = match tensor.dtype {
            DType::Q4_0 | DType::Q4_1 | DType::Q4K => PackedFormat::Int4Grouped,
            DType::Q8_0 => PackedFormat::Int8Grouped,
            dtype => {
                let problem = format!("{dtype:?} can't be packed for a GPU: Q4_0, Q4_1, Q4_K and Q8_0 can");
                return Err(Error::Tensor { name: tensor.name.clone(), problem });
            }
        };
        let groups = tensor.cols / BLOCK;
        let blocks: Vec<Block> =
            (0..tensor.rows * groups).map(|i| block(tensor, i / groups, i % groups)).collect();
        let code = |row: usize, col: usize| {
            let code = blocks[row * groups + col / BLOCK].codes[col % BLOCK];
            // Codes of 8 bits are unsigned here, 128 standing for zero.
            if format == PackedFormat::Int8Grouped { code ^ 0x80 } else { code }
        };
        let scale = |row: usize, group: usize| {
            let Scales { d, m, sub, min } = blocks[row * groups + group].scales;
            let scale = d.to_f32() * f32::from(sub[0]);
            let offset = match tensor.dtype {
                DType::Q4_0 => -8.0 * scale,
                DType::Q8_0 => 0.0,
                _ => m.to_f32() * f32::from(min),
            };
            (scale, offset)
        };
        Self::by_group(format, (tensor.rows, tensor.cols), BLOCK, code, scale)
    }
}

fn block(tensor: &Tensor, row: usize, group: usize) -> Block {
    let (numbers, bytes) = tensor.dtype.block();
    let per_block = numbers / BLOCK;
    let data = &formats::row_data(tensor, row)[group / per_block * bytes..][..bytes];
    let i = group % per_block;
    Block { codes: formats::codes(tensor.dtype, data, i), scales: formats::scales(tensor.dtype, data, i) }
}
