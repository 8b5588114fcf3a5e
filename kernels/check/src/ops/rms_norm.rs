//! RMS norm with the residual added first.

use half::bf16;
use volley_kernels::cuda::{
    Memory,
    ops::{RmsNorm, RmsNormWithin, rms_norm, rms_norm_within},
};

use super::Operation;
use crate::{Case, Output, Random, Speed, Trial, Work, unwritten};

const EPSILON: f32 = 1e-5;
/// An output is rounded to bf16 once: by 2⁻⁸ of it at most.
const TOLERANCE: f64 = 4e-3;

pub(super) fn operation() -> Operation {
    Operation {
        name: "rms_norm",
        kernels: &["rms_norm_1", "rms_norm_2", "rms_norm_4", "rms_norm_8"],
        cases,
        any,
        speeds,
    }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, columns) in [(1, 8), (3, 576), (5, 2048), (2, 4096), (2, 8192), (1, 16384)] {
        cases.push(case(rows, columns, true));
        cases.push(case(rows, columns, false));
    }
    cases.extend((0..6).map(|_| any(random)));
    cases.push(alone_and_among_others(4096));
    cases.push(within(3, 40, 24, 8));
    cases.push(within(2, 5120, 4096, 512));
    cases
}

fn any(random: &mut Random) -> Case {
    case(random.between(1, 9), 8 * random.between(1, 600), random.between(0, 1) == 1)
}

fn case(rows: usize, columns: usize, residual: bool) -> Case {
    let label = format!("{rows} × {columns}{}", if residual { ", residual" } else { "" });
    Case::small(label, move |random| trial(random, rows, columns, residual))
}

/// Some columns of wider rows, where they stand; the others stay.
fn within(rows: usize, stride: usize, columns: usize, first: usize) -> Case {
    Case::small(format!("{columns} of {rows} × {stride}"), move |random| {
        let (x, gain) = (random.bf16(rows * stride, 2.0), random.bf16(columns, 1.0));
        let mut expected: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        for (row, numbers) in expected.chunks_mut(stride).enumerate() {
            let (_, normed) = reference(&x[row * stride + first..][..columns], None, &gain);
            numbers[first..first + columns].copy_from_slice(&normed);
        }
        Trial::new(move |device| {
            let (mut all, gain) = (Memory::from_slice(device, &x)?, Memory::from_slice(device, &gain)?);
            let x = all.slice_mut(first..(rows - 1) * stride + first + columns);
            let op = RmsNormWithin { x, stride, gain: gain.view(), rows, epsilon: EPSILON };
            rms_norm_within(&**device, &op)?;
            Ok(vec![Output::new("out", &all.read()?)])
        })
        .expect("out", expected, TOLERANCE)
    })
}

fn trial(random: &mut Random, rows: usize, columns: usize, residual: bool) -> Trial {
    let x = random.bf16(rows * columns, 2.0);
    let past = residual.then(|| random.bf16(rows * columns, 2.0));
    let gain = random.bf16(columns, 1.0);
    let (sum, out) = reference(&x, past.as_deref(), &gain);
    let trial = Trial::new(move |device| {
        let (x, gain) = (Memory::from_slice(device, &x)?, Memory::from_slice(device, &gain)?);
        let mut past = past.as_ref().map(|past| Memory::from_slice(device, past)).transpose()?;
        let mut out = unwritten(device, rows * columns)?;
        rms_norm(
            &**device,
            &RmsNorm {
                x: x.view(),
                residual: past.as_mut().map(Memory::view_mut),
                gain: gain.view(),
                out: out.view_mut(),
                rows,
                columns,
                epsilon: EPSILON,
            },
        )?;
        let mut outputs = vec![Output::new("out", &out.read()?)];
        if let Some(past) = past {
            outputs.push(Output::new("residual", &past.read()?));
        }
        Ok(outputs)
    })
    .expect("out", out, TOLERANCE);
    if residual { trial.expect("residual", sum, 0.0) } else { trial }
}

/// The sums as they are kept, and the outputs.
fn reference(x: &[bf16], past: Option<&[bf16]>, gain: &[bf16]) -> (Vec<f64>, Vec<f64>) {
    let sum: Vec<f64> = match past {
        // An f32 sum of two bf16 and one rounding, as the kernel does it: those bits are exact.
        Some(past) => {
            x.iter().zip(past).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32()).to_f64()).collect()
        }
        None => x.iter().map(|a| a.to_f64()).collect(),
    };
    let mut out = Vec::with_capacity(x.len());
    for row in sum.chunks(gain.len()) {
        let mean = row.iter().map(|h| h * h).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
        out.extend(row.iter().zip(gain).map(|(h, g)| h * scale * g.to_f64()));
    }
    (sum, out)
}

/// A row's bits don't depend on the rows beside it.
fn alone_and_among_others(columns: usize) -> Case {
    Case::small(format!("a row of {columns} alone and among 7"), move |random| {
        let (x, gain) = (random.bf16(7 * columns, 2.0), random.bf16(columns, 1.0));
        Trial::new(move |device| {
            let (x, gain) = (Memory::from_slice(device, &x)?, Memory::from_slice(device, &gain)?);
            let row = 4 * columns..5 * columns;
            let mut outputs = Vec::new();
            for (name, x, rows) in [("among", x.view(), 7), ("alone", x.view().slice(row.clone()), 1)] {
                let mut out = unwritten(device, rows * columns)?;
                let norm = RmsNorm {
                    x,
                    residual: None,
                    gain: gain.view(),
                    out: out.view_mut(),
                    rows,
                    columns,
                    epsilon: EPSILON,
                };
                rms_norm(&**device, &norm)?;
                let out = out.read()?;
                outputs.push(Output::new(name, if rows == 1 { &out } else { &out[row.clone()] }));
            }
            Ok(outputs)
        })
        .same("alone", "among")
    })
}

fn speeds() -> Vec<Speed> {
    [(64, 4096), (8192, 4096)].map(|(rows, columns)| speed(rows, columns)).into()
}

/// x and residual are read, residual and out written; a set of 8192 rows is larger than L2.
fn speed(rows: usize, columns: usize) -> Speed {
    let bytes = 4 * rows * columns * size_of::<bf16>();
    // The goal is for sizes that fill the device; a decode step's norm is a few microseconds of latency.
    let goal = if rows >= 4096 { 0.8 } else { 0.0 };
    Speed::new(format!("{rows} × {columns}, residual"), Work::Bytes(bytes as f64), goal, move |device| {
        let device = device.clone();
        let mut random = Random::new(1);
        let x = Memory::from_slice(&device, &random.bf16(rows * columns, 1.0))?;
        let gain = Memory::from_slice(&device, &random.bf16(columns, 1.0))?;
        let mut past = Memory::from_slice(&device, &random.bf16(rows * columns, 1.0))?;
        let mut out = Memory::<bf16>::new(&device, rows * columns)?;
        Ok(Box::new(move |_| {
            let norm = RmsNorm {
                x: x.view(),
                residual: Some(past.view_mut()),
                gain: gain.view(),
                out: out.view_mut(),
                rows,
                columns,
                epsilon: EPSILON,
            };
            rms_norm(&*device, &norm)
        }))
    })
}
