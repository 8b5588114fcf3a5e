//! Products of activations and weights.

use half::bf16;
use volley_kernels::{
    Error,
    cuda::{
        Device, Memory,
        ops::{Factors, Gemm, gemm},
    },
};

use super::Operation;
use crate::{Case, Output, Peer, Random, Speed, Trial, Work, unwritten};

/// f32 sums; an output in bf16 is rounded once more.
const TOLERANCE: f64 = 1e-4;
const ROUNDED: f64 = 3e-3;
/// Hopper's tensor cores keep about 14 bits of a sum of e4m3 products.
const E4M3: f64 = 2e-3;

pub(super) fn operation() -> Operation {
    Operation {
        name: "gemm",
        kernels: &[
            "gemm_bf16_128x128",
            "gemm_bf16_64x64",
            "gemm_bf16_16x32",
            "gemm_bf16_sm90_128x128",
            "gemm_bf16_sm90_128x256",
            "gemm_e4m3_sm90_128x128",
            "gemm_e4m3_sm90_128x256",
        ],
        cases,
        any,
        speeds,
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    e4m3: bool,
    /// Bias, and what c holds before.
    extras: bool,
    invariant: bool,
}

/// The operands, on the host.
struct Operands {
    shape: Shape,
    stride: usize,
    a: Vec<bf16>,
    b: Vec<bf16>,
    a_bytes: Vec<u8>,
    b_bytes: Vec<u8>,
    a_scales: Vec<f32>,
    b_scales: Vec<f32>,
    bias: Vec<bf16>,
    c: Vec<f32>,
}

fn cases(random: &mut Random) -> Vec<Case> {
    let plain = |m, n, k| Shape { m, n, k, e4m3: false, extras: true, invariant: false };
    let mut cases = vec![
        case(plain(1, 40, 8)),
        case(plain(5, 33, 264)),
        case(plain(70, 99, 72)),
        case(plain(65, 136, 104)),
        case(plain(200, 264, 136)),
        case(plain(300, 520, 80)),
        case(Shape { invariant: true, ..plain(130, 264, 48) }),
        // More steps than stages.
        case(Shape { extras: false, ..plain(129, 264, 648) }),
        case(Shape { extras: false, ..plain(70, 40, 1032) }),
    ];
    for shape in [plain(3, 72, 144), plain(150, 136, 272), plain(260, 520, 128)] {
        cases.push(hopper_case(Shape { e4m3: true, ..shape }));
        cases.push(hopper_case(Shape { e4m3: true, extras: false, ..shape }));
    }
    for _ in 0..4 {
        cases.push(any(random));
        let (m, n, k) = (random.between(1, 1500), random.between(1, 2000), 8 * random.between(1, 500));
        let large = plain(m, n, k);
        cases.push(Case::large(format!("{large:?}"), move |random| trial(random, large)));
    }
    cases.push(one_row_in_any_batch());
    cases.push(columns_of_a_wider_matrix());
    cases
}

fn any(random: &mut Random) -> Case {
    let (m, n, k) = (random.between(1, 150), random.between(1, 150), 8 * random.between(1, 20));
    let (extras, invariant) = (random.between(0, 1) == 1, random.between(0, 1) == 1);
    case(Shape { m, n, k, e4m3: false, extras, invariant })
}

fn case(shape: Shape) -> Case {
    Case::small(format!("{shape:?}"), move |random| trial(random, shape)).on(&[80, 90])
}

fn hopper_case(shape: Shape) -> Case {
    Case::small(format!("{shape:?}"), move |random| trial(random, shape))
}

fn trial(random: &mut Random, shape: Shape) -> Trial {
    let operands = Operands::new(random, shape);
    let expected = operands.reference();
    let tolerance = if shape.e4m3 { E4M3 } else { TOLERANCE };
    Trial::new(move |device| {
        Ok(vec![
            Output::new("f32", &operands.run::<f32>(&**device, device, shape.n, |c| c)?),
            Output::new("bf16", &operands.run::<bf16>(&**device, device, shape.n, bf16::from_f32)?),
        ])
    })
    .expect("f32", expected.clone(), tolerance)
    .expect("bf16", expected, ROUNDED + tolerance)
}

/// Row 2 of some has the bits that it has alone, whichever tile is chosen for their number.
fn one_row_in_any_batch() -> Case {
    Case::small("a row alone and among others", |random| {
        let shape = Shape { m: 200, n: 264, k: 136, e4m3: false, extras: true, invariant: true };
        let all = Operands::new(random, shape);
        Trial::new(move |device| {
            let mut outputs = Vec::new();
            for (name, m) in [("alone", 1), ("among 20", 20), ("among 200", 200)] {
                let first = if m == 1 { 2 } else { 0 };
                let part = all.rows(first, m);
                let out = part.run::<f32>(&**device, device, shape.n, |c| c)?;
                outputs.push(Output::new(name, &out[(2 - first) * shape.n..][..shape.n]));
            }
            Ok(outputs)
        })
        .same("alone", "among 20")
        .same("alone", "among 200")
    })
    .on(&[80, 90])
}

/// A product of some rows of b after the other gives the bits that it gives at once.
fn columns_of_a_wider_matrix() -> Case {
    Case::small("in slices of b", |random| {
        let shape = Shape { m: 150, n: 328, k: 136, e4m3: false, extras: true, invariant: false };
        let all = Operands::new(random, shape);
        Trial::new(move |device| {
            let run = |slice| all.run::<f32>(&**device, device, slice, |c| c);
            Ok(vec![Output::new("at once", &run(shape.n)?), Output::new("in slices", &run(128)?)])
        })
        .same("at once", "in slices")
    })
    .on(&[80, 90])
}

// === impl Operands ===

impl Operands {
    fn new(random: &mut Random, shape: Shape) -> Self {
        let Shape { m, n, k, .. } = shape;
        let stride = k + 16;
        let mut bytes = |len| (0..len).map(|_| (random.bits() & 0xbf) as u8).collect();
        let (a_bytes, b_bytes) = (bytes(m * stride), bytes(n * k));
        Self {
            shape,
            stride,
            a: random.bf16(m * stride, 1.0),
            b: random.bf16(n * k, 1.0),
            a_bytes,
            b_bytes,
            a_scales: (0..m).map(|_| 0.1 + random.uniform() as f32).collect(),
            b_scales: (0..n).map(|_| 0.1 + random.uniform() as f32).collect(),
            bias: random.bf16(n, 1.0),
            c: random.bf16(m * n, 1.0).iter().map(|c| c.to_f32()).collect(),
        }
    }

    fn rows(&self, first: usize, m: usize) -> Self {
        let Shape { n, .. } = self.shape;
        Self {
            shape: Shape { m, ..self.shape },
            stride: self.stride,
            a: self.a[first * self.stride..(first + m) * self.stride].to_vec(),
            b: self.b.clone(),
            a_bytes: Vec::new(),
            b_bytes: Vec::new(),
            a_scales: Vec::new(),
            b_scales: Vec::new(),
            bias: self.bias.clone(),
            c: self.c[first * n..(first + m) * n].to_vec(),
        }
    }

    fn run<C: volley_kernels::cuda::ops::GemmOutput>(
        &self,
        device: &dyn Device,
        shared: &std::sync::Arc<dyn Device>,
        slice: usize,
        from: impl Fn(f32) -> C,
    ) -> Result<Vec<C>, Error> {
        let Shape { m, n, k, e4m3, extras, invariant } = self.shape;
        let (a, b) = (Memory::from_slice(shared, &self.a)?, Memory::from_slice(shared, &self.b)?);
        let (a_bytes, b_bytes) =
            (Memory::from_slice(shared, &self.a_bytes)?, Memory::from_slice(shared, &self.b_bytes)?);
        let (a_scales, b_scales) =
            (Memory::from_slice(shared, &self.a_scales)?, Memory::from_slice(shared, &self.b_scales)?);
        let bias = Memory::from_slice(shared, &self.bias)?;
        let mut c = unwritten(shared, m * n)?;
        if extras {
            c.write(&self.c.iter().map(|&c| from(c)).collect::<Vec<_>>())?;
        }
        for first in (0..n).step_by(slice) {
            let (n, c_stride) = (slice.min(n - first), n);
            let rows = first * k..(first + n) * k;
            let factors = if e4m3 {
                Factors::E4m3 {
                    a: a_bytes.view(),
                    b: b_bytes.slice(rows),
                    a_scales: a_scales.view(),
                    b_scales: b_scales.slice(first..first + n),
                }
            } else {
                Factors::Bf16 { a: a.view(), b: b.slice(rows) }
            };
            let op = Gemm {
                factors,
                bias: extras.then(|| bias.slice(first..first + n)),
                add: extras,
                c: c.slice_mut(first..first + (m - 1) * c_stride + n),
                c_stride,
                m,
                n,
                k,
                a_stride: self.stride,
                invariant,
            };
            gemm(device, &op)?;
        }
        c.read()
    }

    fn reference(&self) -> Vec<f64> {
        let Shape { m, n, k, e4m3, extras, .. } = self.shape;
        let wide = |bytes: &[u8], words: &[bf16]| -> Vec<f64> {
            if e4m3 {
                bytes.iter().map(|&b| super::e4m3(b)).collect()
            } else {
                words.iter().map(|w| w.to_f64()).collect()
            }
        };
        let (a, b) = (wide(&self.a_bytes, &self.a), wide(&self.b_bytes, &self.b));
        let mut out = Vec::with_capacity(m * n);
        for i in 0..m {
            for j in 0..n {
                let mut sum = super::dot(&a[i * self.stride..][..k], &b[j * k..][..k]);
                if e4m3 {
                    sum *= f64::from(self.a_scales[i]) * f64::from(self.b_scales[j]);
                }
                if extras {
                    sum += self.bias[j].to_f64() + f64::from(self.c[i * n + j]);
                }
                out.push(sum);
            }
        }
        out
    }
}

// --- Timings

fn speeds() -> Vec<Speed> {
    vec![
        speed(8192, 8192, 8192, false, false, 0.75),
        speed(8192, 8192, 8192, true, false, 1.2),
        speed(8192, 8192, 8192, false, true, 0.0),
        // Beside the packed products of these shapes.
        speed(256, 14336, 4096, false, false, 0.0),
        speed(4096, 14336, 4096, false, false, 0.0),
    ]
}

fn speed(m: usize, n: usize, k: usize, e4m3: bool, invariant: bool, goal: f64) -> Speed {
    let kind = if e4m3 { ", e4m3" } else { "" };
    let mode = if invariant { ", batch-invariant" } else { "" };
    let operations = 2.0 * m as f64 * n as f64 * k as f64;
    Speed::new(format!("{m} × {n} × {k}{kind}{mode}"), Work::Operations(operations), goal, move |device| {
        let device = device.clone();
        // Random bits cost more power, and so clock, than zeros: as real weights do.
        let block = Random::new(1).bf16(1 << 20, 1.0);
        let some = |len| block.iter().copied().cycle().take(len).collect::<Vec<bf16>>();
        let (a, b) = (Memory::from_slice(&device, &some(m * k))?, Memory::from_slice(&device, &some(n * k))?);
        let a_scales = Memory::from_slice(&device, &vec![1.0f32; m])?;
        let b_scales = Memory::from_slice(&device, &vec![1.0f32; n])?;
        let mut c = Memory::<bf16>::new(&device, m * n)?;
        Ok(Box::new(move |_| {
            let factors = if e4m3 {
                Factors::E4m3 {
                    a: a.view().cast().slice(0..m * k),
                    b: b.view().cast().slice(0..n * k),
                    a_scales: a_scales.view(),
                    b_scales: b_scales.view(),
                }
            } else {
                Factors::Bf16 { a: a.view(), b: b.view() }
            };
            let c = c.view_mut();
            let (bias, add, a_stride, c_stride) = (None, false, k, n);
            gemm(&*device, &Gemm { factors, bias, add, c, c_stride, m, n, k, a_stride, invariant })
        }))
    })
    .beside(Peer::MatMul { m, n, k })
    .steps(8)
}
