//! How each storage format lays out its numbers, as GGML defines them.
//!
//! Every quantized format is read as blocks of 32 consecutive numbers with unsigned codes:
//! `number = (d · sub) · (code - zero) + (m · min)`, where the simple formats have `sub` = `min` = 1 and the
//! K-quants, whose super-blocks hold eight such blocks, carry small integers there.

use half::{bf16, f16};

use crate::{DType, Error, Tensor, scaled};

/// Numbers in a block.
pub const BLOCK: usize = 32;

/// The scales of one block of 32 numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scales {
    /// Scale of the block (super-block for K-quants).
    pub(crate) d: f16,
    /// Added to each number, negated where the format subtracts it; 0 where it has none.
    pub(crate) m: f16,
    /// Integer multipliers of `d` for either half of the block; `i8` for Q6_K, else `u8`.
    pub(crate) sub: [u8; 2],
    /// Integer multiplier of `m`.
    pub(crate) min: u8,
}

/// Dequantizes row `row` of a tensor into `out` (`tensor.cols` numbers), bit for bit as GGML does.
///
/// # Panics
/// If the row or the length of `out` doesn't fit the tensor.
pub fn dequantize_row(tensor: &Tensor, row: usize, out: &mut [f32]) {
    assert_eq!(out.len(), tensor.cols, "a row of {} has {} numbers", tensor.name, tensor.cols);
    match &tensor.scales {
        Some(scales) => scaled::dequantize(tensor, scales, row, out),
        None => dequantize(tensor.dtype, row_data(tensor, row), out),
    }
}

/// All numbers of a tensor, as [`dequantize_row`].
pub fn dequantized(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    check(tensor)?;
    let mut out = vec![0.0; tensor.rows * tensor.cols];
    for (row, out) in out.chunks_mut(tensor.cols.max(1)).enumerate() {
        dequantize_row(tensor, row, out);
    }
    Ok(out)
}

/// Errors unless the tensor's bytes and scales are what its shape asks for.
pub(crate) fn check(tensor: &Tensor) -> Result<(), Error> {
    tensor.check()
}

/// The bytes of row `row`.
pub(crate) fn row_data(tensor: &Tensor, row: usize) -> &[u8] {
    let (numbers, bytes) = tensor.dtype.block();
    let stride = tensor.cols / numbers * bytes;
    &tensor.data[row * stride..][..stride]
}

/// Dequantizes whole blocks.
fn dequantize(dtype: DType, data: &[u8], out: &mut [f32]) {
    let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        DType::F32 => each(data, out, |b: &[u8; 4]| f32::from_le_bytes(*b)),
        DType::F16 => each(data, out, |b: &[u8; 2]| f16::from_bits(half(b)).to_f32()),
        DType::BF16 => each(data, out, |b: &[u8; 2]| bf16::from_bits(half(b)).to_f32()),
        _ => {
            let (numbers, bytes) = dtype.block();
            for (data, out) in data.chunks_exact(bytes).zip(out.chunks_exact_mut(numbers)) {
                for (i, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                    out.copy_from_slice(&dequantize_block(
                        dtype,
                        &codes(dtype, data, i),
                        scales(dtype, data, i),
                    ));
                }
            }
        }
    }
}

fn each<const N: usize>(data: &[u8], out: &mut [f32], number: impl Fn(&[u8; N]) -> f32) {
    for (bytes, out) in data.as_chunks().0.iter().zip(out) {
        *out = number(bytes);
    }
}

/// The numbers of a block.
pub(crate) fn dequantize_block(dtype: DType, codes: &[u8; BLOCK], scales: Scales) -> [f32; BLOCK] {
    let zero = zero_shift(dtype).map_or(0, |shift| 1 << shift);
    let d = scales.d.to_f32();
    let subs = scales.sub.map(|s| if dtype == DType::Q6K { f32::from(s as i8) } else { f32::from(s) });
    let min = scales.m.to_f32() * f32::from(scales.min);
    std::array::from_fn(|i| {
        // Both factors and their product are exact in f32 but for Q6_K's, so no order of rounding matters.
        let product = d * subs[i / 16] * (i32::from(codes[i]) - zero) as f32;
        if has_min(dtype) { product + min } else { product }
    })
}

/// Whether the format adds a minimum to each number.
pub(crate) fn has_min(dtype: DType) -> bool {
    matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K)
}

/// log2 of the code that stands for zero, for formats without a minimum.
pub(crate) fn zero_shift(dtype: DType) -> Option<u32> {
    match dtype {
        DType::Q4_0 => Some(3),
        DType::Q5_0 => Some(4),
        DType::Q6K => Some(5),
        DType::Q8_0 => Some(7),
        _ => None,
    }
}

/// The unsigned codes of the `i`-th 32 numbers in a block (super-block) of a quantized format.
pub(crate) fn codes(dtype: DType, data: &[u8], i: usize) -> [u8; BLOCK] {
    match dtype {
        DType::Q4_0 => nibbles(&data[2..]),
        DType::Q4_1 => nibbles(&data[4..]),
        DType::Q5_0 => fifth_bits(nibbles(&data[6..]), &data[2..]),
        DType::Q5_1 => fifth_bits(nibbles(&data[8..]), &data[4..]),
        DType::Q8_0 => std::array::from_fn(|k| data[2 + k] ^ 0x80),
        DType::Q4K => std::array::from_fn(|k| (data[16 + i / 2 * 32 + k] >> (i % 2 * 4)) & 15),
        DType::Q5K => std::array::from_fn(|k| {
            let low = (data[48 + i / 2 * 32 + k] >> (i % 2 * 4)) & 15;
            low | ((data[16 + k] >> i) & 1) << 4
        }),
        DType::Q6K => std::array::from_fn(|k| {
            let (half, quarter) = (i / 4, i % 4);
            let low = (data[half * 64 + quarter % 2 * 32 + k] >> (quarter / 2 * 4)) & 15;
            low | ((data[128 + half * 32 + k] >> (quarter * 2)) & 3) << 4
        }),
        // No blocks: callers treat them apart.
        DType::F32 | DType::F16 | DType::BF16 | DType::Int8 | DType::Int4 | DType::E4m3 => [0; BLOCK],
    }
}

/// 16 bytes: the low nibbles are numbers 0–15, the high ones 16–31.
fn nibbles(data: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|k| (data[k % 16] >> (k / 16 * 4)) & 15)
}

/// Adds bit `k` of the first four bytes as the fifth bit of number `k`.
fn fifth_bits(mut codes: [u8; BLOCK], data: &[u8]) -> [u8; BLOCK] {
    let high = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
    for (k, code) in codes.iter_mut().enumerate() {
        *code |= ((high >> k & 1) as u8) << 4;
    }
    codes
}

/// The scales of the `i`-th 32 numbers in a block (super-block) of a quantized format.
pub(crate) fn scales(dtype: DType, data: &[u8], i: usize) -> Scales {
    let half = |at: usize| f16::from_bits(u16::from_le_bytes([data[at], data[at + 1]]));
    match dtype {
        DType::Q4_1 | DType::Q5_1 => Scales { d: half(0), m: half(2), sub: [1; 2], min: 1 },
        DType::Q4K | DType::Q5K => {
            let (sub, min) = six_bit_pair(&data[4..16], i);
            Scales { d: half(0), m: -half(2), sub: [sub; 2], min }
        }
        DType::Q6K => {
            let sub = [data[192 + 2 * i], data[193 + 2 * i]];
            Scales { d: half(208), m: f16::ZERO, sub, min: 0 }
        }
        _ => Scales { d: half(0), m: f16::ZERO, sub: [1; 2], min: 0 },
    }
}

/// The `i`-th scale and minimum of the twelve bytes that hold eight of each, 6 bits wide.
fn six_bit_pair(data: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (data[i] & 63, data[i + 4] & 63)
    } else {
        let low = data[i + 4];
        ((low & 15) | (data[i - 4] >> 6) << 4, (low >> 4) | (data[i] >> 6) << 4)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn every_format_is_read_as_ggml_reads_it() {
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
        };
        let fixtures = include_str!("../../tests/fixtures/dequantize.txt");
        assert_eq!(fixtures.lines().count(), 11);
        for line in fixtures.lines() {
            let [name, data, expected] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let dtype = match name {
                "F32" => DType::F32,
                "F16" => DType::F16,
                "BF16" => DType::BF16,
                "Q4_0" => DType::Q4_0,
                "Q4_1" => DType::Q4_1,
                "Q5_0" => DType::Q5_0,
                "Q5_1" => DType::Q5_1,
                "Q8_0" => DType::Q8_0,
                "Q4_K" => DType::Q4K,
                "Q5_K" => DType::Q5K,
                "Q6_K" => DType::Q6K,
                _ => panic!("{name}"),
            };
            let cols = expected.len() / 8;
            let tensor = Tensor::new(name, dtype, 1, cols, Bytes::from(bytes(data))).unwrap();
            let numbers: String =
                dequantized(&tensor).unwrap().iter().map(|x| format!("{:08x}", x.to_bits())).collect();
            assert_eq!(numbers, expected, "{name}");
        }
    }
}
