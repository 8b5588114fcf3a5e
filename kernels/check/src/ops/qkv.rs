//! Bias, head norms, rotary positions and the KV write.

use half::bf16;
use volley_kernels::{
    RopePairing,
    cuda::{
        Memory,
        ops::{HeadNorms, KvCache, KvNumbers, QkvStore, Queries, qkv_store},
    },
};

use super::{Operation, e4m3};
use crate::{Case, Output, Random, Speed, Trial, Work, unwritten};

/// An output is rounded to bf16 once: by 2⁻⁸ of it at most.
const TOLERANCE: f64 = 4e-3;
/// … or to three bits of fraction: by 2⁻⁴ of it.
const E4M3_TOLERANCE: f64 = 0.0625;
const EPSILON: f32 = 1e-6;
const MAGNITUDE: f32 = 1.25;
const K_SCALE: f32 = 0.05;
const V_SCALE: f32 = 0.25;

pub(super) fn operation() -> Operation {
    Operation { name: "qkv_store", kernels: &["qkv_store_bf16", "qkv_store_e4m3"], cases, any, speeds }
}

/// What varies.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Dimensions that turn.
    turned: usize,
    adjacent: bool,
    page_tokens: usize,
    /// Bias and head norms.
    extras: bool,
    fp8: bool,
}

fn cases(random: &mut Random) -> Vec<Case> {
    let plain = Shape {
        rows: 5,
        heads: 8,
        kv_heads: 2,
        dim: 128,
        turned: 128,
        adjacent: false,
        page_tokens: 16,
        extras: false,
        fp8: false,
    };
    let mut shapes = vec![
        plain,
        Shape { adjacent: true, extras: true, ..plain },
        Shape { fp8: true, extras: true, ..plain },
        Shape { rows: 19, heads: 9, kv_heads: 3, dim: 64, turned: 64, ..plain },
        Shape { heads: 4, kv_heads: 4, dim: 80, turned: 32, extras: true, ..plain }, // partial
        Shape { dim: 96, turned: 20, page_tokens: 7, ..plain },                      // pairs not in eights
        Shape { dim: 256, turned: 256, fp8: true, ..plain },
        Shape { dim: 8, turned: 6, heads: 1, kv_heads: 1, adjacent: true, ..plain },
        Shape { turned: 0, heads: 40, kv_heads: 1, extras: true, ..plain },
    ];
    shapes.extend((0..6).map(|_| any_shape(random)));
    shapes.into_iter().map(case).collect()
}

fn any(random: &mut Random) -> Case {
    case(any_shape(random))
}

fn any_shape(random: &mut Random) -> Shape {
    let (kv_heads, dim) = (random.between(1, 5), 8 * random.between(1, 32));
    Shape {
        rows: random.between(1, 12),
        heads: kv_heads * random.between(1, 5),
        kv_heads,
        dim,
        turned: 2 * random.between(0, dim / 2),
        adjacent: random.between(0, 1) == 1,
        page_tokens: random.pick(&[1, 16, 64]),
        extras: random.between(0, 1) == 1,
        fp8: random.between(0, 1) == 1,
    }
}

fn case(shape: Shape) -> Case {
    Case::small(format!("{shape:?}"), move |random| trial(random, shape))
}

/// A step's operands on the host.
#[derive(Clone)]
struct Operands {
    qkv: Vec<bf16>,
    bias: Option<Vec<bf16>>,
    gains: Option<[Vec<bf16>; 2]>,
    slots: Vec<i64>,
    positions: Vec<u32>,
    frequencies: Vec<f32>,
    pages: usize,
}

fn operands(random: &mut Random, shape: Shape) -> Operands {
    let Shape { rows, dim, turned, page_tokens, .. } = shape;
    let columns = (shape.heads + 2 * shape.kv_heads) * dim;
    let pages = (rows / page_tokens + 2) * 2;
    let places = random.permutation(pages * page_tokens);
    let mut slots: Vec<i64> = places.iter().take(rows).map(|&place| place as i64).collect();
    if rows > 3 {
        slots[1] = -1; // padding
        slots[2] = (pages * page_tokens) as i64;
    }
    Operands {
        qkv: random.bf16(rows * columns, 1.0),
        bias: shape.extras.then(|| random.bf16(columns, 1.0)),
        gains: shape.extras.then(|| [random.bf16(dim, 1.0), random.bf16(dim, 1.0)]),
        slots,
        positions: (0..rows).map(|_| random.between(0, 131_071) as u32).collect(),
        frequencies: (0..turned / 2).map(|i| 500_000f32.powf(-2.0 * i as f32 / turned as f32)).collect(),
        pages,
    }
}

fn trial(random: &mut Random, shape: Shape) -> Trial {
    let operands = operands(random, shape);
    let numbers = operands.pages * shape.kv_heads * shape.page_tokens * shape.dim;
    // What stood in the cache, and stays where nothing is written: small numbers that e4m3 holds too.
    let before: Vec<bf16> = (0..numbers).map(|i| bf16::from_f32((i % 7) as f32 - 3.0)).collect();
    let [q, k, v] = reference(&operands, shape, &before);
    let tolerance = if shape.fp8 { E4M3_TOLERANCE } else { TOLERANCE };
    Trial::new(move |device| {
        let mut q = unwritten(device, shape.rows * shape.heads * shape.dim)?;
        let up = |values: &[bf16]| Memory::from_slice(device, values);
        let (qkv, bias) = (up(&operands.qkv)?, operands.bias.as_deref().map(up).transpose()?);
        let gains = operands
            .gains
            .as_ref()
            .map(|[q, k]| Ok::<_, volley_kernels::Error>((up(q)?, up(k)?)))
            .transpose()?;
        let slots = Memory::from_slice(device, &operands.slots)?;
        let positions = Memory::from_slice(device, &operands.positions)?;
        let frequencies = Memory::from_slice(device, &operands.frequencies)?;
        let mut run = |numbers| {
            let op = QkvStore {
                qkv: Queries::Apart { qkv: qkv.view(), q: q.view_mut() },
                bias: bias.as_ref().map(Memory::view),
                norms: gains.as_ref().map(|(q, k)| HeadNorms { q: q.view(), k: k.view(), epsilon: EPSILON }),
                cache: KvCache { numbers, pages: operands.pages, page_tokens: shape.page_tokens },
                slots: slots.view(),
                positions: positions.view(),
                frequencies: frequencies.view(),
                magnitude: MAGNITUDE,
                pairing: if shape.adjacent { RopePairing::Adjacent } else { RopePairing::Halves },
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                dim: shape.dim,
            };
            qkv_store(&**device, &op)
        };
        let (k, v) = if shape.fp8 {
            let codes: Vec<u8> = before.iter().map(|x| e4m3_code(x.to_f64())).collect();
            let (mut k, mut v) = (Memory::from_slice(device, &codes)?, Memory::from_slice(device, &codes)?);
            run(KvNumbers::E4m3 { k: k.view_mut(), v: v.view_mut(), k_scale: K_SCALE, v_scale: V_SCALE })?;
            let values = |codes: Vec<u8>, scale: f32| {
                codes.iter().map(|&code| (e4m3(code) * f64::from(scale)) as f32).collect::<Vec<_>>()
            };
            (values(k.read()?, K_SCALE), values(v.read()?, V_SCALE))
        } else {
            let (mut k, mut v) = (up(&before)?, up(&before)?);
            run(KvNumbers::Bf16 { k: k.view_mut(), v: v.view_mut() })?;
            let values = |numbers: Vec<bf16>| numbers.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            (values(k.read()?), values(v.read()?))
        };
        Ok(vec![Output::new("q", &q.read()?), Output::new("k", &k), Output::new("v", &v)])
    })
    .expect("q", q, TOLERANCE)
    .expect("k", k, tolerance)
    .expect("v", v, tolerance)
}

/// Queries, and the caches of keys and values afterwards.
fn reference(operands: &Operands, shape: Shape, before: &[bf16]) -> [Vec<f64>; 3] {
    let Shape { rows, heads, kv_heads, dim, page_tokens, .. } = shape;
    let all = heads + 2 * kv_heads;
    let scaled = |scale: f32| {
        let scale = if shape.fp8 { f64::from(scale) } else { 1.0 };
        before.iter().map(|x| x.to_f64() * scale).collect::<Vec<f64>>()
    };
    let (mut q, mut k, mut v) = (Vec::new(), scaled(K_SCALE), scaled(V_SCALE));
    for row in 0..rows {
        for head in 0..all {
            let from = head * dim..(head + 1) * dim;
            let bias = |i: usize| operands.bias.as_ref().map_or(0.0, |bias| bias[i].to_f64());
            let mut x: Vec<f64> =
                from.map(|i| operands.qkv[row * all * dim + i].to_f64() + bias(i)).collect();
            let value = head >= heads + kv_heads;
            if let (Some(gains), false) = (&operands.gains, value) {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
                let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
                let gain = &gains[usize::from(head >= heads)];
                x.iter_mut().zip(gain).for_each(|(x, gain)| *x *= scale * gain.to_f64());
            }
            if !value {
                turn(&mut x, operands.positions[row], &operands.frequencies, shape.adjacent);
            }
            if head < heads {
                q.extend(x);
            } else if let Ok(slot) = usize::try_from(operands.slots[row]) {
                let kv_head = (head - heads) % kv_heads;
                let at = ((slot / page_tokens * kv_heads + kv_head) * page_tokens + slot % page_tokens) * dim;
                let cache = if value { &mut v } else { &mut k };
                if at < cache.len() && slot < operands.pages * page_tokens {
                    cache[at..at + dim].copy_from_slice(&x);
                }
            }
        }
    }
    [q, k, v]
}

fn turn(x: &mut [f64], position: u32, frequencies: &[f32], adjacent: bool) {
    for (i, frequency) in frequencies.iter().enumerate() {
        // The angle is rounded to f32, as models are trained.
        let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
        let (sine, cosine) = (sine * f64::from(MAGNITUDE), cosine * f64::from(MAGNITUDE));
        let (a, b) = if adjacent { (2 * i, 2 * i + 1) } else { (i, i + frequencies.len()) };
        (x[a], x[b]) = (x[a] * cosine - x[b] * sine, x[b] * cosine + x[a] * sine);
    }
}

/// The code of a number that e4m3 holds exactly.
fn e4m3_code(x: f64) -> u8 {
    (0..=u8::MAX).find(|&code| e4m3(code) == x).unwrap_or(0x7f)
}

fn speeds() -> Vec<Speed> {
    let (heads, kv_heads, dim, page_tokens) = (32, 8, 128, 16);
    let columns = (heads + 2 * kv_heads) * dim;
    [(64, 0.0), (8192, 0.8)]
        .map(|(rows, goal)| {
            let bytes = rows * 2 * columns * size_of::<bf16>();
            let label = format!("{rows} × ({heads} + 2 · {kv_heads}) × {dim}");
            Speed::new(label, Work::Bytes(bytes as f64), goal, move |device| {
                let device = device.clone();
                let qkv = Memory::filled(&device, rows * columns, 0x3d)?;
                let mut q = Memory::<bf16>::new(&device, rows * heads * dim)?;
                let pages = rows.div_ceil(page_tokens);
                let mut k = Memory::<bf16>::new(&device, pages * kv_heads * page_tokens * dim)?;
                let mut v = Memory::<bf16>::new(&device, pages * kv_heads * page_tokens * dim)?;
                let slots: Vec<i64> = (0..rows as i64).collect();
                let slots = Memory::from_slice(&device, &slots)?;
                let positions = Memory::from_slice(&device, &(0..rows as u32).collect::<Vec<_>>())?;
                let frequencies: Vec<f32> = (0..dim / 2).map(|i| 1e4f32.powf(-(i as f32) / 64.0)).collect();
                let frequencies = Memory::from_slice(&device, &frequencies)?;
                Ok(Box::new(move |_| {
                    let numbers = KvNumbers::Bf16 { k: k.view_mut(), v: v.view_mut() };
                    let op = QkvStore {
                        qkv: Queries::Apart { qkv: qkv.view(), q: q.view_mut() },
                        bias: None,
                        norms: None,
                        cache: KvCache { numbers, pages, page_tokens },
                        slots: slots.view(),
                        positions: positions.view(),
                        frequencies: frequencies.view(),
                        pairing: RopePairing::Halves,
                        magnitude: 1.0,
                        heads,
                        kv_heads,
                        dim,
                    };
                    qkv_store(&*device, &op)
                }))
            })
        })
        .into()
}
