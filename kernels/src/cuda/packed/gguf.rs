//! From GGUF's blocks.

use std::sync::Arc;

use super::{PackedFormat, Packing, invalid};
use crate::{
    DType, Error, Tensor,
    cpu::formats::{self, BLOCK, Scales},
    scaled::ROUNDER,
    threads,
};

impl<'a> Packing<'a> {
    /// Packs quantized matrices of equal inputs, stacked by outputs, in groups of 32: as four bits with a minimum where
    /// all have four, else as int8.
    ///
    /// What four bits say is kept, but that K-quants' scales are products of two numbers and are rounded to f16. As int8,
    /// Q4_0, Q5_0 and Q8_0 are exact; numbers with a minimum, or a scale for every 16 (Q6_K), are rounded to 1/127 of
    /// the largest of 32.
    pub(crate) fn of_gguf(parts: &[&'a Tensor]) -> Result<Self, Error> {
        let cols = parts.first().map_or(0, |tensor| tensor.cols);
        for tensor in parts {
            formats::check(tensor)?;
            if tensor.cols != cols {
                return Err(invalid(format!("{} has {} inputs, not {cols}", tensor.name, tensor.cols)));
            }
            if tensor.is_plain() || tensor.scales.is_some() {
                let problem = format!("{:?} has no blocks", tensor.dtype);
                return Err(Error::Tensor { name: tensor.name.clone(), problem });
            }
        }
        let four_bits = |tensor: &&Tensor| matches!(tensor.dtype, DType::Q4_0 | DType::Q4_1 | DType::Q4K);
        let format = match parts.iter().all(four_bits) {
            true => PackedFormat::Int4Grouped,
            false => PackedFormat::Int8Grouped,
        };
        let rows = parts.iter().map(|tensor| tensor.rows).sum();
        let groups = cols / BLOCK;
        let mut blocks = vec![Block::default(); rows * groups];
        let mut rest = &mut blocks[..];
        for tensor in parts {
            let (own, after) = rest.split_at_mut(tensor.rows * groups);
            threads::share(own.chunks_mut(groups.max(1)).enumerate(), |(row, blocks)| {
                (0..).zip(blocks).for_each(|(group, to)| *to = block(tensor, row, group, format));
            });
            rest = after;
        }
        let blocks = Arc::new(blocks);
        let of_codes = blocks.clone();
        let codes = move |row: usize, out: &mut [u8]| {
            let blocks = &of_codes[row * groups..][..groups];
            out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks).for_each(|(out, block)| *out = block.codes);
        };
        let scale = |row: usize, group: usize| {
            let block = &blocks[row * groups + group];
            (block.scale, block.offset)
        };
        Self::by_group(format, (rows, cols), BLOCK, codes, scale)
    }
}

/// One block of 32 numbers: `scale · code + offset`, without the offset for int8.
#[derive(Clone, Default)]
struct Block {
    codes: [u8; BLOCK],
    scale: f32,
    offset: f32,
}

fn block(tensor: &Tensor, row: usize, group: usize, format: PackedFormat) -> Block {
    let dtype = tensor.dtype;
    let (numbers, bytes) = dtype.block();
    let per_block = numbers / BLOCK;
    let data = &formats::row_data(tensor, row)[group / per_block * bytes..][..bytes];
    let i = group % per_block;
    let (codes, scales) = (formats::codes(dtype, data, i), formats::scales(dtype, data, i));
    let Scales { d, m, sub, min } = scales;
    let scale = d.to_f32() * f32::from(sub[0]);
    match formats::zero_shift(dtype) {
        Some(shift) if format == PackedFormat::Int4Grouped => {
            Block { codes, scale, offset: -scale * f32::from(1u8 << shift) }
        }
        None if format == PackedFormat::Int4Grouped => {
            Block { codes, scale, offset: m.to_f32() * f32::from(min) }
        }
        Some(shift) if dtype != DType::Q6K => {
            Block { codes: codes.map(|code| code.wrapping_sub(1 << shift)), scale, offset: 0.0 }
        }
        _ => rounded(&formats::dequantize_block(dtype, &codes, scales)),
    }
}

/// To int8.
fn rounded(numbers: &[f32; BLOCK]) -> Block {
    let scale = numbers.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let code = |x: f32| (x * inverse + ROUNDER).to_bits() as u8;
    Block { codes: numbers.map(code), scale, offset: 0.0 }
}
