//! Activations, gated and plain.

use half::bf16;
use volley_kernels::cuda::{
    Memory,
    ops::{Activate, Function, activate},
};

use super::Operation;
use crate::{Case, Output, Random, Speed, Trial, Work, unwritten};

/// An output is rounded to bf16 once: by 2⁻⁸ of it at most.
const TOLERANCE: f64 = 4e-3;
const FUNCTIONS: [Function; 3] = [Function::Silu, Function::GeluTanh, Function::GeluErf];

pub(super) fn operation() -> Operation {
    Operation {
        name: "activate",
        kernels: &[
            "silu_gated",
            "silu_plain",
            "gelu_tanh_gated",
            "gelu_tanh_plain",
            "gelu_erf_gated",
            "gelu_erf_plain",
        ],
        cases,
        any,
        speeds,
    }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for function in FUNCTIONS {
        for gated in [true, false] {
            cases.push(case(1, 8, function, gated));
            cases.push(case(3, 2056, function, gated));
        }
    }
    cases.extend((0..6).map(|_| any(random)));
    cases
}

fn any(random: &mut Random) -> Case {
    let (rows, columns) = (random.between(1, 6), 8 * random.between(1, 300));
    case(rows, columns, random.pick(&FUNCTIONS), random.between(0, 1) == 1)
}

fn case(rows: usize, columns: usize, function: Function, gated: bool) -> Case {
    let label = format!("{rows} × {columns}, {function:?}{}", if gated { ", gated" } else { "" });
    Case::small(label, move |random| {
        let x = random.bf16(rows * columns * if gated { 2 } else { 1 }, 3.0);
        let value = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            let f = |x: bf16| apply(function, x.to_f64());
            let [gate, up] = [2 * row * columns + column, (2 * row + 1) * columns + column];
            if gated { f(x[gate]) * x[up].to_f64() } else { f(x[i]) }
        };
        let out = (0..rows * columns).map(value).collect();
        Trial::new(move |device| {
            let x = Memory::from_slice(device, &x)?;
            let mut out = unwritten(device, rows * columns)?;
            let op = Activate { x: x.view(), out: out.view_mut(), rows, columns, function, gated };
            activate(&**device, &op)?;
            Ok(vec![Output::new("out", &out.read()?)])
        })
        .expect("out", out, TOLERANCE)
    })
}

fn apply(function: Function, x: f64) -> f64 {
    match function {
        Function::Silu => x / (1.0 + (-x).exp()),
        Function::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Function::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

/// The series of erf, whose terms only alternate in sign by x², to f64's precision for the |x| < 9 drawn here.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    // e^(−x²) · Σ 2^n x^(2n+1) / (2n+1)!!: all terms of one sign.
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while f64::abs(term) > 1e-18 * f64::abs(sum) && n < 500.0 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

fn speeds() -> Vec<Speed> {
    let (rows, columns) = (4096, 14336);
    FUNCTIONS
        .map(|function| {
            let work = Work::Bytes((6 * rows * columns) as f64);
            Speed::new(format!("{rows} × {columns}, {function:?}, gated"), work, 0.8, move |device| {
                let device = device.clone();
                let x = Memory::filled(&device, 2 * rows * columns, 0x3d)?;
                let mut out = Memory::<bf16>::new(&device, rows * columns)?;
                Ok(Box::new(move |_| {
                    let op =
                        Activate { x: x.view(), out: out.view_mut(), rows, columns, function, gated: true };
                    activate(&*device, &op)
                }))
            })
        })
        .into()
}
