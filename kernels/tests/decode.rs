//! One layer of a small random decoder, run through the CPU backend as a worker would run it.

#![allow(clippy::unwrap_used)] // in what the tests share

use bytes::Bytes;
use volley_kernels::cpu::{Activations, Buffer, Cache, CpuBackend, CpuOptions, Isa, Table, Vector};
use volley_kernels::{
    Activation, Backend, Batch, BlockId, Content, DType, Draw, Error, Heads, Norm, Rope, RopePairing, Rotary,
    Sequence, StepLimits, Tensor,
};

const HIDDEN: usize = 64;
const INNER: usize = 96;
const VOCABULARY: usize = 300;
const HEADS: Heads = Heads { heads: 4, kv_heads: 2, dim: 16, scale: 0.25, window: None };
const ATTENTION: usize = HEADS.heads * HEADS.dim;
const QKV: usize = (HEADS.heads + 2 * HEADS.kv_heads) * HEADS.dim;
const TEXT: [u32; 90] = {
    let mut text = [0; 90];
    let mut i = 0;
    while i < text.len() {
        text[i] = (i * i * 7 + 11 * i) as u32 % VOCABULARY as u32;
        i += 1;
    }
    text
};

/// The model's numbers.
struct Weights {
    embedding: Tensor,
    q: Tensor,
    q_bias: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gain: Tensor,
}

struct Model<B: Backend> {
    backend: B,
    table: B::Table,
    norm: Norm<B::Vector>,
    qkv: B::Linear,
    output: B::Linear,
    gated: B::Linear,
    down: B::Linear,
    head: B::Linear,
    cache: B::Cache,
    x: B::Buffer,
    qkv_rows: B::Buffer,
    attention: B::Buffer,
    inner: B::Buffer,
    logits: B::Buffer,
    rope: B::Rope,
    step: B::Step,
}

// === impl Weights ===

impl Weights {
    fn new() -> Self {
        Self {
            embedding: matrix("embedding", VOCABULARY, HIDDEN, 1),
            q: matrix("q", ATTENTION, HIDDEN, 2),
            q_bias: vector("q bias", ATTENTION, 3),
            k: matrix("k", HEADS.kv_heads * HEADS.dim, HIDDEN, 4),
            v: matrix("v", HEADS.kv_heads * HEADS.dim, HIDDEN, 5),
            output: matrix("output", HIDDEN, ATTENTION, 6),
            gate: matrix("gate", INNER, HIDDEN, 7),
            up: matrix("up", INNER, HIDDEN, 8),
            down: matrix("down", HIDDEN, INNER, 9),
            gain: vector("gain", HIDDEN, 10),
        }
    }

    /// Logits of all positions of a text, by the definitions, in f64.
    fn reference(&self, text: &[u32]) -> Vec<Vec<f64>> {
        let mut rows: Vec<Vec<f64>> = text
            .iter()
            .map(|&token| numbers(&self.embedding)[token as usize * HIDDEN..][..HIDDEN].to_vec())
            .collect();
        let gain = numbers(&self.gain);
        let norm = |x: &[f64]| -> Vec<f64> {
            let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + 1e-5).sqrt();
            x.iter().zip(&gain).map(|(x, gain)| x * scale * gain).collect()
        };
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, row) in rows.iter().enumerate() {
            let x = norm(row);
            let mut q = product(&self.q, &x);
            q.iter_mut().zip(numbers(&self.q_bias)).for_each(|(q, bias)| *q += bias);
            let mut k = product(&self.k, &x);
            rotate(&mut q, position);
            rotate(&mut k, position);
            queries.push(q);
            keys.push(k);
            values.push(product(&self.v, &x));
        }
        for (position, row) in rows.iter_mut().enumerate() {
            let mut attention = Vec::new();
            for head in 0..HEADS.heads {
                let at = |row: &Vec<f64>, head: usize| row[head * HEADS.dim..][..HEADS.dim].to_vec();
                let (q, kv) = (at(&queries[position], head), head / 2);
                let weights: Vec<f64> =
                    (0..=position).map(|past| (dot(&q, &at(&keys[past], kv)) * 0.25).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..HEADS.dim {
                    let sum: f64 = weights.iter().zip(&values).map(|(w, v)| w * at(v, kv)[d]).sum();
                    attention.push(sum / total);
                }
            }
            row.iter_mut().zip(product(&self.output, &attention)).for_each(|(x, y)| *x += y);
            let x = norm(row);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let inner: Vec<f64> = product(&self.gate, &x)
                .iter()
                .zip(product(&self.up, &x))
                .map(|(g, u)| silu(*g) * u)
                .collect();
            row.iter_mut().zip(product(&self.down, &inner)).for_each(|(x, y)| *x += y);
        }
        rows.iter().map(|row| product(&self.embedding, &norm(row))).collect()
    }
}

// === impl Model ===

impl Model<CpuBackend> {
    fn cpu(threads: usize, activations: Activations, isa: Option<Isa>) -> Result<Self, Error> {
        Self::new(CpuBackend::new(CpuOptions { threads, activations, isa })?, &Weights::new())
    }
}

impl<B: Backend> Model<B> {
    fn new(backend: B, w: &Weights) -> Result<Self, Error> {
        let qkv = [(w.q.clone(), Some(w.q_bias.clone())), (w.k.clone(), None), (w.v.clone(), None)];
        Ok(Self {
            table: backend.table(&w.embedding)?,
            norm: Norm::Rms { gain: backend.vector(&w.gain)?, epsilon: 1e-5 },
            qkv: backend.linear(&qkv)?,
            output: backend.linear(&[(w.output.clone(), None)])?,
            gated: backend.gated(&w.gate, &w.up)?,
            down: backend.linear(&[(w.down.clone(), None)])?,
            head: backend.linear(&[(w.embedding.clone(), None)])?,
            cache: backend.cache(1, HEADS, 64)?,
            x: backend.buffer(256, HIDDEN, Content::Residual)?,
            qkv_rows: backend.buffer(256, QKV, Content::Activations)?,
            attention: backend.buffer(256, ATTENTION, Content::Activations)?,
            inner: backend.buffer(256, INNER, Content::Activations)?,
            logits: backend.buffer(256, VOCABULARY, Content::Logits)?,
            rope: backend.rope(&Rope { frequencies: frequencies(), pairing: RopePairing::Halves })?,
            step: backend.step(&StepLimits {
                rows: 256,
                sequences: 4,
                blocks: 6,
                draws: 256,
                width: HIDDEN,
                hidden: INNER,
                heads: HEADS,
                vocab: VOCABULARY,
            })?,
            backend,
        })
    }

    /// Runs a step; gives the logits of all of its rows.
    fn step(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        let rows = batch.tokens.len();
        let Self { backend, x, qkv_rows, attention, inner, logits, norm, cache, rope, step, .. } = self;
        backend.begin(step, batch.clone());
        backend.embed(step, &self.table, None, x);
        backend.norm_linear(step, x, norm, &self.qkv, qkv_rows);
        backend.rope_and_store(step, 0, HEADS, Rotary { rope, norms: None }, qkv_rows, cache);
        backend.attention(step, 0, HEADS, qkv_rows, cache, attention);
        backend.linear_add(step, attention, &self.output, x);
        backend.activated_linear(step, x, norm, &self.gated, Activation::Silu, inner);
        backend.linear_add(step, inner, &self.down, x);
        // Last to first, to show that rows may be picked.
        let picked: Vec<usize> = (0..rows).rev().collect();
        backend.logits(step, &picked, x, norm, &self.head, logits);
        let all = backend.read(logits, rows).unwrap();
        backend.finish(step).unwrap();
        all.chunks(VOCABULARY).rev().map(<[f32]>::to_vec).collect()
    }

    /// The text alone, cut into steps of `chunk` tokens, in the blocks from `block` on.
    fn alone(&mut self, chunk: usize, block: u32) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        while all.len() < TEXT.len() {
            let end = TEXT.len().min(all.len() + chunk);
            all.extend(self.step(&batch(&[(all.len(), end, block)])));
        }
        all
    }
}

/// Tokens `start..end` of the text for each sequence, in the blocks from `block` on.
fn batch(sequences: &[(usize, usize, u32)]) -> Batch {
    let mut batch = Batch::default();
    for &(start, end, block) in sequences {
        let (first_row, rows) = (batch.tokens.len(), end - start);
        batch.tokens.extend_from_slice(&TEXT[start..end]);
        // Backwards, since a table may name any blocks.
        let blocks = (0..6).rev().map(|i| BlockId(block + i)).collect();
        batch.sequences.push(Sequence { first_row, rows, position: start, blocks });
    }
    batch
}

fn frequencies() -> Vec<f32> {
    (0..HEADS.dim / 2).map(|i| 100f32.powf(-2.0 * i as f32 / HEADS.dim as f32)).collect()
}

fn rotate(row: &mut [f64], position: usize) {
    for head in row.chunks_mut(HEADS.dim) {
        let (first, second) = head.split_at_mut(HEADS.dim / 2);
        for ((a, b), frequency) in first.iter_mut().zip(second).zip(frequencies()) {
            let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn product(w: &Tensor, x: &[f64]) -> Vec<f64> {
    numbers(w).chunks(w.cols).map(|row| dot(row, x)).collect()
}

/// A random Q8_0 matrix, whose products are about as large as what it multiplies.
fn matrix(name: &str, rows: usize, cols: usize, seed: u64) -> Tensor {
    let mut random = random(seed);
    let mut data = Vec::new();
    for _ in 0..rows * cols / 32 {
        data.extend(half::f16::from_f32(0.014 / (cols as f32).sqrt()).to_le_bytes());
        data.extend((0..32).map(|_| (random() * 127.0) as i8 as u8));
    }
    Tensor::new(name, DType::Q8_0, rows, cols, Bytes::from(data)).unwrap()
}

fn vector(name: &str, len: usize, seed: u64) -> Tensor {
    let mut random = random(seed);
    let data: Vec<u8> = (0..len).flat_map(|_| (1.0 + 0.3 * random()).to_le_bytes()).collect();
    Tensor::new(name, DType::F32, 1, len, Bytes::from(data)).unwrap()
}

/// Numbers in −1..1.
fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// What a tensor of these two types stores.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    if tensor.dtype == DType::F32 {
        return tensor.data.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
    }
    let block = |block: &[u8]| {
        let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f64();
        block[2..].iter().map(|&code| scale * f64::from(code as i8)).collect::<Vec<_>>()
    };
    tensor.data.chunks(34).flat_map(block).collect()
}

#[test]
fn logits_are_those_of_the_definition() -> Result<(), Error> {
    let reference = Weights::new().reference(&TEXT);
    // In f32 only sums are rounded; 8-bit activations, with keys and values in halves, leave more.
    for (activations, tolerance) in [(Activations::F32, 1e-5), (Activations::Int8, 0.08)] {
        let logits = Model::cpu(2, activations, None)?.alone(TEXT.len(), 0);
        let differences = logits.iter().flatten().zip(reference.iter().flatten());
        let worst = differences.map(|(y, expected)| (f64::from(*y) - expected).abs()).fold(0.0, f64::max);
        let largest = reference.iter().flatten().fold(0f64, |a, b| a.max(b.abs()));
        assert!(worst <= tolerance * largest, "{activations:?}: {worst} of {largest}");
    }
    Ok(())
}

#[test]
fn a_token_s_logits_have_the_same_bits_however_they_are_computed() -> Result<(), Error> {
    for activations in [Activations::Int8, Activations::F32] {
        let expected = Model::cpu(1, activations, None)?.alone(TEXT.len(), 0);
        for isa in Isa::available() {
            assert_eq!(Model::cpu(3, activations, Some(isa))?.alone(TEXT.len(), 7), expected, "{isa:?}");
        }
        for (threads, chunk, block) in [(1, 1, 0), (2, 17, 30), (3, 64, 20)] {
            let logits = Model::cpu(threads, activations, None)?.alone(chunk, block);
            assert_eq!(logits, expected, "{threads} threads, chunks of {chunk}");
        }
        let mut model = Model::cpu(2, activations, None)?;
        model.step(&batch(&[(0, 40, 6), (0, 63, 12), (0, 5, 24)]));
        let mixed = model.step(&batch(&[(40, 41, 6), (63, 90, 12), (0, 20, 0), (5, 80, 24)]));
        let rows = (40..41).chain(63..90).chain(0..20).chain(5..80);
        assert!(mixed.iter().zip(rows).all(|(logits, row)| *logits == expected[row]));
    }
    Ok(())
}

#[test]
fn a_copied_block_continues_as_the_original_does() -> Result<(), Error> {
    let mut model = Model::cpu(2, Activations::Int8, None)?;
    let expected = model.alone(TEXT.len(), 0);
    let copies: Vec<_> = (0..6).map(|i| (BlockId(i), BlockId(50 + i))).collect();
    model.backend.copy_blocks(&mut model.cache, &copies);
    assert_eq!(model.step(&batch(&[(85, 90, 50)])), expected[85..]);
    Ok(())
}

#[test]
fn a_step_ends_in_draws() -> Result<(), Error> {
    let mut model = Model::cpu(2, Activations::Int8, None)?;
    let rows = model.step(&batch(&[(0, 3, 0)]));
    let draw = Draw { logprobs: Some(1), ..Draw::default() };
    let drawn = model.backend.draw(&mut model.step, &mut model.logits, &vec![draw; 3])?.wait()?;
    // `step` gives rows in order; the logits were picked in reverse.
    for (drawn, row) in drawn.iter().zip(rows.iter().rev()) {
        let best = row.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(row[drawn.token as usize], best);
        let logprobs = drawn.logprobs.as_ref().unwrap();
        assert_eq!(logprobs.top, [(drawn.token, logprobs.logprob)]);
    }
    Ok(())
}

#[test]
fn unusable_shapes_and_instruction_sets_are_refused() -> Result<(), Error> {
    let backend = CpuBackend::new(CpuOptions { threads: 1, activations: Activations::Int8, isa: None })?;
    let refused = |heads| matches!(backend.cache(1, heads, 4), Err(Error::Unsupported(_)));
    assert!(refused(Heads { dim: 12, ..HEADS }) && refused(Heads { kv_heads: 3, ..HEADS }));
    assert!(refused(Heads { kv_heads: 0, ..HEADS }) && refused(Heads { dim: 0, ..HEADS }));
    assert!(matches!(backend.cache(1, HEADS, usize::MAX), Err(Error::Memory { .. })));
    assert!(matches!(backend.buffer(usize::MAX, 2, Content::Activations), Err(Error::Memory { .. })));
    assert!(matches!(backend.vector(&matrix("gain", 2, 32, 1)), Err(Error::Tensor { .. })));
    assert_eq!(backend.numerics().unwrap(), "cpu-f16kv-int8act-v1");
    Ok(())
}

/// A worker keeps these in a struct of its own, in another thread than it was made in.
#[test]
fn parts_can_move_to_the_step_thread() {
    fn movable<T: Send>() {}
    movable::<(CpuBackend, Table, Vector, Buffer, Cache)>();
}
