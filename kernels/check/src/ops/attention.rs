//! Attention over a paged cache: decoding, prefill and the bits that both must share.

use std::sync::Arc;

use half::bf16;
use volley_kernels::{
    Error,
    cuda::{
        Device, Memory,
        ops::{
            Attention, AttentionCapacity, AttentionLimits, AttentionPlan, AttentionSequence, AttentionShape,
            KvPages, PlannedAttention, attention,
        },
    },
};

use super::{Operation, e4m3};
use crate::{Case, Output, Peer, Random, Speed, Trial, Work, unwritten};

/// Probabilities and the output are rounded to bf16; a few scores dominate a sum.
const TOLERANCE: f64 = 8e-3;
const DIMS: [usize; 5] = [64, 80, 96, 128, 256];

pub(super) fn operation() -> Operation {
    Operation {
        name: "attention",
        kernels: &[
            "attention_d64_bf16_r16",
            "attention_d64_bf16_r64",
            "attention_d64_e4m3_r16",
            "attention_d64_e4m3_r64",
            "attention_d80_bf16_r16",
            "attention_d80_bf16_r64",
            "attention_d80_e4m3_r16",
            "attention_d80_e4m3_r64",
            "attention_d96_bf16_r16",
            "attention_d96_bf16_r64",
            "attention_d96_e4m3_r16",
            "attention_d96_e4m3_r64",
            "attention_d128_bf16_r16",
            "attention_d128_bf16_r64",
            "attention_d128_e4m3_r16",
            "attention_d128_e4m3_r64",
            "attention_d256_bf16_r16",
            "attention_d256_bf16_r32",
            "attention_d256_e4m3_r16",
            "attention_d256_e4m3_r32",
            "attention_merge",
        ],
        cases,
        speeds,
    }
}

pub(super) fn hopper() -> Operation {
    Operation {
        name: "attention_sm90",
        kernels: &[
            "attention_sm90_d64",
            "attention_sm90_d80",
            "attention_sm90_d96",
            "attention_sm90_d128",
            "attention_sm90_d256",
            "attention_merge",
        ],
        cases: hopper_cases,
        speeds: hopper_speeds,
    }
}

// --- A cache with its sequences, and their queries at every position

/// (position, new tokens) of a sequence in a launch.
type Run = (usize, usize);

#[derive(Clone)]
struct World {
    shape: AttentionShape,
    /// Bits of each element.
    k: Vec<u16>,
    v: Vec<u16>,
    /// Of keys, then of values.
    scales: Vec<f32>,
    tables: Vec<Vec<u32>>,
    /// `[position, heads × dim]` of each sequence.
    queries: Vec<Vec<bf16>>,
}

impl World {
    /// Sequences of so many keys, on pages in no order; what no token fills is NaN.
    fn new(random: &mut Random, shape: AttentionShape, lens: &[usize]) -> Self {
        let page = shape.kv_heads * shape.page_tokens * shape.dim;
        let needed: usize = lens.iter().map(|len| len.div_ceil(shape.page_tokens)).sum();
        let mut order = random.permutation(needed + 1).into_iter().map(|id| id as u32);
        let nan = if shape.e4m3 { 0x7f } else { bf16::NAN.to_bits() };
        let mut world = Self {
            shape,
            k: vec![nan; (needed + 1) * page],
            v: vec![nan; (needed + 1) * page],
            scales: (0..2 * shape.kv_heads).map(|_| 0.2 + random.uniform() as f32).collect(),
            tables: Vec::new(),
            queries: Vec::new(),
        };
        for &len in lens {
            world.tables.push(order.by_ref().take(len.div_ceil(shape.page_tokens)).collect());
            world.queries.push(random.bf16(len * shape.heads * shape.dim, 1.0));
            for i in 0..len * shape.kv_heads * shape.dim {
                let (key, column) = (i / (shape.kv_heads * shape.dim), i % (shape.kv_heads * shape.dim));
                let at = world.at(world.tables.len() - 1, key, column / shape.dim) + column % shape.dim;
                (world.k[at], world.v[at]) = (element(random, shape.e4m3), element(random, shape.e4m3));
            }
        }
        world
    }

    fn at(&self, sequence: usize, key: usize, head: usize) -> usize {
        let shape = &self.shape;
        let page = self.tables[sequence][key / shape.page_tokens] as usize;
        ((page * shape.kv_heads + head) * shape.page_tokens + key % shape.page_tokens) * shape.dim
    }

    fn value(&self, of: &[u16], at: usize, scale: usize) -> f64 {
        if self.shape.e4m3 {
            e4m3(of[at] as u8) * f64::from(self.scales[scale])
        } else {
            bf16::from_bits(of[at]).to_f64()
        }
    }

    /// Plans, launches and reads the new tokens' rows.
    fn run(
        &self,
        device: &Arc<dyn Device>,
        runs: &[(usize, Run)],
        limits: Limits,
    ) -> Result<Vec<bf16>, Error> {
        let shape = &self.shape;
        let columns = shape.heads * shape.dim;
        // Queries stand in wider rows, as they do beside keys and values.
        let q_stride = columns + 16;
        let (mut q, mut sequences) = (Vec::new(), Vec::new());
        // A page behind the window may be someone else's by now.
        let tables: Vec<Vec<u32>> = runs
            .iter()
            .map(|&(s, (position, _))| {
                let gone = shape
                    .window
                    .map_or(0, |window| (position + 1).saturating_sub(window) / shape.page_tokens);
                let table = &self.tables[s];
                (0..table.len()).map(|i| if i < gone { u32::MAX } else { table[i] }).collect()
            })
            .collect();
        for (&(s, (position, tokens)), pages) in runs.iter().zip(&tables) {
            sequences.push(AttentionSequence { first_row: q.len() / q_stride, tokens, position, pages });
            for row in self.queries[s][position * columns..(position + tokens) * columns].chunks(columns) {
                q.extend_from_slice(row);
                q.extend([bf16::NAN; 16]);
            }
        }
        let rows = q.len() / q_stride;
        let scratch = if limits.parts { 1 << 20 } else { 0 };
        let allowed = AttentionLimits { invariant: limits.invariant, scratch };
        let plan = AttentionPlan::new(shape, &sequences, &allowed, device.properties())?;
        let planned = if limits.graph {
            let has = plan.capacity();
            let room = AttentionCapacity {
                items: has.items + 3,
                merges: has.merges + 2,
                entries: has.entries + 1,
                sequences: has.sequences + 1,
                ..has
            };
            let mut planned = PlannedAttention::with_capacity(
                device,
                AttentionPlan::new(
                    shape,
                    &sequences[..1],
                    &AttentionLimits { scratch: 0, ..allowed },
                    device.properties(),
                )?,
                room,
            )?;
            planned.replace(plan)?;
            planned
        } else {
            PlannedAttention::new(device, plan)?
        };
        let (bytes, words) = if shape.e4m3 {
            let narrow = |of: &[u16]| of.iter().map(|&bits| bits as u8).collect::<Vec<_>>();
            (
                Some((
                    Memory::from_slice(device, &narrow(&self.k))?,
                    Memory::from_slice(device, &narrow(&self.v))?,
                )),
                None,
            )
        } else {
            let wide = |of: &[u16]| of.iter().map(|&bits| bf16::from_bits(bits)).collect::<Vec<_>>();
            (
                None,
                Some((
                    Memory::from_slice(device, &wide(&self.k))?,
                    Memory::from_slice(device, &wide(&self.v))?,
                )),
            )
        };
        let scales = Memory::from_slice(device, &self.scales)?;
        let pages = match (&bytes, &words) {
            (Some((k, v)), _) => KvPages::E4m3 { k: k.view(), v: v.view(), scales: scales.view() },
            (_, Some((k, v))) => KvPages::Bf16 { k: k.view(), v: v.view() },
            _ => return Ok(Vec::new()),
        };
        let q = Memory::from_slice(device, &q)?;
        let mut out = unwritten(device, rows * columns)?;
        let mut scratch = unwritten(device, scratch.max(4))?;
        attention(
            &**device,
            &Attention {
                planned: &planned,
                q: q.view(),
                q_stride,
                pages,
                scratch: scratch.view_mut(),
                out: out.view_mut(),
            },
        )?;
        out.read()
    }

    /// By definition, in f64.
    fn reference(&self, runs: &[(usize, Run)]) -> Vec<f64> {
        let shape = &self.shape;
        let mut out = Vec::new();
        for &(s, (position, tokens)) in runs {
            for (at, h) in (position..position + tokens).flat_map(|at| (0..shape.heads).map(move |h| (at, h)))
            {
                let q = &self.queries[s][(at * shape.heads + h) * shape.dim..][..shape.dim];
                let head = h / shape.group();
                let keys = (at + 1).saturating_sub(shape.window.unwrap_or(at + 1))..at + 1;
                let scores: Vec<f64> = keys
                    .clone()
                    .map(|key| {
                        let k = self.at(s, key, head);
                        let dot: f64 = q
                            .iter()
                            .enumerate()
                            .map(|(d, q)| q.to_f64() * self.value(&self.k, k + d, head))
                            .sum();
                        let score = dot * f64::from(shape.scale);
                        shape.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let most = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..shape.dim {
                    let values = keys
                        .clone()
                        .map(|key| self.value(&self.v, self.at(s, key, head) + d, shape.kv_heads + head));
                    out.push(weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / sum);
                }
            }
        }
        out
    }
}

/// How a launch is planned.
#[derive(Clone, Copy)]
struct Limits {
    invariant: bool,
    /// Keys may be cut into parts.
    parts: bool,
    /// The plan replaces another one in lists that have room for more, as under a captured graph.
    graph: bool,
}

const FREE: Limits = Limits { invariant: false, parts: true, graph: false };

fn element(random: &mut Random, e4m3: bool) -> u16 {
    if e4m3 { (random.bits() & 0xbf) as u16 } else { bf16::from_f64(random.normal()).to_bits() }
}

// --- Cases

fn shape(group: usize, kv_heads: usize, dim: usize, page_tokens: usize, e4m3: bool) -> AttentionShape {
    // e4m3 elements reach 2 before scaling; bf16 ones are normal.
    let scale = 1.0 / (dim as f32).sqrt();
    AttentionShape {
        heads: group * kv_heads,
        kv_heads,
        dim,
        page_tokens,
        e4m3,
        window: None,
        softcap: None,
        scale,
    }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for dim in DIMS {
        for e4m3 in [false, true] {
            let decode = shape(random.pick(&[1, 3, 4, 8]), 2, dim, random.pick(&[16, 32]), e4m3);
            // One key, page and tile borders on both sides, two parts.
            let lens = [1, random.pick(&[16, 17]), random.pick(&[64, 65]), random.between(129, 260)];
            cases.push(case("decode", decode, lens.map(|len| (len - 1, 1)).to_vec(), FREE));
            let chunks = shape(random.pick(&[1, 5]), 1, dim, random.pick(&[16, 48]), e4m3);
            let runs =
                vec![(0, 1), (random.between(0, 40), random.between(17, 40)), (random.between(64, 140), 18)];
            cases.push(case("chunks", chunks, runs, FREE).on(&[80]));
        }
    }
    let window = |s| AttentionShape { window: Some(50), ..s };
    let softcap = |s| AttentionShape { softcap: Some(2.0), ..s };
    for (e4m3, dim) in [(false, 64), (true, 128)] {
        let s = shape(4, 1, dim, 16, e4m3);
        cases.push(case("window", window(s), vec![(3, 1), (49, 1), (300, 1)], FREE));
        cases.push(case("window, chunks", window(s), vec![(3, 20), (160, 9)], FREE).on(&[80]));
        cases.push(case("soft-cap", softcap(s), vec![(3, 1), (130, 2)], FREE));
        cases.push(case("soft-cap and window, chunks", window(softcap(s)), vec![(40, 20)], FREE).on(&[80]));
    }
    cases.push(case("48 query heads on one", shape(48, 1, 64, 16, false), vec![(0, 1), (100, 1)], FREE));
    let graph = Limits { graph: true, ..FREE };
    cases.push(case(
        "in lists with room for more",
        shape(4, 2, 64, 16, false),
        vec![(299, 1), (4, 1)],
        graph,
    ));
    for (e4m3, dim) in [(false, 64), (true, 64), (false, 256)] {
        cases.push(one_row_many_ways(shape(4, 1, dim, 16, e4m3)));
        cases.push(one_row_many_ways(window(shape(2, 1, dim, 16, e4m3))));
    }
    for _ in 0..6 {
        let (group, kv_heads, dim) = (random.between(1, 9), random.between(1, 8), random.pick(&DIMS));
        let s = shape(group, kv_heads, dim, 16 * random.between(1, 4), random.between(0, 1) == 1);
        let s = if random.between(0, 2) == 0 {
            AttentionShape { window: Some(random.between(1, 3000)), ..s }
        } else {
            s
        };
        let runs =
            (0..random.between(1, 6)).map(|_| (random.between(0, 4000), random.between(1, 3))).collect();
        cases.push(large("decode", s, runs));
        let runs = (0..3).map(|_| (random.between(0, 900), random.between(1, 300))).collect();
        cases.push(large("chunks", s, runs));
    }
    cases
}

fn hopper_cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for dim in DIMS {
        let s = shape(random.pick(&[3, 4]), 1, dim, random.pick(&[16, 64]), false);
        cases.push(case("chunks", s, vec![(0, 2), (random.between(0, 60), random.between(22, 45))], FREE));
    }
    let s = shape(4, 1, 64, 16, false);
    cases.push(case("parts", s, vec![(530, 17)], FREE));
    cases.push(case("window", AttentionShape { window: Some(50), ..s }, vec![(170, 40)], FREE));
    cases.push(case("soft-cap", AttentionShape { softcap: Some(2.0), ..s }, vec![(100, 20)], FREE));
    for _ in 0..6 {
        let s = shape(
            random.between(1, 8),
            random.between(1, 4),
            random.pick(&DIMS),
            16 * random.between(1, 4),
            false,
        );
        let runs = (0..3).map(|_| (random.between(0, 900), random.between(64, 300))).collect();
        cases.push(large("chunks", s, runs));
    }
    cases
}

fn label(what: &str, shape: &AttentionShape, runs: &[Run]) -> String {
    let AttentionShape { kv_heads, dim, page_tokens, e4m3, .. } = shape;
    let kind = if *e4m3 { "e4m3" } else { "bf16" };
    format!("{what}: {} × {kv_heads} heads of {dim}, {kind}, pages of {page_tokens}, {runs:?}", shape.group())
}

fn case(what: &str, shape: AttentionShape, runs: Vec<Run>, limits: Limits) -> Case {
    Case::small(label(what, &shape, &runs), move |random| trial(random, shape, &runs, limits))
}

fn large(what: &str, shape: AttentionShape, runs: Vec<Run>) -> Case {
    Case::large(label(what, &shape, &runs), move |random| trial(random, shape, &runs, FREE))
}

fn trial(random: &mut Random, shape: AttentionShape, runs: &[Run], limits: Limits) -> Trial {
    let lens: Vec<usize> = runs.iter().map(|(position, tokens)| position + tokens).collect();
    let world = World::new(random, shape, &lens);
    let runs: Vec<(usize, Run)> = runs.iter().copied().enumerate().collect();
    let expected = world.reference(&runs);
    Trial::new(move |device| Ok(vec![Output::new("out", &world.run(device, &runs, limits)?)]))
        .expect("out", expected, TOLERANCE)
}

/// A token's row has the same bits decoded (in parts over several blocks, or by one), recomputed with what comes
/// before it, in another chunk, and beside another sequence.
fn one_row_many_ways(shape: AttentionShape) -> Case {
    let len = 600; // a segment and a bit
    Case::small(label("one row many ways", &shape, &[(len - 1, 1)]), move |random| {
        let world = World::new(random, shape, &[len, 70]);
        let expected = world.reference(&[(0, (len - 1, 1))]);
        Trial::new(move |device| {
            let parts = Limits { invariant: true, ..FREE };
            let whole = Limits { parts: false, ..parts };
            let ways: [(&'static str, Vec<(usize, Run)>, Limits); 5] = [
                ("decoded", vec![(0, (len - 1, 1))], parts),
                ("decoded by one block", vec![(1, (69, 1)), (0, (len - 1, 1))], whole),
                ("recomputed", vec![(0, (len - 20, 20))], whole),
                ("in another chunk", vec![(0, (len - 9, 9))], parts),
                ("beside another", vec![(1, (0, 3)), (0, (len - 3, 3))], parts),
            ];
            let columns = shape.heads * shape.dim;
            ways.into_iter()
                .map(|(name, runs, limits)| {
                    let out = world.run(device, &runs, limits)?;
                    Ok(Output::new(name, &out[out.len() - columns..]))
                })
                .collect()
        })
        .expect("decoded", expected, TOLERANCE)
        .same("decoded", "decoded by one block")
        .same("decoded", "recomputed")
        .same("decoded", "in another chunk")
        .same("decoded", "beside another")
    })
    .on(&[80, 90])
}

// --- Timings

fn speeds() -> Vec<Speed> {
    let llama = |e4m3| shape(4, 8, 128, 16, e4m3);
    vec![
        decode(llama(false), 64, 8192, 1, 0.9),
        decode(llama(false), 1, 32768, 4, 0.8),
        decode(llama(true), 64, 8192, 1, 0.9),
        decode(shape(48, 1, 128, 16, false), 64, 8192, 4, 0.8),
    ]
}

fn hopper_speeds() -> Vec<Speed> {
    vec![prefill(shape(4, 8, 128, 16, false), 8192, 0.55)]
}

/// A cache of zeros is as fast to read as any; `copies` of it are rotated over where one could stay in L2.
fn timed(
    shape: AttentionShape,
    batch: usize,
    run: Run,
    copies: usize,
) -> impl Fn(&Arc<dyn Device>) -> Result<Box<crate::Step>, Error> {
    move |device| {
        let device = device.clone();
        let per = (run.0 + run.1).div_ceil(shape.page_tokens);
        let pages: Vec<u32> =
            Random::new(1).permutation(batch * per).into_iter().map(|id| id as u32).collect();
        let sequences: Vec<_> = (0..batch)
            .map(|b| AttentionSequence {
                first_row: b * run.1,
                tokens: run.1,
                position: run.0,
                pages: &pages[b * per..(b + 1) * per],
            })
            .collect();
        let limits = AttentionLimits { invariant: false, scratch: usize::MAX };
        let plan = AttentionPlan::new(&shape, &sequences, &limits, device.properties())?;
        let columns = shape.heads * shape.dim;
        let mut scratch = Memory::<f32>::new(&device, plan.scratch(plan.capacity().slots).max(4))?;
        let planned = PlannedAttention::new(&device, plan)?;
        let elements = batch * per * shape.page_tokens * shape.kv_heads * shape.dim;
        let bytes = elements * if shape.e4m3 { 1 } else { 2 };
        let caches: Vec<[Memory<u8>; 2]> = (0..copies)
            .map(|_| Ok([Memory::filled(&device, bytes, 0)?, Memory::filled(&device, bytes, 0)?]))
            .collect::<Result<_, Error>>()?;
        let scales = Memory::from_slice(&device, &vec![1.0f32; 2 * shape.kv_heads])?;
        let q = Memory::from_slice(&device, &Random::new(2).bf16(batch * run.1 * columns, 1.0))?;
        let mut out = Memory::<bf16>::new(&device, batch * run.1 * columns)?;
        Ok(Box::new(move |i| {
            let [k, v] = &caches[i % caches.len()];
            let pages = if shape.e4m3 {
                KvPages::E4m3 { k: k.view(), v: v.view(), scales: scales.view() }
            } else {
                KvPages::Bf16 { k: k.view().cast(), v: v.view().cast() }
            };
            let op = Attention {
                planned: &planned,
                q: q.view(),
                q_stride: columns,
                pages,
                scratch: scratch.view_mut(),
                out: out.view_mut(),
            };
            attention(&*device, &op)
        }))
    }
}

fn peer(shape: &AttentionShape, batch: usize, queries: usize, keys: usize) -> Peer {
    Peer::Attention { batch, heads: shape.heads, kv_heads: shape.kv_heads, queries, keys, dim: shape.dim }
}

fn decode(shape: AttentionShape, batch: usize, keys: usize, copies: usize, goal: f64) -> Speed {
    let bytes = 2 * batch * keys * shape.kv_heads * shape.dim * if shape.e4m3 { 1 } else { 2 };
    let label = format!(
        "decode {batch} × {keys}: {} × {} heads of {}{}",
        shape.group(),
        shape.kv_heads,
        shape.dim,
        if shape.e4m3 { ", e4m3" } else { "" }
    );
    Speed::new(label, Work::Bytes(bytes as f64), goal, timed(shape, batch, (keys - 1, 1), copies))
        .beside(peer(&shape, batch, 1, keys))
}

fn prefill(shape: AttentionShape, tokens: usize, goal: f64) -> Speed {
    let operations = 4.0 * shape.heads as f64 * shape.dim as f64 * (tokens * tokens / 2) as f64;
    let label = format!("prefill {tokens}: {} × {} heads of {}", shape.group(), shape.kv_heads, shape.dim);
    Speed::new(label, Work::Operations(operations), goal, timed(shape, 1, (0, tokens), 1))
        .beside(peer(&shape, 1, tokens, tokens))
}
