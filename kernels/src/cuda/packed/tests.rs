use bytes::Bytes;
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::{DType, Scales, Tensor, cpu::formats};

/// Numbers that look random.
fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

/// A tensor of random blocks with sensible scales.
fn gguf(dtype: DType, rows: usize, cols: usize, seed: u64) -> Tensor {
    let mut next = noise(seed);
    let (numbers, bytes) = dtype.block();
    let mut data: Vec<u8> = (0..rows * cols / numbers * bytes).map(|_| next() as u8).collect();
    for block in data.chunks_mut(bytes) {
        let mut half = |at: usize| {
            let scale = (next() % 1000) as f32 / 40_000.0 + 1e-4;
            block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_bits().to_le_bytes());
        };
        half(0);
        if matches!(dtype, DType::Q4_1 | DType::Q4K | DType::Q5_1 | DType::Q5K) {
            half(2);
        }
        if dtype == DType::Q6K {
            half(208);
        }
    }
    Tensor::new("w", dtype, rows, cols, Bytes::from(data)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gguf_weights_are_what_plain_dequantization_gives(
        kind in 0..4usize, rows in 1..40usize, blocks in 1..6usize, seed: u64,
    ) {
        let dtype = [DType::Q4_0, DType::Q4_1, DType::Q4K, DType::Q8_0][kind];
        let cols = blocks * dtype.block().0;
        let tensor = gguf(dtype, rows, cols, seed);
        let plain = formats::dequantized(&tensor).unwrap();
        let packed = Packing::of_gguf(&[&tensor]).unwrap().finish();
        for (i, &plain) in plain.iter().enumerate() {
            let weight = packed.weight(i / cols, i % cols);
            if dtype == DType::Q4K {
                // Scale and offset are rounded to f16: 2^-11 of each, of numbers below 0.03 · 63 · 15.
                prop_assert!((weight - f64::from(plain)).abs() <= 2f64.powi(-11) * 0.03 * 63.0 * 16.0);
            } else {
                prop_assert_eq!(weight as f32, plain);
            }
        }
    }

    #[test]
    fn gguf_weights_of_several_formats_are_stacked_as_int8(
        above in 0..8usize, below in 0..4usize, rows in 1..20usize, seed: u64,
    ) {
        let all = [
            DType::Q5_0, DType::Q5_1, DType::Q5K, DType::Q6K, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q4K,
        ];
        let (upper, lower) = (gguf(all[above], rows, 256, seed), gguf(all[below], 3, 256, seed ^ 1));
        let packed = Packing::of_gguf(&[&upper, &lower]).unwrap().finish();
        let plain = [&upper, &lower].map(|tensor| formats::dequantized(tensor).unwrap()).concat();
        let exact = |row| {
            matches!(if row < rows { all[above] } else { all[below] }, DType::Q4_0 | DType::Q5_0 | DType::Q8_0)
        };
        for (group, numbers) in plain.chunks(32).enumerate() {
            let largest = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
            // Half a step, and the scale's rounding to f16.
            let most = if exact(group / 8) { 0.0 } else { f64::from(largest) * (0.5 / 127.0 + 2f64.powi(-11)) };
            for (i, &plain) in numbers.iter().enumerate() {
                let weight = packed.weight(group / 8, group % 8 * 32 + i);
                prop_assert!((weight - f64::from(plain)).abs() <= most, "{weight} for {plain} of {largest}");
            }
        }
    }

    #[test]
    fn int8_and_fp8_weights_keep_their_codes(rows in 1..40usize, eighths in 1..30usize, seed: u64) {
        let (cols, mut next) = (8 * eighths, noise(seed));
        let codes: Vec<i8> = (0..rows * cols).map(|_| next() as i8).collect();
        let scales: Vec<f32> = (0..rows).map(|_| (next() % 999 + 1) as f32 / 1e5).collect();
        let packed = PackedWeights::from_int8(cols, &codes, &scales, None).unwrap();
        for (i, &code) in codes.iter().enumerate() {
            prop_assert_eq!(packed.weight(i / cols, i % cols), f64::from(code) * f64::from(scales[i / cols]));
        }
        let floats: Vec<u8> = codes.iter().map(|&code| code as u8 & 0xfe).collect();
        let packed = PackedWeights::from_e4m3(cols, &floats, &scales).unwrap();
        for (i, &code) in floats.iter().enumerate() {
            prop_assert_eq!(packed.weight(i / cols, i % cols), e4m3(code) * f64::from(scales[i / cols]));
        }
    }

    #[test]
    fn grouped_int8_scales_stand_with_their_groups(
        rows in 1..40usize, eighths in 1..60usize, log in 5..9u32, seed: u64,
    ) {
        let (cols, group, mut next) = (8 * eighths, 1usize << log, noise(seed));
        let groups = cols.div_ceil(group);
        let codes: Vec<i8> = (0..rows * cols).map(|_| next() as i8).collect();
        let scales: Vec<f32> = (0..rows * groups).map(|_| bf16::from_f32((next() % 999 + 1) as f32 / 1e5).to_f32()).collect();
        let packed = PackedWeights::from_int8(cols, &codes, &scales, Some(group)).unwrap();
        for (i, &code) in codes.iter().enumerate() {
            let scale = scales[i / cols * groups + i % cols / group];
            prop_assert_eq!(packed.weight(i / cols, i % cols), f64::from(code) * f64::from(scale));
        }
    }

    #[test]
    fn gptq_weights_are_scale_times_code_less_zero(
        eighths in 1..5usize, groups in 1..4usize, log in 5..8u32, bias in 0..2u32, seed: u64,
    ) {
        let (rows, group, mut next) = (8 * eighths, 1usize << log, noise(seed));
        let cols = groups * group;
        let codes: Vec<u32> = (0..rows * cols).map(|_| next() as u32 & 15).collect();
        let zeros: Vec<u32> = (0..rows * groups).map(|_| next() as u32 & 15).collect();
        let scales: Vec<f16> = (0..rows * groups).map(|_| f16::from_f32((next() % 999 + 1) as f32 / 1e4)).collect();
        let pack = |words: usize, values: &dyn Fn(usize, usize) -> u32| -> Vec<u32> {
            (0..words).map(|word| (0..8).fold(0, |all, i| all | values(word, i) << (4 * i))).collect()
        };
        // codes are [row][col] here, zeros and scales [group][row], as the formats have them.
        let gptq = GptqTensors {
            qweight: &pack(cols / 8 * rows, &|word, i| codes[word % rows * cols + word / rows * 8 + i]),
            qzeros: &pack(groups * rows / 8, &|word, i| zeros[word * 8 + i]),
            scales: &scales,
            g_idx: &[],
            zero_bias: bias,
        };
        let gptq = PackedWeights::from_gptq(rows, cols, group, gptq).unwrap();
        for (i, &code) in codes.iter().enumerate() {
            let (row, col) = (i / cols, i % cols);
            let (scale, zero) = (scales[col / group * rows + row].to_f64(), zeros[col / group * rows + row]);
            let plain = scale * (f64::from(code) - f64::from(zero + bias));
            // The offset is rounded to f16.
            prop_assert!((gptq.weight(row, col) - plain).abs() <= 2f64.powi(-11) * scale * 16.0);
        }
    }
}

/// Random codes with a scale each `group` inputs.
fn scaled(dtype: DType, rows: usize, cols: usize, group: usize, seed: u64) -> Tensor {
    let mut next = noise(seed);
    // No code of a float that is no number.
    let data: Vec<u8> = (0..rows * dtype.row_bytes(cols).unwrap()).map(|_| next() as u8 & 0xfe).collect();
    let count = rows * cols.div_ceil(group);
    let scales = (0..count).map(|_| bf16::from_f32((next() % 999 + 1) as f32 / 1e5).to_f32()).collect();
    let zeros = (dtype == DType::Int4 && seed.is_multiple_of(2))
        .then(|| (0..count).map(|_| (next() % 17) as u8).collect());
    let tensor = Tensor::new("w", dtype, rows, cols, data.into()).unwrap();
    tensor.with_scales(Scales { group, scales, zeros }).unwrap()
}

#[test]
fn scaled_weights_are_what_plain_dequantization_gives() {
    let kinds = [
        (DType::Int8, 200, 200, PackedFormat::Int8),
        (DType::E4m3, 200, 200, PackedFormat::E4m3),
        (DType::Int8, 256, 64, PackedFormat::Int8Grouped),
        (DType::Int4, 256, 128, PackedFormat::Int4Grouped),
        (DType::Int4, 200, 200, PackedFormat::Int4Grouped),
        (DType::Int4, 192, 96, PackedFormat::Int4Grouped),
    ];
    for (seed, (dtype, cols, group, format)) in (0..).zip(kinds) {
        let (upper, lower) =
            (scaled(dtype, 21, cols, group, seed), scaled(dtype, 3, cols, group, seed + 100));
        let packed = Packing::of_scaled(&[&upper, &lower]).unwrap().unwrap().finish();
        assert_eq!((packed.format(), packed.rows(), packed.cols()), (format, 24, cols));
        let plain = [&upper, &lower].map(|tensor| formats::dequantized(tensor).unwrap()).concat();
        for (i, &plain) in plain.iter().enumerate() {
            // Zero points times scales are rounded to f16.
            let off = if upper.scales.as_ref().unwrap().zeros.is_some() {
                2f64.powi(-11) * 0.01 * 16.0
            } else {
                0.0
            };
            let weight = packed.weight(i / cols, i % cols);
            assert!((weight - f64::from(plain)).abs() <= off + 1e-6 * weight.abs(), "{weight} for {plain}");
        }
    }
}

#[test]
fn scaled_weights_that_no_kernel_reads_are_left_to_others() {
    let none = |parts: &[&Tensor]| Packing::of_scaled(parts).unwrap().is_none();
    let bytes = scaled(DType::Int8, 2, 64, 64, 1);
    assert!(none(&[&scaled(DType::E4m3, 2, 256, 128, 1)]) && none(&[&scaled(DType::Int4, 2, 64, 16, 1)]));
    assert!(
        none(&[&bytes, &scaled(DType::E4m3, 2, 64, 64, 1)])
            && !none(&[&bytes, &scaled(DType::Int8, 2, 64, 32, 1)])
    );
    assert!(none(&[&gguf(DType::Q8_0, 2, 64, 1)]) && none(&[&bytes, &gguf(DType::Q8_0, 2, 64, 1)]));
}

#[test]
fn what_cant_be_packed_is_an_error() {
    assert!(PackedWeights::from_int8(12, &[0; 24], &[1.0; 2], None).is_err());
    assert!(PackedWeights::from_int8(64, &[0; 64], &[1.0; 2], Some(48)).is_err());
    assert!(PackedWeights::from_e4m3(8, &[0x7f; 8], &[1.0]).is_err());
    let tensor = gguf(DType::Q4_0, 2, 64, 1);
    let other = Tensor::new("w", DType::F32, 1, 8, Bytes::from(vec![0; 32])).unwrap();
    assert!(Packing::of_gguf(&[&tensor]).is_ok());
    assert!(Packing::of_gguf(&[&other]).is_err());
    let narrow = gguf(DType::Q4_0, 2, 32, 1);
    assert!(Packing::of_gguf(&[&tensor, &narrow]).is_err());
    let reordered = GptqTensors {
        qweight: &[0; 32],
        qzeros: &[0; 1],
        scales: &[f16::ONE; 8],
        g_idx: &[1; 32],
        zero_bias: 1,
    };
    assert!(PackedWeights::from_gptq(8, 32, 32, GptqTensors { g_idx: &[], ..reordered }).is_ok());
    assert!(PackedWeights::from_gptq(8, 32, 32, reordered).is_err());
}
