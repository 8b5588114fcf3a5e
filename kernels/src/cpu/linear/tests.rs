//! Every product against f64, and bit for bit across rows, threads and instruction sets.

use bytes::Bytes;
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::cpu::formats;
use crate::cpu::pack::{Activations, Packer};
use crate::{DType, Error, Tensor};

const FORMATS: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

/// Numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Activations as models have them: mostly small, a few large.
    fn activations(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number() * if self.bits().is_multiple_of(50) { 30.0 } else { 1.0 }).collect()
    }

    fn tensor(&mut self, dtype: DType, rows: usize, cols: usize) -> Tensor {
        let (_, block) = dtype.block();
        let bytes = dtype.row_bytes(cols).unwrap() * rows;
        let mut data: Vec<u8> = match dtype {
            DType::F32 => (0..bytes / 4).flat_map(|_| self.number().to_le_bytes()).collect(),
            DType::F16 => (0..bytes / 2).flat_map(|_| f16::from_f32(self.number()).to_le_bytes()).collect(),
            DType::BF16 => (0..bytes / 2).flat_map(|_| bf16::from_f32(self.number()).to_le_bytes()).collect(),
            _ => (0..bytes).map(|_| self.bits() as u8).collect(),
        };
        let halves: &[usize] = match dtype {
            DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
            DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
            DType::Q6K => &[208],
            _ => &[],
        };
        for block in data.chunks_exact_mut(block) {
            for &at in halves {
                block[at..at + 2].copy_from_slice(&f16::from_f32(self.number() * 0.1).to_le_bytes());
            }
        }
        Tensor::new("w", dtype, rows, cols, Bytes::from(data)).unwrap()
    }
}

fn prepared(isa: Isa, w: &Packed, x: &[f32]) -> Prepared {
    let rows = x.len() / w.inputs();
    let prepared = Prepared::new(rows, w.inputs()).unwrap();
    for (row, x) in x.chunks_exact(w.inputs()).enumerate() {
        // SAFETY: one thread, no product.
        unsafe { prepared.set_row(isa, row, x, w) };
    }
    prepared
}

fn store(pool: &Pool, isa: Isa, w: &Packed, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / w.inputs();
    let mut out = vec![f32::NAN; rows * w.outputs()];
    matmul(pool, isa, w, &prepared(isa, w, x), rows, Epilogue::Store(&mut out));
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The sum and the sum of magnitudes of a product, in f64.
fn dot(w: &[f32], x: &[f32]) -> (f64, f64) {
    let products = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
    products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
}

/// What 8-bit activations stand for.
fn quantized(x: &[f32]) -> Vec<f32> {
    let block = |x: &[f32]| {
        let scale = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
        x.iter().map(|x| if scale > 0.0 { (x / scale).round_ties_even() * scale } else { 0.0 }).collect()
    };
    x.chunks(32).flat_map::<Vec<f32>, _>(block).collect()
}

#[test]
fn every_format_multiplies_as_its_dequantized_numbers_do() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(1);
    for isa in Isa::available() {
        for (dtype, activations) in
            FORMATS.into_iter().flat_map(|d| [(d, Activations::Int8), (d, Activations::F32)])
        {
            let (outputs, inputs, rows) = (37, 1536, 5);
            let tensor = random.tensor(dtype, outputs, inputs);
            let x = random.activations(rows * inputs);
            let packed = Packer::new(activations).linear(&pool, &[(tensor.clone(), None)]).unwrap();
            let out = store(&pool, isa, &packed, &x);
            let weights = formats::dequantized(&tensor).unwrap();
            let int8 = activations == Activations::Int8 && dtype.block().0 > 1;
            for (row, x) in x.chunks_exact(inputs).enumerate() {
                let rounded = if int8 { quantized(x) } else { x.to_vec() };
                let loss: Vec<f32> = x.iter().zip(&rounded).map(|(x, r)| x - r).collect();
                for (o, w) in weights.chunks_exact(inputs).enumerate() {
                    let got = f64::from(out[row * outputs + o]);
                    let (exact, size) = dot(w, x);
                    let (expected, _) = dot(w, &rounded);
                    let (_, lost) = dot(w, &loss);
                    let what = format!("{isa:?} {dtype:?} {activations:?} row {row} output {o}");
                    // A ten-thousandth of 2⁻²⁴ × 1536 roundings × the size is what goes wrong at worst;
                    // minimums cancel products that are up to some 15 times as large.
                    assert!((got - expected).abs() <= 2e-5 * size, "{what}: {got}, not {expected}");
                    assert!((got - exact).abs() <= 2e-5 * size + lost, "{what}: {got}, far from {exact}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_row_has_the_same_bits_alone_in_a_batch_on_any_threads_and_instruction_set(
        seed: u64,
        parts in prop::collection::vec((0usize..11, 1usize..70), 1..4),
        blocks in 1usize..5,
        odd in 0usize..40,
        rows in 1usize..80,
        f32_mode: bool,
    ) {
        let mut random = Random(seed);
        let mut cols = blocks * 256;
        if parts.iter().all(|&(f, _)| FORMATS[f].block().0 == 1) {
            cols += odd;
        } else if parts.iter().all(|&(f, _)| FORMATS[f].block().0 <= 32) {
            cols += odd * 32;
        }
        let mut part = |(format, outputs): (usize, usize)| {
            let bias = random.number() < 0.0;
            let bias = bias.then(|| random.tensor(DType::F32, 1, outputs));
            (random.tensor(FORMATS[format], outputs, cols), bias)
        };
        let parts: Vec<_> = parts.into_iter().map(&mut part).collect();
        let activations = if f32_mode { Activations::F32 } else { Activations::Int8 };
        let one = Pool::new(1).unwrap();
        let packed = Packer::new(activations).linear(&one, &parts).unwrap();
        let x = random.activations(rows * cols);
        let alone: Vec<u32> =
            x.chunks_exact(cols).flat_map(|x| bits(&store(&one, Isa::Portable, &packed, x))).collect();
        for threads in [1, 2] {
            let pool = Pool::new(threads).unwrap();
            for isa in Isa::available() {
                prop_assert!(bits(&store(&pool, isa, &packed, &x)) == alone, "{isa:?}, {threads} threads");
            }
        }
        for isa in Isa::available() {
            let row = rows / 2;
            let x = &x[row * cols..][..cols];
            let n = packed.outputs();
            prop_assert!(bits(&store(&one, isa, &packed, x)) == alone[row * n..][..n], "{isa:?} alone");
        }
    }

    #[test]
    fn a_gated_layer_is_the_activation_of_the_gate_times_up(
        seed: u64,
        formats in (0usize..11, 0usize..11),
        outputs in 1usize..70,
        rows in 1usize..20,
        gelu: bool,
    ) {
        let mut random = Random(seed);
        let cols = 256;
        let gate = random.tensor(FORMATS[formats.0], outputs, cols);
        let up = random.tensor(FORMATS[formats.1], outputs, cols);
        let x: Vec<f32> = random.activations(rows * cols).iter().map(|x| x * 0.1).collect();
        let activation = if gelu { Activation::GeluTanh } else { Activation::Silu };
        let pool = Pool::new(2).unwrap();
        let packer = Packer::new(Activations::Int8);
        let gates = packer.linear(&pool, &[(gate.clone(), None)]).unwrap();
        let ups = packer.linear(&pool, &[(up.clone(), None)]).unwrap();
        let gated = packer.gated(&pool, &gate, &up).unwrap();
        let mut first = None;
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; rows * outputs];
            matmul(&pool, isa, &gated, &prepared(isa, &gated, &x), rows, Epilogue::Gated(activation, &mut out));
            let (gates, ups) = (store(&pool, isa, &gates, &x), store(&pool, isa, &ups, &x));
            for (i, &got) in out.iter().enumerate() {
                let (g, u) = (f64::from(gates[i]), f64::from(ups[i]));
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                let expected = u * if gelu { 0.5 * g * (1.0 + inner.tanh()) } else { g / (1.0 + (-g).exp()) };
                // 1 + tanh loses what the exponential keeps, hence the absolute part.
                let error = (f64::from(got) - expected).abs();
                prop_assert!(error <= 2e-6 * expected.abs() + 1e-12 * u.abs(), "{got}, not {expected}");
            }
            let first = first.get_or_insert_with(|| bits(&out));
            prop_assert!(*first == bits(&out), "{isa:?}");
        }
    }
}

#[test]
fn biases_and_residuals_are_added() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(2);
    let (cols, rows) = (64, 6);
    let w = [(random.tensor(DType::Q8_0, 20, cols), None), (random.tensor(DType::Q4_0, 33, cols), None)];
    let bias = random.tensor(DType::F16, 1, 33);
    let with_bias = [w[0].clone(), (w[1].0.clone(), Some(bias.clone()))];
    let packer = Packer::new(Activations::Int8);
    let (plain, biased) = (packer.linear(&pool, &w).unwrap(), packer.linear(&pool, &with_bias).unwrap());
    let bias = [vec![0.0; 20], formats::dequantized(&bias).unwrap()].concat();
    let x = random.activations(rows * cols);
    let residual = random.activations(rows * 53);
    for isa in Isa::available() {
        let sums = store(&pool, isa, &plain, &x);
        let expected: Vec<f32> = sums.iter().enumerate().map(|(i, s)| s + bias[i % 53]).collect();
        assert_eq!(store(&pool, isa, &biased, &x), expected);
        let expected: Vec<f32> = expected.iter().zip(&residual).map(|(s, r)| r + s).collect();
        let mut out = residual.clone();
        matmul(&pool, isa, &biased, &prepared(isa, &biased, &x), rows, Epilogue::Add(&mut out));
        assert_eq!(out, expected);
    }
}

/// The normal distribution, by the trapezoidal rule.
fn normal(x: f64) -> f64 {
    const STEPS: usize = 4000;
    let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let step = x / STEPS as f64;
    let inner: f64 = (1..STEPS).map(|i| density(i as f64 * step)).sum();
    0.5 + step * (inner + (density(0.0) + density(x)) / 2.0)
}

#[test]
fn a_layer_without_a_gate_is_the_activation_of_its_sums_and_biases() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(4);
    let (cols, rows) = (64, 9);
    let part = (random.tensor(DType::Q8_0, 45, cols), Some(random.tensor(DType::F32, 1, 45)));
    let packed = Packer::new(Activations::Int8).linear(&pool, &[part]).unwrap();
    let x: Vec<f32> = random.activations(rows * cols).iter().map(|x| x * 0.1).collect();
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        let mut first = None;
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; rows * 45];
            let epilogue = Epilogue::Activated(activation, &mut out);
            matmul(&pool, isa, &packed, &prepared(isa, &packed, &x), rows, epilogue);
            for (&got, x) in out.iter().zip(store(&pool, isa, &packed, &x).into_iter().map(f64::from)) {
                let (expected, error) = match activation {
                    Activation::Silu => (x / (1.0 + (-x).exp()), 0.0),
                    Activation::GeluTanh => {
                        let y = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                        (x / (1.0 + (-y).exp()), 0.0)
                    }
                    Activation::GeluErf => (x * normal(x), 2e-7 * x.abs()),
                };
                let error = error + 2e-6 * expected.abs() + 1e-12;
                assert!((f64::from(got) - expected).abs() <= error, "{got}, not {expected}");
            }
            assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{isa:?}");
        }
    }
}

#[test]
fn zeros_give_zero_and_a_broken_number_spoils_its_own_row_only() {
    let pool = Pool::new(1).unwrap();
    let w = [(Random(3).tensor(DType::Q4_1, 16, 64), None)];
    let packed = Packer::new(Activations::Int8).linear(&pool, &w).unwrap();
    let mut x = vec![0.0; 3 * 64];
    x[..64].fill(1e-40); // as good as zero
    for broken in [f32::NAN, f32::INFINITY] {
        x[64 + 3] = broken;
        for isa in Isa::available() {
            let out = store(&pool, isa, &packed, &x);
            assert_eq!(out[..16], [0.0; 16]);
            assert!(out[16..32].iter().all(|x| x.is_nan()), "{isa:?} {broken} {:?}", &out[16..32]);
            assert_eq!(out[32..], [0.0; 16]);
        }
    }
}

#[test]
fn matrices_that_do_not_fit_together_are_refused() {
    let pool = Pool::new(1).unwrap();
    let packer = Packer::new(Activations::Int8);
    let mut random = Random(4);
    let mut tensor = |dtype, rows, cols| random.tensor(dtype, rows, cols);
    let message = |result: Result<Packed, Error>| result.map(drop).unwrap_err().to_string();

    let parts = [(tensor(DType::Q8_0, 4, 64), None), (tensor(DType::Q8_0, 4, 32), None)];
    assert_eq!(message(packer.linear(&pool, &parts)), "tensor w: 4×32 in a layer of 64 inputs");
    let parts = [(tensor(DType::Q8_0, 4, 64), Some(tensor(DType::F32, 1, 5)))];
    assert_eq!(message(packer.linear(&pool, &parts)), "tensor w: 5 numbers for a bias of 4 outputs");
    assert_eq!(message(packer.linear(&pool, &[])), "a linear layer needs a matrix");
    let parts = [(tensor(DType::F32, 0, 64), None)];
    assert_eq!(message(packer.linear(&pool, &parts)), "tensor w: 0×64 in a layer of 64 inputs");
    let (gate, up) = (tensor(DType::Q4_0, 4, 64), tensor(DType::Q4_0, 5, 64));
    assert_eq!(message(packer.gated(&pool, &gate, &up)), "tensor w: 5 outputs, but w has 4");

    let mut lying = tensor(DType::Q4_0, 4, 64);
    lying.cols = 48;
    let parts = [(lying.clone(), None)];
    assert_eq!(
        message(packer.linear(&pool, &parts)),
        "tensor w: 48 columns are not a whole number of Q4_0 blocks"
    );
    lying.cols = 96;
    let parts = [(lying, None)];
    assert_eq!(
        message(packer.linear(&pool, &parts)),
        "tensor w: 4×96 Q4_0 takes 216 bytes, the file has 144"
    );
}

#[test]
fn the_exponential_is_within_two_units_of_the_last_place() {
    let mut worst: f64 = 0.0;
    for i in -86_000..=86_000 {
        let x = i as f32 / 1000.0;
        let expected = f64::from(x).exp();
        worst = worst.max((f64::from(rows::exp(x)) - expected).abs() / expected);
    }
    assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
}
