//! What is timed of attention.

use std::sync::Arc;

use half::bf16;
use volley_kernels::{
    Error,
    cuda::{
        Device, Memory,
        ops::{
            Attention, AttentionLimits, AttentionPlan, AttentionSequence, AttentionShape, KvPages,
            PlannedAttention, attention,
        },
    },
};

use super::{shape, world::Run};
use crate::{Peer, Random, Speed, Work};

pub(super) fn speeds() -> Vec<Speed> {
    let llama = |e4m3| shape(4, 8, 128, 16, e4m3);
    vec![
        decode(llama(false), 64, 8192, 1, 0.9),
        decode(llama(false), 1, 32768, 4, 0.8),
        decode(llama(true), 64, 8192, 1, 0.9),
        decode(shape(48, 1, 128, 16, false), 64, 8192, 4, 0.8),
    ]
}

pub(super) fn hopper_speeds() -> Vec<Speed> {
    vec![prefill(shape(4, 8, 128, 16, false), 8192, 0.55)]
}

/// Keys and values for a timing. A cache of zeros is as fast to read as any, but not to multiply: it costs less power.
fn cache(device: &Arc<dyn Device>, bytes: usize, zeros: bool) -> Result<Memory<u8>, Error> {
    if zeros {
        return Memory::filled(device, bytes, 0);
    }
    let block: Vec<u8> = Random::new(3).bf16(1 << 18, 1.0).iter().flat_map(|x| x.to_le_bytes()).collect();
    Memory::from_slice(device, &block.iter().copied().cycle().take(bytes).collect::<Vec<u8>>())
}

/// `copies` of the cache are rotated over where one could stay in L2.
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
        let limits = AttentionLimits { invariant: false, scratch: usize::MAX, items: usize::MAX };
        let plan = AttentionPlan::new(&shape, &sequences, &limits, device.properties())?;
        let columns = shape.heads * shape.dim;
        let mut scratch = Memory::<f32>::new(&device, plan.scratch(plan.capacity().slots).max(4))?;
        let planned = PlannedAttention::new(&device, plan)?;
        let elements = batch * per * shape.page_tokens * shape.kv_heads * shape.dim;
        let bytes = elements * if shape.e4m3 { 1 } else { 2 };
        let caches: Vec<[Memory<u8>; 2]> = (0..copies)
            .map(|_| Ok([cache(&device, bytes, run.1 == 1)?, cache(&device, bytes, run.1 == 1)?]))
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
                planned: planned.view(),
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
