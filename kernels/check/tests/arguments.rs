//! What doesn't fit together is an error that says so, before anything is launched.

use half::bf16;
use volley_kernels::{
    Error,
    cuda::{
        Memory,
        ops::{
            Activate, Attention, AttentionLimits, AttentionPlan, AttentionSequence, AttentionShape,
            CopyBlocks, DrawRow, Embed, Factors, Function, Gemm, KvPages, LayerNorm, PlannedAttention,
            Sample, Skinny, SkinnyOut, SkinnyScratch, SkinnyWeights, activate, attention, copy_blocks, embed,
            gemm, layer_norm, sample, skinny,
        },
    },
};
use volley_twin::{Schedule, Twin};

fn says(result: Result<(), Error>, words: &str) {
    let error = result.expect_err(words);
    assert!(matches!(error, Error::Arguments { .. }) && error.to_string().contains(words), "{error}");
}

#[test]
fn sizes_that_dont_fit_are_named() {
    let device = Twin::device(Schedule::ALL[0]);
    let numbers = Memory::<bf16>::filled(&device, 640, 0).unwrap();
    let mut out = Memory::<bf16>::filled(&device, 64, 0).unwrap();
    let tokens = Memory::from_slice(&device, &[0u32; 4]).unwrap();

    let mut embedding = |columns| {
        let (table, out) = (numbers.view(), out.view_mut());
        embed(&*device, &Embed { tokens: tokens.view(), drawn: None, table, out, columns, scale: 1.0 })
    };
    assert!(embedding(16).is_ok());
    says(embedding(12), "multiple of 8");
    says(embedding(24), "whole rows");
    says(embedding(32), "out has 64 elements, not 128");

    let mut gated = |columns, gated| {
        let (x, out) = (numbers.view().slice(0..128), out.view_mut());
        activate(&*device, &Activate { x, out, rows: 2, columns, function: Function::Silu, gated })
    };
    assert!(gated(32, true).is_ok());
    says(gated(32, false), "x has 128 elements, not 64");
    says(gated(0, true), "multiple of 8");

    let mut norm = |gain| {
        let (x, gain, out) = (numbers.view().slice(0..64), numbers.view().slice(gain), out.view_mut());
        let op = LayerNorm { x, residual: None, gain, bias: None, out, rows: 2, columns: 32, epsilon: 0.0 };
        layer_norm(&*device, &op)
    };
    assert!(norm(0..32).is_ok());
    says(norm(0..31), "gain has 31 elements, not 32");
    says(norm(1..33), "multiple of 16 bytes");
}

#[test]
fn caches_and_logits_are_whole() {
    let device = Twin::device(Schedule::ALL[0]);
    let mut cache = Memory::<u8>::filled(&device, 128, 0).unwrap();
    let pairs = Memory::from_slice(&device, &[0u32, 1, 2]).unwrap();
    let mut copy = |pairs, page_bytes| {
        let (cache, pairs) = (cache.view_mut(), pairs);
        copy_blocks(&*device, &CopyBlocks { cache, pairs, layers: 2, pages: 2, page_bytes })
    };
    assert!(copy(pairs.view().slice(0..2), 32).is_ok());
    says(copy(pairs.view(), 32), "without its partner");
    says(copy(pairs.view(), 24), "multiple of 16 bytes");
    says(copy(pairs.view(), 64), "the cache has 128 elements, not 256");

    let logits = Memory::<f32>::filled(&device, 32, 0).unwrap();
    let draws: Vec<DrawRow> = vec![];
    let draws = Memory::from_slice(&device, &draws).unwrap();
    let mut out = Memory::<u32>::new(&device, 0).unwrap();
    let mut drawing = |tokens, stride| {
        let (logits, draws, out) = (logits.view(), draws.view(), out.view_mut());
        sample(&*device, &Sample { logits, draws, masks: None, out, tokens, stride })
    };
    says(drawing(0, 4), "vocabulary");
    says(drawing(5, 6), "multiple of 4");
    says(drawing(5, 8), "logits has 32 elements, not 0");
}

#[test]
fn products_are_of_matrices_that_fit() {
    let device = Twin::device(Schedule::ALL[0]);
    let numbers = Memory::<bf16>::filled(&device, 640, 0).unwrap();
    let mut out = Memory::<bf16>::filled(&device, 20, 0).unwrap();
    let mut scratch = SkinnyScratch::new(&device, 10).unwrap();
    let mut product = |from, cols, x_stride, out_stride| {
        let mut op = Skinny {
            x: numbers.view().slice(0..128),
            x_stride,
            weights: SkinnyWeights::Bf16 { numbers: numbers.view().slice(from..from + 576), cols },
            bias: None,
            out: SkinnyOut::Bf16(out.view_mut()),
            out_stride,
            tokens: 2,
            scratch: &mut scratch,
        };
        skinny(&*device, &mut op)
    };
    assert!(product(0, 64, 64, 10).is_ok());
    says(product(1, 64, 64, 10), "multiple of 16 bytes");
    says(product(0, 60, 64, 10), "multiple of 8");
    says(product(0, 64, 60, 10), "x_stride");
    says(product(0, 64, 72, 10), "x has 128 elements, not 144");
    says(product(0, 64, 64, 8), "out_stride");
}

#[test]
fn tiles_are_of_aligned_matrices() {
    let device = Twin::device(Schedule::ALL[0]);
    let numbers = Memory::<bf16>::filled(&device, 640, 0).unwrap();
    let mut out = Memory::<bf16>::filled(&device, 32, 0).unwrap();
    let mut product = |from, k, n, a_stride| {
        let a = numbers.view().slice(from..from + 144);
        let (factors, c) = (Factors::Bf16 { a, b: numbers.view().slice(0..n * k) }, out.view_mut());
        gemm(&*device, &Gemm { factors, bias: None, add: false, c, m: 2, n, k, a_stride, invariant: false })
    };
    assert!(product(0, 32, 16, 72).is_ok());
    says(product(1, 32, 16, 72), "a must start at a multiple of 16 bytes");
    says(product(0, 36, 16, 72), "multiples of 8");
    says(product(0, 32, 16, 24), "a_stride must be at least k");
    says(product(0, 32, 16, 120), "a has 144 elements, not 152");
    says(product(0, 32, 15, 72), "c has 32 elements, not 30");
}

#[test]
fn attention_stays_within_its_cache() {
    let device = Twin::device(Schedule::ALL[0]);
    let numbers = Memory::<bf16>::filled(&device, 4 * 16 * 64, 0).unwrap();
    let mut out = Memory::<bf16>::filled(&device, 128, 0).unwrap();
    let mut scratch = Memory::<f32>::filled(&device, 4, 0).unwrap();
    let shape = AttentionShape {
        heads: 2,
        kv_heads: 1,
        dim: 64,
        page_tokens: 16,
        e4m3: false,
        window: None,
        softcap: None,
        scale: 0.125,
    };
    let plan = |shape: AttentionShape, pages: &[u32]| {
        let sequence = AttentionSequence { first_row: 0, tokens: 1, position: 17, pages };
        let limits = AttentionLimits { invariant: false, scratch: 0, items: usize::MAX };
        AttentionPlan::new(&shape, &[sequence], &limits, device.properties())
    };
    let mut attend = |pages: &[u32], from, q_stride| {
        let planned = PlannedAttention::new(&device, plan(shape, pages).unwrap()).unwrap();
        let (k, v) = (numbers.view(), numbers.view());
        let op = Attention {
            planned: planned.view(),
            q: numbers.view().slice(from..from + 128),
            q_stride,
            pages: KvPages::Bf16 { k, v },
            scratch: scratch.view_mut(),
            out: out.view_mut(),
        };
        attention(&*device, &op)
    };
    assert!(attend(&[3, 0], 0, 128).is_ok());
    says(attend(&[3, 0], 4, 128), "q must start at a multiple of 16 bytes");
    says(attend(&[3, 0], 0, 120), "q_stride");
    says(attend(&[3, 4], 0, 128), "the plan reads 5 pages, the cache has 4");
    says(plan(shape, &[3]).map(drop), "18 keys need 2 pages, not 1");
    says(plan(AttentionShape { dim: 72, ..shape }, &[3, 0]).map(drop), "not of 72");
    says(
        plan(AttentionShape { heads: 3, kv_heads: 2, ..shape }, &[3, 0]).map(drop),
        "3 heads over 2 KV heads",
    );
}
