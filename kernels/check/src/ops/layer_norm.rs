//! Layer norm with the residual added first.

use half::bf16;
use volley_kernels::cuda::{
    Memory,
    ops::{LayerNorm, layer_norm},
};

use super::Operation;
use crate::{Case, Output, Random, Speed, Trial, Work, unwritten};

const EPSILON: f32 = 1e-5;
/// An output is rounded to bf16 once: by 2⁻⁸ of it at most.
const TOLERANCE: f64 = 4e-3;

pub(super) fn operation() -> Operation {
    Operation {
        name: "layer_norm",
        kernels: &["layer_norm_1", "layer_norm_2", "layer_norm_4", "layer_norm_8"],
        cases,
        any,
        speeds,
    }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, columns) in [(1, 8), (3, 768), (2, 4096), (2, 8192), (1, 16384)] {
        cases.push(case(rows, columns, true, 0.0));
        cases.push(case(rows, columns, false, 30.0));
    }
    cases.extend((0..5).map(|_| any(random)));
    cases
}

fn any(random: &mut Random) -> Case {
    case(random.between(1, 9), 8 * random.between(1, 600), random.between(0, 1) == 1, 0.0)
}

/// Numbers around `mean`: a large one must not cost the variance its precision.
fn case(rows: usize, columns: usize, whole: bool, mean: f64) -> Case {
    let label = format!("{rows} × {columns} around {mean}{}", if whole { ", residual and bias" } else { "" });
    Case::small(label, move |random| {
        let x: Vec<bf16> =
            random.f32(rows * columns, 2.0).iter().map(|x| bf16::from_f64(f64::from(*x) + mean)).collect();
        let past = whole.then(|| random.bf16(rows * columns, 2.0));
        let (gain, bias) = (random.bf16(columns, 1.0), whole.then(|| random.bf16(columns, 1.0)));
        let (sum, out) = reference(&x, past.as_deref(), &gain, bias.as_deref());
        let trial = Trial::new(move |device| {
            let (x, gain) = (Memory::from_slice(device, &x)?, Memory::from_slice(device, &gain)?);
            let mut past = past.as_ref().map(|past| Memory::from_slice(device, past)).transpose()?;
            let bias = bias.as_ref().map(|bias| Memory::from_slice(device, bias)).transpose()?;
            let mut out = unwritten(device, rows * columns)?;
            let op = LayerNorm {
                x: x.view(),
                residual: past.as_mut().map(Memory::view_mut),
                gain: gain.view(),
                bias: bias.as_ref().map(Memory::view),
                out: out.view_mut(),
                rows,
                columns,
                epsilon: EPSILON,
            };
            layer_norm(&**device, &op)?;
            let mut outputs = vec![Output::new("out", &out.read()?)];
            if let Some(past) = past {
                outputs.push(Output::new("residual", &past.read()?));
            }
            Ok(outputs)
        })
        .expect("out", out, TOLERANCE);
        if whole { trial.expect("residual", sum, 0.0) } else { trial }
    })
}

/// The sums as they are kept, and the outputs.
fn reference(
    x: &[bf16],
    past: Option<&[bf16]>,
    gain: &[bf16],
    bias: Option<&[bf16]>,
) -> (Vec<f64>, Vec<f64>) {
    let sum: Vec<f64> = match past {
        Some(past) => {
            x.iter().zip(past).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32()).to_f64()).collect()
        }
        None => x.iter().map(|a| a.to_f64()).collect(),
    };
    let columns = gain.len();
    let mut out = Vec::with_capacity(x.len());
    for row in sum.chunks(columns) {
        let mean = row.iter().sum::<f64>() / columns as f64;
        let variance = row.iter().map(|h| (h - mean) * (h - mean)).sum::<f64>() / columns as f64;
        let scale = 1.0 / (variance + f64::from(EPSILON)).sqrt();
        for (i, h) in row.iter().enumerate() {
            out.push((h - mean) * scale * gain[i].to_f64() + bias.map_or(0.0, |bias| bias[i].to_f64()));
        }
    }
    (sum, out)
}

fn speeds() -> Vec<Speed> {
    let (rows, columns) = (8192, 4096);
    let bytes = 4 * rows * columns * size_of::<bf16>();
    vec![Speed::new(format!("{rows} × {columns}, residual"), Work::Bytes(bytes as f64), 0.8, move |device| {
        let device = device.clone();
        let x = Memory::filled(&device, rows * columns, 0x11)?;
        let gain = Memory::filled(&device, columns, 0x3f)?;
        let mut past = Memory::filled(&device, rows * columns, 0x12)?;
        let mut out = Memory::<bf16>::new(&device, rows * columns)?;
        Ok(Box::new(move |_| {
            let op = LayerNorm {
                x: x.view(),
                residual: Some(past.view_mut()),
                gain: gain.view(),
                bias: None,
                out: out.view_mut(),
                rows,
                columns,
                epsilon: EPSILON,
            };
            layer_norm(&*device, &op)
        }))
    })]
}
