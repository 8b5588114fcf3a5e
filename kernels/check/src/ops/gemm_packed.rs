//! Products of many tokens and packed weights.

use std::sync::Arc;

use half::bf16;
use volley_kernels::{
    Error,
    cuda::{
        Device, Memory, PackedWeights,
        ops::{DeviceWeights, GemmOutput, PackedGemm, gemm_packed},
    },
};

use super::{
    Operation,
    skinny::{Kind, Weights},
};
use crate::{Case, Output, Peer, Random, Speed, Trial, Work, unwritten};

/// Scales of rows come after the sums: f32 all the way.
const EXACT: f64 = 1e-4;
/// A weight with a group's scale, or an output, is rounded to bf16.
const ROUNDED: f64 = 3e-3;
const KINDS: [Kind; 6] =
    [Kind::Int8, Kind::Int8Grouped(32), Kind::Int8Grouped(128), Kind::Int4(32), Kind::Int4(128), Kind::E4m3];

pub(super) fn operation() -> Operation {
    Operation {
        name: "gemm_packed",
        kernels: &[
            "gemm_w8_sm90_128x128",
            "gemm_w8_sm90_256x128",
            "gemm_w8_grouped_sm90_128x128",
            "gemm_w8_grouped_sm90_256x128",
            "gemm_w4_grouped_sm90_128x128",
            "gemm_w4_grouped_sm90_256x128",
            "gemm_fp8_sm90_128x128",
            "gemm_fp8_sm90_256x128",
        ],
        cases,
        any,
        speeds,
    }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        // More steps than stages, and an odd number of them where groups allow it.
        let k = if kind == Kind::Int4(128) { 1152 } else { 1088 };
        cases.push(case(kind, random.between(1, 60), 136, k, true));
        cases.push(case(kind, 300, 264, 128, false));
        cases.push(any(random));
        cases.push(large(
            kind,
            random.between(64, 900),
            8 * random.between(60, 200),
            128 * random.between(4, 20),
        ));
    }
    cases
}

fn any(random: &mut Random) -> Case {
    let (kind, m, n) = (random.pick(&KINDS), random.between(1, 140), 8 * random.between(1, 20));
    let k = match kind {
        Kind::Int4(group) => group * random.between(1, 512 / group),
        _ => 8 * random.between(1, 64),
    };
    case(kind, m, n, k, random.between(0, 1) == 1)
}

fn case(kind: Kind, m: usize, n: usize, k: usize, extras: bool) -> Case {
    Case::small(format!("{kind:?}, {m} × {n} × {k}"), move |random| trial(random, kind, (m, n, k), extras))
}

fn large(kind: Kind, m: usize, n: usize, k: usize) -> Case {
    Case::large(format!("{kind:?}, {m} × {n} × {k}"), move |random| trial(random, kind, (m, n, k), true))
}

/// `extras`: a bias, and what c holds.
fn trial(random: &mut Random, kind: Kind, (m, n, k): (usize, usize, usize), extras: bool) -> Trial {
    let packed = match Weights::new(random, kind, n, k) {
        Ok(Weights::Packed(packed)) => packed,
        other => unreachable!("{kind:?} is packed: {:?}", other.err()),
    };
    let stride = k + 16;
    let a = random.bf16(m * stride, 1.0);
    let (bias, before) = (random.bf16(n, 1.0), random.bf16(m * n, 1.0));
    let weights: Vec<f64> = (0..n * k).map(|i| packed.weight(i / k, i % k)).collect();
    let inputs: Vec<f64> = a.iter().map(|x| x.to_f64()).collect();
    let mut expected = Vec::with_capacity(m * n);
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let sum = super::dot(&inputs[i * stride..][..k], &weights[j * k..][..k]);
        expected.push(sum + if extras { bias[j].to_f64() + before[i * n + j].to_f64() } else { 0.0 });
    }
    let tolerance = if matches!(kind, Kind::Int8 | Kind::E4m3) { EXACT } else { ROUNDED };
    Trial::new(move |device| {
        let run = Run { device, a: &a, stride, packed: &packed, bias: extras.then_some(&bias), m };
        let floats = extras.then(|| before.iter().map(|x| x.to_f32()).collect());
        let f32 = run.product::<f32>(floats)?;
        let bf16 = run.product(extras.then(|| before.clone()))?;
        Ok(vec![Output::new("f32", &f32), Output::new("bf16", &bf16)])
    })
    .expect("f32", expected.clone(), tolerance)
    .expect("bf16", expected, ROUNDED + tolerance)
}

struct Run<'a> {
    device: &'a Arc<dyn Device>,
    a: &'a [bf16],
    stride: usize,
    packed: &'a PackedWeights,
    bias: Option<&'a Vec<bf16>>,
    m: usize,
}

impl Run<'_> {
    fn product<C: GemmOutput>(&self, before: Option<Vec<C>>) -> Result<Vec<C>, Error> {
        let (a, weights) =
            (Memory::from_slice(self.device, self.a)?, DeviceWeights::new(self.device, self.packed)?);
        let bias = self.bias.map(|bias| Memory::from_slice(self.device, bias)).transpose()?;
        let mut c = unwritten(self.device, self.m * self.packed.rows())?;
        if let Some(before) = &before {
            c.write(before)?;
        }
        let op = PackedGemm {
            a: a.view(),
            a_stride: self.stride,
            weights: &weights,
            bias: bias.as_ref().map(Memory::view),
            add: before.is_some(),
            c: c.view_mut(),
            m: self.m,
        };
        gemm_packed(&**self.device, &op)?;
        c.read()
    }
}

// --- Timings

/// Held against the rate of bf16 products: within a tenth of those is the goal, which are to reach three quarters.
fn speeds() -> Vec<Speed> {
    let (n, k) = (14336, 4096);
    [(Kind::Int8, 256), (Kind::Int8, 4096), (Kind::Int4(128), 4096), (Kind::E4m3, 4096)]
        .map(|(kind, m)| speed(kind, m, n, k, if m >= 4096 { 0.67 } else { 0.0 }))
        .into()
}

fn speed(kind: Kind, m: usize, n: usize, k: usize, goal: f64) -> Speed {
    let operations = 2.0 * m as f64 * n as f64 * k as f64;
    Speed::new(format!("{kind:?}, {m} × {n} × {k}"), Work::Operations(operations), goal, move |device| {
        let device = device.clone();
        let mut random = Random::new(1);
        let Weights::Packed(packed) = Weights::new(&mut random, kind, n, k)? else {
            return Err(Error::Unsupported(format!("{kind:?} is not packed")));
        };
        let weights = DeviceWeights::new(&device, &packed)?;
        let a = Memory::from_slice(&device, &random.bf16(m * k, 1.0))?;
        let mut c = Memory::<bf16>::new(&device, m * n)?;
        Ok(Box::new(move |_| {
            let (a, c) = (a.view(), c.view_mut());
            gemm_packed(
                &*device,
                &PackedGemm { a, a_stride: k, weights: &weights, bias: None, add: false, c, m },
            )
        }))
    })
    .beside(Peer::MatMul { m, n, k })
}
