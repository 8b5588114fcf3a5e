//! Codes with scales beside them, as the blocks of 32 that products on the CPU read.
//!
//! ```text
//! Int8   Q8_0           as they are; scales rounded to f16
//! Int4   Q4_0, Q4_1     likewise; with zero points of their own, what they come to is rounded too
//! E4m3   Q8_0           rounded to 1/127 of the largest of 32
//! ```

use half::f16;

use super::formats::{BLOCK, dequantize_row, row_data};
use crate::{DType, Tensor};

/// The format of a tensor's blocks: its own, but for codes with scales beside them. `F32` if they aren't whole blocks.
pub(super) fn format(tensor: &Tensor) -> DType {
    let Some(scales) = &tensor.scales else { return tensor.dtype };
    let whole = |numbers: usize| numbers.is_multiple_of(BLOCK);
    match tensor.dtype {
        _ if !whole(tensor.cols) => DType::F32,
        DType::E4m3 => DType::Q8_0,
        _ if scales.group < tensor.cols && !whole(scales.group) => DType::F32,
        DType::Int4 if scales.symmetric() => DType::Q4_0,
        DType::Int4 => DType::Q4_1,
        _ => DType::Q8_0,
    }
}

/// A row as blocks of what [`format`] says.
pub(super) fn row(tensor: &Tensor, format: DType, row: usize) -> Vec<u8> {
    let mut blocks = Vec::with_capacity(format.row_bytes(tensor.cols).unwrap_or(0));
    if tensor.dtype == DType::E4m3 {
        let mut numbers = vec![0.0; tensor.cols];
        dequantize_row(tensor, row, &mut numbers);
        numbers.as_chunks().0.iter().for_each(|numbers| rounded(numbers, &mut blocks));
        return blocks;
    }
    let Some(scales) = &tensor.scales else { return blocks };
    let (first, data) = (row * scales.groups(tensor.cols), row_data(tensor, row));
    let bytes = if tensor.dtype == DType::Int4 { BLOCK / 2 } else { BLOCK };
    for (block, codes) in data.chunks_exact(bytes).enumerate() {
        let (scale, zero) = scales.at(first + block * BLOCK / scales.group);
        blocks.extend(f16::from_f32(scale).to_le_bytes());
        if format == DType::Q4_1 {
            blocks.extend(f16::from_f32(-scale * f32::from(zero)).to_le_bytes());
        }
        if tensor.dtype == DType::Int4 {
            // GGML's bytes hold numbers 16 apart, these their neighbours.
            let code = |i: usize| codes[i / 2] >> (i % 2 * 4) & 15;
            blocks.extend((0..BLOCK / 2).map(|i| code(i) | code(i + BLOCK / 2) << 4));
        } else {
            blocks.extend(codes);
        }
    }
    blocks
}

/// A block of Q8_0.
fn rounded(numbers: &[f32; BLOCK], out: &mut Vec<u8>) {
    let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
    let scale = f16::from_f32(most / 127.0);
    let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    out.extend(scale.to_le_bytes());
    out.extend(numbers.map(|x| (x * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Scales, cpu::formats::dequantized};

    /// What the blocks of a matrix of two rows stand for, and what its codes did.
    fn both(dtype: DType, cols: usize, scales: Scales) -> (DType, Vec<f32>, Vec<f32>) {
        let bytes = 2 * dtype.row_bytes(cols).unwrap();
        // No code of a float that is no number.
        let data: Vec<u8> = (0..bytes).map(|i| (i * 73 % 251) as u8 & 0xfe).collect();
        let tensor = Tensor::new("m", dtype, 2, cols, data.into()).unwrap().with_scales(scales).unwrap();
        let format = format(&tensor);
        let blocks: Vec<u8> = (0..2).flat_map(|number| row(&tensor, format, number)).collect();
        let blocks = Tensor::new("m", format, 2, cols, Bytes::from(blocks)).unwrap();
        (format, dequantized(&blocks).unwrap(), dequantized(&tensor).unwrap())
    }

    #[test]
    fn codes_become_blocks_of_the_same_numbers() {
        let scales = |group: usize, zeros| Scales {
            group,
            scales: (1..=256 / group).map(|i| i as f32 / 64.0).collect(),
            zeros,
        };
        let exact = [
            (DType::Int8, scales(128, None), DType::Q8_0),
            (DType::Int8, scales(32, None), DType::Q8_0),
            (DType::Int4, scales(64, None), DType::Q4_0),
            (DType::Int4, scales(128, Some(vec![8; 2])), DType::Q4_0),
            (DType::Int4, scales(64, Some(vec![1, 9, 8, 16])), DType::Q4_1),
        ];
        for (dtype, scales, expected) in exact {
            let (format, blocks, numbers) = both(dtype, 128, scales);
            assert_eq!((format, blocks), (expected, numbers));
        }
        let (rounded, blocks, numbers) = both(DType::E4m3, 128, scales(64, None));
        assert_eq!(rounded, DType::Q8_0);
        for (blocks, numbers) in blocks.chunks(BLOCK).zip(numbers.chunks(BLOCK)) {
            let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
            // Half a step, and the scale's rounding to f16.
            let off = most * (0.5 / 127.0 + 2f32.powi(-11));
            assert!(blocks.iter().zip(numbers).all(|(block, x)| (block - x).abs() <= off));
        }
        let tensor = |cols, group| {
            let data = Bytes::from(vec![0; cols]);
            let scales = Scales { group, scales: vec![1.0; cols.div_ceil(group)], zeros: None };
            format(&Tensor::new("m", DType::Int8, 1, cols, data).unwrap().with_scales(scales).unwrap())
        };
        assert_eq!((tensor(48, 48), tensor(64, 16), tensor(64, 64)), (DType::F32, DType::F32, DType::Q8_0));
    }
}
