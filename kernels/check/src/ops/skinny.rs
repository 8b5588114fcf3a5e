//! Matrix products for few tokens.

use std::sync::Arc;

use half::{bf16, f16};
use volley_kernels::{
    Error,
    cuda::{
        Device, GptqTensors, Memory, PackedFormat, PackedWeights,
        ops::{DeviceWeights, Skinny, SkinnyOut, SkinnyScratch, SkinnyWeights, dequantize, skinny},
    },
};

use super::Operation;
use crate::{Case, Output, Peer, Random, Speed, Trial, Work, unwritten};

/// An output is rounded to bf16 once: by 2⁻⁸ of it at most.
const TOLERANCE: f64 = 4e-3;
/// Sums in f32. Four-bit codes are summed with 128 added, which costs them a few bits.
const F32_TOLERANCE: f64 = 2e-5;

pub(super) fn operation() -> Operation {
    Operation {
        name: "skinny",
        kernels: &[
            "skinny_bf16_8",
            "skinny_bf16_16",
            "skinny_bf16_32",
            "skinny_bf16_64",
            "skinny_w8_8",
            "skinny_w8_16",
            "skinny_w8_32",
            "skinny_w8_64",
            "skinny_w8_grouped_8",
            "skinny_w8_grouped_16",
            "skinny_w8_grouped_32",
            "skinny_w8_grouped_64",
            "skinny_w4_8",
            "skinny_w4_16",
            "skinny_w4_32",
            "skinny_w4_64",
            "skinny_fp8_8",
            "skinny_fp8_16",
            "skinny_fp8_32",
            "skinny_fp8_64",
        ],
        cases,
        any,
        speeds,
    }
}

pub(super) fn dequantizing() -> Operation {
    Operation {
        name: "dequantize",
        kernels: &["dequantize_w8", "dequantize_w8_grouped", "dequantize_w4", "dequantize_fp8"],
        cases: |random| {
            let packed = KINDS.into_iter().filter(|&kind| kind != Kind::Bf16);
            packed.map(|kind| dequantized(kind, random.between(1, 80), 8 * random.between(1, 80))).collect()
        },
        any: |random| dequantized(random.pick(&KINDS[1..]), random.between(1, 80), 8 * random.between(1, 80)),
        speeds: || [Kind::Int8, Kind::Int4(32)].map(dequantizing_speed).into(),
    }
}

/// What weights are stored as; the number is a group's inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Bf16,
    Int8,
    Int8Grouped(usize),
    Int4(usize),
    E4m3,
}

const KINDS: [Kind; 8] = [
    Kind::Bf16,
    Kind::Int8,
    Kind::Int8Grouped(32),
    Kind::Int8Grouped(128),
    Kind::Int4(32),
    Kind::Int4(64),
    Kind::Int4(128),
    Kind::E4m3,
];

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        cases.push(case(kind, 1, 8, 128, random.between(0, 1) == 1));
        cases.push(case(kind, random.between(2, 8), random.between(60, 200), 520, false));
        cases.push(case(kind, random.between(9, 16), 72, 8 * random.between(8, 90), true));
        cases.push(case(kind, random.between(17, 32), 136, 704, false));
        cases.push(case(kind, random.between(33, 80), 136, 328, false));
        cases.push(case(kind, 2, 64, 2176, true)); // in eight splits
        cases.push(same_bits(kind));
        cases.push(product_of_a_product(kind));
    }
    cases
}

fn any(random: &mut Random) -> Case {
    let (kind, tokens) = (random.pick(&KINDS), random.between(1, 90));
    let (rows, eighths) = (random.between(1, 140), random.between(1, 80));
    case(kind, tokens, rows, 8 * eighths, random.between(0, 1) == 1)
}

/// Weights on the host: as a product reads them, and as numbers.
#[derive(Clone)]
pub(super) enum Weights {
    Bf16(Vec<bf16>),
    Packed(PackedWeights),
}

impl Weights {
    pub(super) fn new(random: &mut Random, kind: Kind, rows: usize, cols: usize) -> Result<Self, Error> {
        let codes: Vec<i8> = random.bytes(rows * cols).into_iter().map(|byte| byte as i8).collect();
        let mut scales = |n: usize| random.f32(n, 0.02);
        let packed = match kind {
            Kind::Bf16 => return Ok(Self::Bf16(random.bf16(rows * cols, 1.0))),
            Kind::Int8 => PackedWeights::from_int8(cols, &codes, &scales(rows), None),
            Kind::Int8Grouped(group) => {
                PackedWeights::from_int8(cols, &codes, &scales(rows * cols.div_ceil(group)), Some(group))
            }
            Kind::E4m3 => {
                let codes: Vec<u8> = codes.iter().map(|&code| code as u8 & 0xfe).collect();
                PackedWeights::from_e4m3(cols, &codes, &scales(rows))
            }
            Kind::Int4(group) => {
                let groups = cols / group;
                let words =
                    |random: &mut Random, n: usize| (0..n).map(|_| random.bits() as u32).collect::<Vec<_>>();
                let scales: Vec<f16> = scales(rows * groups).into_iter().map(f16::from_f32).collect();
                let tensors = GptqTensors {
                    qweight: &words(random, cols / 8 * rows),
                    qzeros: &words(random, groups * rows / 8),
                    scales: &scales,
                    g_idx: &[],
                    zero_bias: 1,
                };
                PackedWeights::from_gptq(rows, cols, group, tensors)
            }
        };
        packed.map(Self::Packed)
    }

    fn at(&self, row: usize, col: usize, cols: usize) -> f64 {
        match self {
            Self::Bf16(numbers) => numbers[row * cols + col].to_f64(),
            Self::Packed(packed) => packed.weight(row, col),
        }
    }

    fn upload(&self, device: &Arc<dyn Device>) -> Result<Uploaded, Error> {
        Ok(match self {
            Self::Bf16(numbers) => Uploaded::Bf16(Memory::from_slice(device, numbers)?),
            Self::Packed(packed) => Uploaded::Packed(DeviceWeights::new(device, packed)?),
        })
    }
}

/// Weights on the device.
enum Uploaded {
    Bf16(Memory<bf16>),
    Packed(DeviceWeights),
}

impl Uploaded {
    fn view(&self, cols: usize) -> SkinnyWeights<'_> {
        match self {
            Self::Bf16(numbers) => SkinnyWeights::Bf16 { numbers: numbers.view(), cols },
            Self::Packed(packed) => SkinnyWeights::Packed(packed),
        }
    }
}

/// Sizes that the kind can hold: four-bit tensors come in eights and whole groups.
fn sizes(kind: Kind, rows: usize, cols: usize) -> (usize, usize) {
    match kind {
        Kind::Int4(group) => (rows.next_multiple_of(8), cols.next_multiple_of(group)),
        _ => (rows, cols),
    }
}

/// Rows of x and of out lie further apart than they are long; `logits`: f32, and no bias.
fn case(kind: Kind, tokens: usize, rows: usize, cols: usize, logits: bool) -> Case {
    let (rows, cols) = sizes(kind, rows, cols);
    Case::small(format!("{kind:?}, {tokens} × {rows} × {cols}, logits {logits}"), move |random| {
        let weights = Weights::new(random, kind, rows, cols).unwrap_or_else(|error| panic!("{error}"));
        let (x_stride, out_stride) = (cols + 16, rows + 3);
        let x = random.bf16(tokens * x_stride, 1.0);
        let bias = (!logits).then(|| random.bf16(rows, 1.0));
        let mut out = Vec::new();
        for token in 0..tokens {
            for row in 0..rows {
                let sum: f64 =
                    (0..cols).map(|k| weights.at(row, k, cols) * x[token * x_stride + k].to_f64()).sum();
                out.push(sum + bias.as_ref().map_or(0.0, |bias| bias[row].to_f64()));
            }
        }
        Trial::new(move |device| {
            let (x, weights) = (Memory::from_slice(device, &x)?, weights.upload(device)?);
            let bias = bias.as_ref().map(|bias| Memory::from_slice(device, bias)).transpose()?;
            let mut scratch = SkinnyScratch::new(device, rows)?;
            let mut halves = unwritten::<bf16>(device, tokens * out_stride)?;
            let mut floats = unwritten::<f32>(device, tokens * out_stride)?;
            let mut op = Skinny {
                x: x.view(),
                x_stride,
                weights: weights.view(cols),
                bias: bias.as_ref().map(Memory::view),
                out: if logits {
                    SkinnyOut::F32(floats.view_mut())
                } else {
                    SkinnyOut::Bf16(halves.view_mut())
                },
                out_stride,
                tokens,
                scratch: &mut scratch,
            };
            // Twice: the scratch is left as it was found.
            skinny(&**device, &mut op)?;
            skinny(&**device, &mut op)?;
            let out: Vec<f32> = match logits {
                true => floats.read()?,
                false => halves.read()?.iter().map(|x| x.to_f32()).collect(),
            };
            let out: Vec<f32> = out.chunks(out_stride).flat_map(|token| &token[..rows]).copied().collect();
            Ok(vec![Output::new("out", &out)])
        })
        .expect("out", out, if logits { F32_TOLERANCE } else { TOLERANCE })
    })
}

/// Packed weights as bf16.
fn dequantized(kind: Kind, rows: usize, cols: usize) -> Case {
    let (rows, cols) = sizes(kind, rows, cols);
    Case::small(format!("{kind:?}, {rows} × {cols}"), move |random| {
        let weights = Weights::new(random, kind, rows, cols).unwrap_or_else(|error| panic!("{error}"));
        let out = (0..rows * cols).map(|i| weights.at(i / cols, i % cols, cols)).collect();
        Trial::new(move |device| {
            let mut out = unwritten::<bf16>(device, rows * cols)?;
            if let Uploaded::Packed(packed) = weights.upload(device)? {
                // In two slices, if they are many.
                let first = rows / 2 / 16 * 16;
                dequantize(&**device, &packed, 0..first, out.slice_mut(0..first * cols))?;
                dequantize(&**device, &packed, first..rows, out.slice_mut(first * cols..rows * cols))?;
            }
            Ok(vec![Output::new("out", &out.read()?)])
        })
        .expect("out", out, TOLERANCE)
    })
}

fn dequantizing_speed(kind: Kind) -> Speed {
    let (rows, cols) = MATRICES[2];
    let work = Work::Bytes(bytes(kind, rows, cols, 0) + (2 * rows * cols) as f64);
    Speed::new(format!("{kind:?}, {rows} × {cols}"), work, 0.8, move |device| {
        let (device, weights) = (device.clone(), blank(device, kind, rows, cols)?);
        let mut out = Memory::<bf16>::new(&device, rows * cols)?;
        Ok(Box::new(move |_| match &weights {
            Uploaded::Packed(packed) => dequantize(&*device, packed, 0..rows, out.view_mut()),
            Uploaded::Bf16(_) => Ok(()),
        }))
    })
}

/// A token's bits don't depend on how many others there are: alone, in every kernel, in several tiles and turns.
fn same_bits(kind: Kind) -> Case {
    let (rows, cols, tokens) = (72, 512, 75);
    Case::small(format!("{kind:?}, a token alone and among others"), move |random| {
        let weights = Weights::new(random, kind, rows, cols).unwrap_or_else(|error| panic!("{error}"));
        let x = random.bf16(tokens * cols, 1.0);
        Trial::new(move |device| {
            let (x, weights) = (Memory::from_slice(device, &x)?, weights.upload(device)?);
            let mut scratch = SkinnyScratch::new(device, rows)?;
            let mut outputs = Vec::new();
            for (name, range, which) in
                [("alone", 33..34, 0), ("12", 30..42, 3), ("25", 10..35, 23), ("75", 0..75, 33)]
            {
                let mut out = unwritten::<f32>(device, range.len() * rows)?;
                let mut op = Skinny {
                    x: x.view().slice(range.start * cols..range.end * cols),
                    x_stride: cols,
                    weights: weights.view(cols),
                    bias: None,
                    out: SkinnyOut::F32(out.view_mut()),
                    out_stride: rows,
                    tokens: range.len(),
                    scratch: &mut scratch,
                };
                skinny(&**device, &mut op)?;
                outputs.push(Output::new(name, &out.read()?[which * rows..(which + 1) * rows]));
            }
            Ok(outputs)
        })
        .same("alone", "12")
        .same("alone", "25")
        .same("alone", "75")
    })
}

/// A product may start before the one whose outputs it reads has ended: it gives the same as after its end.
fn product_of_a_product(kind: Kind) -> Case {
    let (size, tokens) = (256, 3);
    Case::small(format!("{kind:?}, a product of a product"), move |random| {
        let weights = Weights::new(random, kind, size, size).unwrap_or_else(|error| panic!("{error}"));
        let x = random.bf16(tokens * size, 1.0);
        Trial::new(move |device| {
            let (x, weights) = (Memory::from_slice(device, &x)?, weights.upload(device)?);
            let mut scratch = SkinnyScratch::new(device, size)?;
            let mut multiply = |x: &Memory<bf16>, out: &mut Memory<bf16>| {
                let mut op = Skinny {
                    x: x.view(),
                    x_stride: size,
                    weights: weights.view(size),
                    bias: None,
                    out: SkinnyOut::Bf16(out.view_mut()),
                    out_stride: size,
                    tokens,
                    scratch: &mut scratch,
                };
                skinny(&**device, &mut op)
            };
            let mut outputs = Vec::new();
            for name in ["at once", "one by one"] {
                let mut middle = unwritten::<bf16>(device, tokens * size)?;
                let mut out = unwritten::<bf16>(device, tokens * size)?;
                multiply(&x, &mut middle)?;
                if name == "one by one" {
                    device.synchronize()?;
                }
                multiply(&middle, &mut out)?;
                outputs.push(Output::new(name, &out.read()?));
            }
            Ok(outputs)
        })
        .same("at once", "one by one")
    })
}

/// The matrices of a Llama-3.1-8B layer: QKV, output, gate and up, down.
const MATRICES: [(usize, usize); 4] = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)];
/// So many layers are more than four times an L2 cache (of up to 60 MB), whatever the format.
const LAYERS: usize = 3;

fn speeds() -> Vec<Speed> {
    let mut speeds = Vec::new();
    for kind in [Kind::Bf16, Kind::Int8, Kind::Int8Grouped(128), Kind::Int4(32), Kind::Int4(128), Kind::E4m3]
    {
        speeds.extend([1, 8, 32, 64].map(|tokens| layer(kind, tokens)));
    }
    for (rows, cols) in MATRICES {
        speeds.push(matrix(rows, cols));
    }
    speeds
}

fn bytes(kind: Kind, rows: usize, cols: usize, tokens: usize) -> f64 {
    let weight = match kind {
        Kind::Bf16 => 2.0,
        Kind::Int8 | Kind::E4m3 => 1.0,
        Kind::Int8Grouped(group) => 1.0 + 4.0 / group as f64,
        Kind::Int4(group) => 0.5 + 4.0 / group as f64,
    };
    (rows * cols) as f64 * weight + (tokens * 2 * (rows + cols)) as f64
}

fn blank(device: &Arc<dyn Device>, kind: Kind, rows: usize, cols: usize) -> Result<Uploaded, Error> {
    let (format, group) = match kind {
        Kind::Bf16 => return Ok(Uploaded::Bf16(Memory::filled(device, rows * cols, 0x11)?)),
        Kind::Int8 => (PackedFormat::Int8, 0),
        Kind::E4m3 => (PackedFormat::E4m3, 0),
        Kind::Int8Grouped(group) => (PackedFormat::Int8Grouped, group),
        Kind::Int4(group) => (PackedFormat::Int4Grouped, group),
    };
    Ok(Uploaded::Packed(DeviceWeights::new(device, &PackedWeights::zeros(format, rows, cols, group)?)?))
}

/// A layer's matrices one after another, layers in turn.
fn layer(kind: Kind, tokens: usize) -> Speed {
    let work = MATRICES.iter().map(|&(rows, cols)| bytes(kind, rows, cols, tokens)).sum();
    products(format!("{kind:?}, {tokens} tokens, an 8B layer"), work, kind, tokens, MATRICES.to_vec(), LAYERS)
}

/// One bf16 matrix for one token, beside cublasLt.
fn matrix(rows: usize, cols: usize) -> Speed {
    let copies = (256 << 20) / (2 * rows * cols) + 1;
    let work = bytes(Kind::Bf16, rows, cols, 1);
    products(format!("Bf16, 1 × {rows} × {cols}"), work, Kind::Bf16, 1, vec![(rows, cols)], copies)
        .beside(Peer::MatMul { m: 1, n: rows, k: cols })
}

fn products(
    label: String,
    work: f64,
    kind: Kind,
    tokens: usize,
    shapes: Vec<(usize, usize)>,
    copies: usize,
) -> Speed {
    // For 64 tokens the tensor cores take about as long as the weights do: timed for the choice of a kernel only.
    let goal = if tokens <= 32 { 0.85 } else { 0.0 };
    Speed::new(label, Work::Bytes(work), goal, move |device| {
        let (device, shapes) = (device.clone(), shapes.clone());
        let mut matrices = Vec::new();
        for &(rows, cols) in shapes.iter().cycle().take(copies * shapes.len()) {
            matrices.push((blank(&device, kind, rows, cols)?, rows, cols));
        }
        let most_rows = shapes.iter().map(|shape| shape.0).max().unwrap_or(0);
        let most_cols = shapes.iter().map(|shape| shape.1).max().unwrap_or(0);
        let mut scratch = SkinnyScratch::new(&device, most_rows)?;
        let x = Memory::<bf16>::filled(&device, tokens * most_cols, 0x3d)?;
        let mut out = Memory::<bf16>::new(&device, tokens * most_rows)?;
        Ok(Box::new(move |i| {
            for (weights, rows, cols) in &matrices[i % copies * shapes.len()..][..shapes.len()] {
                let mut out = out.view_mut();
                let mut op = Skinny {
                    x: x.view().slice(0..tokens * cols),
                    x_stride: *cols,
                    weights: weights.view(*cols),
                    bias: None,
                    out: SkinnyOut::Bf16(out.slice(0..tokens * rows)),
                    out_stride: *rows,
                    tokens,
                    scratch: &mut scratch,
                };
                skinny(&*device, &mut op)?;
            }
            Ok(())
        }))
    })
}
