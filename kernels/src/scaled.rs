//! Codes whose scales lie beside them: what quantized Hugging Face checkpoints hold, and what plain weights are made
//! into on request.

use std::ops::Range;

use bytes::Bytes;

use crate::{
    DType, Error, Tensor,
    cpu::formats::{self, dequantize_row},
    threads,
};

/// The largest e4m3 number.
const E4M3_MAX: f32 = 448.0;
/// Added to a number of up to 2^22, leaves the nearest integer in the low bits (of two as near the even one): baseline
/// x86-64 has no instruction that rounds.
pub(crate) const ROUNDER: f32 = 12_582_912.0;
/// The zero point of 4-bit codes that have none of their own.
const MIDDLE: u8 = 8;
/// The numbers that e4m3 codes stand for.
static E4M3: [f32; 256] = e4m3_numbers();

/// What the codes of a matrix stand for: `weight = scale · (code − zero)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Inputs that share a scale, the last of a row perhaps fewer; all inputs where a row has one scale.
    pub group: usize,
    /// `[rows, groups]`
    pub scales: Vec<f32>,
    /// `[rows, groups]`: zero points of 4-bit codes. None: they are 8.
    pub zeros: Option<Vec<u8>>,
}

// === impl Scales ===

impl Scales {
    /// A scale for each row of so many columns.
    pub fn by_row(cols: usize, scales: Vec<f32>) -> Self {
        Self { group: cols, scales, zeros: None }
    }

    /// Scales of a row of so many columns.
    pub fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group.max(1))
    }

    /// The scale and the zero point of a group, by its number over all rows.
    pub(crate) fn at(&self, group: usize) -> (f32, u8) {
        (self.scales[group], self.zeros.as_ref().map_or(MIDDLE, |zeros| zeros[group]))
    }

    /// Whether all zero points are the middle of the codes.
    pub(crate) fn symmetric(&self) -> bool {
        self.zeros.iter().flatten().all(|&zero| zero == MIDDLE)
    }

    pub(crate) fn check(&self, dtype: DType, rows: usize, cols: usize) -> Result<(), String> {
        let (group, wanted) = (self.group, rows * self.groups(cols));
        if group == 0 || (group < cols && !group.is_multiple_of(dtype.block().0)) {
            return Err(format!("groups of {group} {dtype:?} codes"));
        }
        let zeros = self.zeros.as_ref().map_or(wanted, Vec::len);
        if self.scales.len() != wanted || zeros != wanted {
            let scales = self.scales.len();
            return Err(format!("{scales} scales and {zeros} zero points where {wanted} were expected"));
        }
        if self.zeros.is_some() && dtype != DType::Int4 {
            return Err(format!("zero points of {dtype:?} codes"));
        }
        match self.scales.iter().find(|scale| !scale.is_finite()) {
            Some(scale) => Err(format!("a scale is {scale}")),
            None => Ok(()),
        }
    }

    /// Those of some of the outputs.
    pub(crate) fn outputs(&self, cols: usize, range: Range<usize>) -> Self {
        let groups = self.groups(cols);
        let range = range.start * groups..range.end * groups;
        let zeros = self.zeros.as_ref().map(|zeros| zeros[range.clone()].to_vec());
        Self { group: self.group, scales: self.scales[range].to_vec(), zeros }
    }

    /// Those of some of the inputs, which must be whole groups.
    pub(crate) fn inputs(&self, cols: usize, range: Range<usize>) -> Option<Self> {
        let (group, groups) = (self.group, self.groups(cols));
        if groups == 1 {
            return Some(Self { group: range.len(), ..self.clone() });
        }
        let whole = |col: usize| col.is_multiple_of(group) || col == cols;
        if !whole(range.start) || !whole(range.end) {
            return None;
        }
        let range = range.start / group..range.end.div_ceil(group);
        fn cut<T: Copy>(all: &[T], groups: usize, range: &Range<usize>) -> Vec<T> {
            all.chunks_exact(groups).flat_map(|row| &row[range.clone()]).copied().collect()
        }
        let zeros = self.zeros.as_ref().map(|zeros| cut(zeros, groups, &range));
        Some(Self { group, scales: cut(&self.scales, groups, &range), zeros })
    }
}

// === impl Tensor ===

impl Tensor {
    /// How many inputs in a row can't be parted.
    pub fn inseparable(&self) -> usize {
        let group = self.scales.as_ref().map(|scales| scales.group).filter(|&group| group < self.cols);
        group.unwrap_or(self.dtype.block().0)
    }

    /// The same numbers, rounded: as `Int8` or `E4m3`, with a scale for each row.
    pub fn quantized(&self, dtype: DType) -> Result<Self, Error> {
        formats::check(self)?;
        let Self { name, rows, cols, .. } = self;
        let largest_code = match dtype {
            DType::Int8 => 127.0,
            DType::E4m3 => E4M3_MAX,
            _ => return Err(Error::Unsupported(format!("weights can't be made {dtype:?}"))),
        };
        let (mut codes, mut scales) = (vec![0; rows * cols], vec![0.0; *rows]);
        let parts = codes.chunks_mut((*cols).max(1)).zip(&mut scales).enumerate();
        threads::share(parts, |(row, (codes, scale))| {
            let mut numbers = vec![0.0; *cols];
            dequantize_row(self, row, &mut numbers);
            // Magnitudes are ordered as their bits are, and what is no number is above all that are.
            let most = numbers.iter().fold(0, |most: i32, x| most.max((x.to_bits() & 0x7fff_ffff) as i32));
            *scale = f32::from_bits(most as u32) / largest_code;
            let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
            let numbers = codes.iter_mut().zip(&numbers);
            match dtype {
                DType::Int8 => numbers.for_each(|(code, x)| *code = (x * inverse + ROUNDER).to_bits() as u8),
                _ => numbers.for_each(|(code, x)| *code = to_e4m3(x * inverse)),
            }
        });
        Self::new(name, dtype, *rows, *cols, Bytes::from(codes))?.with_scales(Scales::by_row(*cols, scales))
    }
}

/// Dequantizes row `row` of a tensor that has these scales.
pub(crate) fn dequantize(tensor: &Tensor, scales: &Scales, row: usize, out: &mut [f32]) {
    let (codes, group) = (formats::row_data(tensor, row), scales.group);
    let first = row * scales.groups(tensor.cols);
    for (i, out) in out.chunks_mut(group).enumerate() {
        let (scale, zero) = scales.at(first + i);
        match tensor.dtype {
            DType::E4m3 => {
                let codes = &codes[i * group..];
                out.iter_mut().zip(codes).for_each(|(x, &code)| *x = scale * E4M3[usize::from(code)]);
            }
            DType::Int4 => {
                let codes = &codes[i * group / 2..];
                for (pair, &code) in out.chunks_mut(2).zip(codes) {
                    let both = [code & 15, code >> 4];
                    pair.iter_mut()
                        .zip(both)
                        .for_each(|(x, code)| *x = scale * (f32::from(code) - f32::from(zero)));
                }
            }
            _ => {
                let codes = &codes[i * group..];
                out.iter_mut().zip(codes).for_each(|(x, &code)| *x = scale * f32::from(code as i8));
            }
        }
    }
}

/// The nearest e4m3 code, of two as near the even one; beyond the largest number, that.
fn to_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let x = x.abs().min(E4M3_MAX);
    // The exponent's bias is 7 instead of 127, and of the fraction's 23 bits 3 stay.
    let bits = x.to_bits();
    let normal = ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    let subnormal = (x * 512.0 + ROUNDER).to_bits();
    sign | if x < 1.0 / 64.0 { subnormal } else { normal } as u8
}

const fn e4m3_numbers() -> [f32; 256] {
    let (mut numbers, mut code) = ([0.0; 256], 0);
    while code < 256 {
        let (exponent, fraction) = (code as u32 >> 3 & 15, code as u32 & 7);
        let magnitude = match (exponent, fraction) {
            (15, 7) => f32::NAN,
            (0, _) => fraction as f32 / 512.0,
            _ => f32::from_bits((exponent + 120) << 23 | fraction << 20),
        };
        numbers[code] = if code & 0x80 == 0 { magnitude } else { -magnitude };
        code += 1;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_number_has_its_code_and_others_the_nearest() {
        assert_eq!((E4M3[0x38], E4M3[1], E4M3[0x7e], E4M3[0xbc]), (1.0, 1.0 / 512.0, 448.0, -1.5));
        let numbers: Vec<f32> = E4M3[..127].to_vec();
        assert!(E4M3[127].is_nan() && numbers.is_sorted());
        for (code, number) in (0u8..).zip(&numbers) {
            assert_eq!((to_e4m3(*number), to_e4m3(-number)), (code, code | 0x80));
        }
        for (code, pair) in (0u8..).zip(numbers.windows(2)) {
            let middle = (pair[0] + pair[1]) / 2.0;
            assert_eq!(to_e4m3(middle), code + code % 2, "halfway goes to the even one");
            assert_eq!(to_e4m3(f32::from_bits(middle.to_bits() + 1)), code + 1);
            assert_eq!(to_e4m3(f32::from_bits(middle.to_bits() - 1)), code);
        }
        assert_eq!((to_e4m3(1e9), to_e4m3(-1e9)), (0x7e, 0xfe));
    }

    #[test]
    fn numbers_are_scale_times_code_less_zero() {
        let matrix = |dtype, cols, data: &[u8], scales| {
            let tensor = Tensor::new("m", dtype, 2, cols, Bytes::copy_from_slice(data)).unwrap();
            tensor.with_scales(scales).and_then(|tensor| formats::dequantized(&tensor))
        };
        let by_row = matrix(DType::Int8, 2, &[1, 0xfe, 3, 0x80], Scales::by_row(2, vec![2.0, 0.5])).unwrap();
        assert_eq!(by_row, [2.0, -4.0, 1.5, -64.0]);
        let floats =
            matrix(DType::E4m3, 2, &[0x38, 0xbc, 1, 0x7e], Scales::by_row(2, vec![2.0, 1.0])).unwrap();
        assert_eq!(floats, [2.0, -3.0, 1.0 / 512.0, 448.0]);
        let groups = |zeros| Scales { group: 2, scales: vec![1.0, 2.0, 3.0, 4.0], zeros };
        let data = [0x10, 0x32, 0x98, 0xfe];
        assert_eq!(
            matrix(DType::Int4, 4, &data, groups(None)).unwrap(),
            [-8.0, -7.0, -12.0, -10.0, 0.0, 3.0, 24.0, 28.0]
        );
        assert_eq!(
            matrix(DType::Int4, 4, &data, groups(Some(vec![0, 1, 9, 16]))).unwrap(),
            [0.0, 1.0, 2.0, 4.0, -3.0, 0.0, -8.0, -4.0]
        );
        // What doesn't fit is an error: too few scales, no number among them, cut codes, zeros of bytes.
        let wrong = [
            (DType::Int8, Scales::by_row(2, vec![1.0])),
            (DType::Int8, Scales::by_row(2, vec![1.0, f32::NAN])),
            (DType::Int8, Scales { zeros: Some(vec![8; 2]), ..Scales::by_row(2, vec![1.0; 2]) }),
            (DType::Int8, Scales { group: 0, scales: vec![], zeros: None }),
        ];
        assert!(wrong.into_iter().all(|(dtype, scales)| matrix(dtype, 2, &[0; 4], scales).is_err()));
        assert!(
            matrix(DType::Int4, 4, &[0; 4], Scales { group: 1, scales: vec![1.0; 8], zeros: None }).is_err()
        );
        let bare = Tensor::new("m", DType::Int8, 1, 2, Bytes::from_static(&[0; 2])).unwrap();
        assert!(formats::dequantized(&bare).is_err());
    }

    #[test]
    fn parts_of_a_matrix_keep_their_scales() {
        let data: Vec<u8> = (0..4 * 8).collect();
        let scales: Vec<f32> = (1..=8).map(|i| i as f32).collect();
        let zeros = Some((0..8).collect());
        let all = Tensor::new("m", DType::Int4, 4, 16, data.into()).unwrap();
        let all = all.with_scales(Scales { group: 8, scales, zeros }).unwrap();
        let numbers = |tensor: &Tensor| formats::dequantized(tensor).unwrap();
        let whole = numbers(&all);
        assert_eq!(numbers(&all.outputs(1..3).unwrap()), whole[16..48]);
        let right: Vec<f32> = whole.chunks(16).flat_map(|row| &row[8..]).copied().collect();
        assert_eq!(numbers(&all.inputs(8..16).unwrap()), right);
        assert!(all.inputs(4..12).is_none());
        assert_eq!((all.inseparable(), all.inputs(8..16).unwrap().inseparable()), (8, 2));
    }

    #[test]
    fn made_numbers_are_off_by_half_a_step_at_most() {
        let numbers: Vec<f32> =
            (0..3 * 40).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0 * (i / 40) as f32).collect();
        let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let plain = Tensor::new("m", DType::F32, 3, 40, data.into()).unwrap();
        for (dtype, step) in [(DType::Int8, 1.0 / 127.0), (DType::E4m3, 1.0 / 8.0)] {
            let made = plain.quantized(dtype).unwrap();
            let made = formats::dequantized(&made).unwrap();
            for (plain, made) in numbers.chunks(40).zip(made.chunks(40)) {
                let most = plain.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (x, y) in plain.iter().zip(made) {
                    // A float's step is relative, down to the smallest normal number.
                    let of = if dtype == DType::Int8 { most } else { x.abs().max(most / 448.0 / 64.0) };
                    assert!((x - y).abs() <= of * step * 0.5001, "{dtype:?}: {y} for {x} of {most}");
                }
            }
        }
        let data: Vec<u8> = [1.0, f32::NAN, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let none = Tensor::new("m", DType::F32, 1, 3, data.into()).unwrap();
        assert!(none.quantized(DType::Int8).is_err() && plain.quantized(DType::Q8_0).is_err());
    }
}
