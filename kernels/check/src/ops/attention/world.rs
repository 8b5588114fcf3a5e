//! A paged cache with its sequences, and what attention over it is by definition.

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

use crate::{
    Random,
    ops::{dot, e4m3},
    unwritten,
};

/// (position, new tokens) of a sequence in a launch.
pub(super) type Run = (usize, usize);

#[derive(Clone)]
pub(super) struct World {
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
    pub(super) fn new(random: &mut Random, shape: AttentionShape, lens: &[usize]) -> Self {
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
    pub(super) fn run(
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
        let allowed = AttentionLimits { invariant: limits.invariant, scratch, items: usize::MAX };
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
                planned: planned.view(),
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
    pub(super) fn reference(&self, runs: &[(usize, Run)]) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, dim, .. } = self.shape;
        let mut out = Vec::new();
        for &(s, (position, tokens)) in runs {
            let mut rows = vec![0.0; tokens * heads * dim];
            for head in 0..kv_heads {
                let gather = |of: &[u16], scale: usize| -> Vec<f64> {
                    let places = (0..position + tokens).map(|key| self.at(s, key, head));
                    places.flat_map(|at| (at..at + dim).map(move |at| self.value(of, at, scale))).collect()
                };
                let (keys, values) = (gather(&self.k, head), gather(&self.v, kv_heads + head));
                let group = head * self.shape.group()..(head + 1) * self.shape.group();
                for (token, h) in (0..tokens).flat_map(|token| group.clone().map(move |h| (token, h))) {
                    let at = position + token;
                    let q = &self.queries[s][(at * heads + h) * dim..][..dim];
                    let q: Vec<f64> = q.iter().map(|x| x.to_f64()).collect();
                    self.attend(at, &q, &keys, &values, &mut rows[(token * heads + h) * dim..][..dim]);
                }
            }
            out.extend(rows);
        }
        out
    }

    /// One query's row, from the keys and values `[key, dim]` of its head.
    fn attend(&self, at: usize, q: &[f64], keys: &[f64], values: &[f64], out: &mut [f64]) {
        let AttentionShape { dim, scale, softcap, window, .. } = self.shape;
        let seen = (at + 1).saturating_sub(window.unwrap_or(at + 1))..at + 1;
        let score = |key: usize| {
            let score = dot(q, &keys[key * dim..][..dim]) * f64::from(scale);
            softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let scores: Vec<f64> = seen.clone().map(score).collect();
        let most = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (key, weight) in seen.zip(weights) {
            for (out, value) in out.iter_mut().zip(&values[key * dim..][..dim]) {
                *out += weight / sum * value;
            }
        }
    }
}

/// How a launch is planned.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) invariant: bool,
    /// Keys may be cut into parts.
    pub(super) parts: bool,
    /// The plan replaces another one in lists that have room for more, as under a captured graph.
    pub(super) graph: bool,
}

pub(super) const FREE: Limits = Limits { invariant: false, parts: true, graph: false };

fn element(random: &mut Random, e4m3: bool) -> u16 {
    if e4m3 { (random.bits() & 0xbf) as u16 } else { bf16::from_f64(random.normal()).to_bits() }
}
