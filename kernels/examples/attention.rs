//! Times attention, its neighbours and the sampler on this machine, beside the machine's own limits.
//!
//! `cargo run --release -p volley-kernels --example attention [threads]`
//!
//! Shapes are SmolLM2-135M's: 30 layers, 9 heads over 3 KV heads of 64 dimensions, 49152 tokens.

#![allow(unsafe_code)] // the multiply-add limit wants the widest registers

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use volley_kernels::cpu::{Activations, Buffer, Cache, CpuBackend, CpuOptions, Pool};
use volley_kernels::{
    BLOCK_TOKENS, Backend, Batch, BlockId, Content, DType, Draw, Error, Heads, History, Mirostat, Norm,
    Penalties, Rope, RopePairing, Rotary, Sequence, Tensor,
};

const LAYERS: usize = 30;
const HEADS: Heads = Heads { heads: 9, kv_heads: 3, dim: 64, scale: 0.125, window: None, softcap: None };
const VOCABULARY: usize = 49152;

/// What the machine can do.
struct Limits {
    flops: f64,
    bytes: f64,
}

struct Bench {
    backend: CpuBackend,
    limits: Limits,
    qkv: Buffer,
    out: Buffer,
    cache: Cache,
    rope: Rope,
}

fn main() -> Result<(), Error> {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let backend = CpuBackend::new(CpuOptions { threads, activations: Activations::Int8, isa: None })?;
    let limits = Limits { flops: multiply_adds(backend.pool()), bytes: reads(backend.pool()) };
    println!("{threads} threads, {:?}", backend.isa());
    println!("f32 multiply-add  {:7.1} GFLOP/s", limits.flops / 1e9);
    println!("read 256 MiB      {:7.1} GB/s", limits.bytes / 1e9);
    sections(backend.pool());
    let columns = (HEADS.heads + 2 * HEADS.kv_heads) * HEADS.dim;
    let mut bench = Bench {
        qkv: backend.buffer(2048, columns, Content::Activations)?,
        out: backend.buffer(2048, HEADS.heads * HEADS.dim, Content::Activations)?,
        cache: backend.cache(LAYERS, HEADS, 4096)?,
        rope: Rope { frequencies: vec![0.5; HEADS.dim / 2], pairing: RopePairing::Adjacent, magnitude: 1.0 },
        backend,
        limits,
    };
    bench.fill()?;
    println!("\nall {LAYERS} layers                 rope+store    attention");
    for (position, rows) in [(0, 128), (0, 512), (0, 2048), (7680, 512), (512, 16)] {
        bench.run(&format!("prompt {rows} at {position}"), &[(position, rows)]);
    }
    for (sequences, position) in [(1, 100), (1, 512), (1, 2048), (1, 8191), (16, 300), (64, 300), (64, 900)] {
        bench.run(&format!("{sequences} decodes at {position}"), &vec![(position, 1); sequences]);
    }
    bench.run("32 decodes, prompt 256", &[vec![(300, 1); 32], vec![(0, 256)]].concat());
    norms(&bench.backend)?;
    draws(&bench.backend)
}

// === impl Bench ===

impl Bench {
    /// Writes the whole cache and the QKV rows.
    fn fill(&mut self) -> Result<(), Error> {
        let columns = (HEADS.heads + 2 * HEADS.kv_heads) * HEADS.dim;
        let table = self.backend.table(&random("rows", 2048, columns))?;
        let tokens: Vec<u32> = (0..2048).collect();
        let mut rows = Batch::new(tokens.clone(), Vec::new());
        self.backend.embed(&mut rows, &table, 1.0, None, &mut self.qkv);
        for block in (0..4096).step_by(128) {
            let blocks = (block..block + 128).map(BlockId).collect();
            let sequences = vec![Sequence { first_row: 0, rows: 2048, position: 0, blocks }];
            let mut batch = Batch::new(tokens.clone(), sequences);
            for layer in 0..LAYERS {
                let Self { backend, rope, qkv, cache, .. } = self;
                backend.rope_and_store(&mut batch, layer, HEADS, Rotary { rope, norms: None }, qkv, cache);
                backend.embed(&mut rows, &table, 1.0, None, qkv);
            }
        }
        Ok(())
    }

    fn run(&mut self, name: &str, sequences: &[(usize, usize)]) {
        let mut batch = Batch::default();
        let (mut pairs, mut read) = (0, 0);
        let mut next = 0;
        for &(position, rows) in sequences {
            let count = (position + rows).div_ceil(BLOCK_TOKENS) as u32;
            // Blocks are in no order, as after a while of serving.
            let blocks = (next..next + count).map(|block| BlockId(block * 1237 % 4096)).collect();
            next += count;
            let first_row = batch.tokens.len();
            batch.tokens.resize(first_row + rows, 0);
            batch.sequences.push(Sequence { first_row, rows, position, blocks });
            pairs += (position + 1..=position + rows).sum::<usize>();
            read += position + rows;
        }
        let (mut rope_time, mut attention_time) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            let (mut rope, mut attention) = (Duration::ZERO, Duration::ZERO);
            for layer in 0..LAYERS {
                let start = Instant::now();
                let (backend, qkv, cache) = (&self.backend, &mut self.qkv, &mut self.cache);
                let rotary = Rotary { rope: &self.rope, norms: None };
                backend.rope_and_store(&mut batch, layer, HEADS, rotary, qkv, cache);
                let between = Instant::now();
                backend.attention(&mut batch, layer, HEADS, qkv, cache, &mut self.out);
                rope += between - start;
                attention += between.elapsed();
            }
            rope_time.push(rope);
            attention_time.push(attention);
        }
        let (rope, attention) = (median(rope_time), median(attention_time));
        let flops = (4 * pairs * HEADS.heads * HEADS.dim * LAYERS) as f64 / attention.as_secs_f64();
        let bytes = (4 * read * HEADS.kv_heads * HEADS.dim * LAYERS) as f64 / attention.as_secs_f64();
        println!(
            "{name:24} {:11.2} ms {:9.2} ms  {:3.0} % of the multiply-adds, {:3.0} % of the reads",
            rope.as_secs_f64() * 1e3,
            attention.as_secs_f64() * 1e3,
            100.0 * flops / self.limits.flops,
            100.0 * bytes / self.limits.bytes,
        );
    }
}

/// Norm and quantization: what a product with hardly any weights takes.
fn norms(backend: &CpuBackend) -> Result<(), Error> {
    println!();
    let table = backend.table(&random("x", 1024, 576))?;
    let norm = Norm::Rms { gain: backend.vector(&random("gain", 1, 576))?, epsilon: 1e-5 };
    let tiny = Tensor::new("tiny", DType::Q8_0, 16, 576, Bytes::from(vec![1; 16 * 18 * 34]))?;
    let tiny = backend.linear(&[(tiny, None)])?;
    let mut x = backend.buffer(1024, 576, Content::Residual)?;
    let mut out = backend.buffer(1024, 16, Content::Activations)?;
    for rows in [1, 16, 64, 512] {
        let mut batch = Batch::new((0..rows as u32).collect(), Vec::new());
        backend.embed(&mut batch, &table, 1.0, None, &mut x);
        let time = time(|| backend.norm_linear(&mut batch, &mut x, Some(&norm), &tiny, &mut out));
        println!("norm {rows:4} rows of 576 → 16    {:9.2} µs", time.as_secs_f64() * 1e6);
    }
    Ok(())
}

fn draws(backend: &CpuBackend) -> Result<(), Error> {
    println!();
    let table = backend.table(&random_logits())?;
    let mut logits = backend.buffer(64, VOCABULARY, Content::Logits)?;
    let mut batch = Batch::new((0..64).collect(), Vec::new());
    backend.embed(&mut batch, &table, 1.0, None, &mut logits);
    let greedy = Draw::default();
    let mut history = History::default();
    (0..1000).for_each(|token| history.generated(token * 7));
    let penalties = Penalties { frequency: 0.1, presence: 0.1, repetition: 1.1, history: history.into() };
    let sampled = Draw { temperature: 0.7, ..greedy.clone() };
    for (name, draw) in [
        ("greedy", greedy.clone()),
        ("temperature", sampled.clone()),
        ("temperature, top-p", Draw { top_p: 0.9, ..sampled.clone() }),
        ("hot, top-p", Draw { top_p: 0.9, temperature: 30.0, ..sampled.clone() }),
        ("temperature, all filters", Draw { top_p: 0.9, top_k: 40, min_p: 0.05, ..sampled.clone() }),
        ("typical-p", Draw { typical_p: 0.9, ..sampled.clone() }),
        ("mirostat", Draw { mirostat: Some(Mirostat::start(3.0, 0.1)), ..sampled.clone() }),
        ("penalties, 1000 tokens", Draw { penalties: Some(penalties), ..sampled }),
        ("greedy, 5 log-probabilities", Draw { logprobs: Some(5), ..greedy }),
    ] {
        let one = time(|| _ = black_box(backend.draw(&mut batch, &mut logits, std::slice::from_ref(&draw))));
        let all = vec![draw; 64];
        let all = time(|| _ = black_box(backend.draw(&mut batch, &mut logits, &all)));
        let (one, all) = (one.as_secs_f64() * 1e6, all.as_secs_f64() * 1e3);
        println!("draw: {name:28} 1 row {one:8.1} µs   64 rows {all:7.2} ms");
    }
    Ok(())
}

/// Empty sections, and the overhead of one.
fn sections(pool: &Pool) {
    let time = time(|| (0..100).for_each(|_| pool.run(8, &|i| _ = black_box(i))));
    println!("section of 8 tasks {:6.2} µs", time.as_secs_f64() * 1e4);
}

/// Random logits, of which one in a thousand stands out as a model's do.
fn random_logits() -> Tensor {
    let mut logits = random("logits", 64, VOCABULARY);
    let mut data = logits.data.to_vec();
    for (i, number) in data.chunks_exact_mut(4).enumerate() {
        let logit = f32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        let logit = if i % 1009 == 0 { 12.0 + 2.0 * logit } else { logit };
        number.copy_from_slice(&logit.to_le_bytes());
    }
    logits.data = Bytes::from(data);
    logits
}

fn random(name: &str, rows: usize, cols: usize) -> Tensor {
    let mut state = 88172645463325252u64;
    let numbers = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Of three uniform numbers: a bell.
        let part = |shift: u32| ((state >> shift) & 0xffff) as f32 / 65536.0 - 0.5;
        ((part(0) + part(16) + part(32)) * 4.0).to_le_bytes()
    });
    let data: Vec<u8> = numbers.take(rows * cols).flatten().collect();
    Tensor { name: name.into(), dtype: DType::F32, rows, cols, data: Bytes::from(data), scales: None }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn time(mut f: impl FnMut()) -> Duration {
    f();
    let once = || {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    median(std::iter::repeat_with(once).take(15).collect())
}

/// Floating-point operations per second of fused multiply-adds in registers.
fn multiply_adds(pool: &Pool) -> f64 {
    const STEPS: usize = 200_000;
    let tasks = pool.threads() * 16;
    let time = time(|| {
        pool.run(tasks, &|_| {
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: just checked.
                return unsafe { multiply_add_avx512(STEPS) };
            }
            multiply_add(STEPS);
        });
    });
    (2 * 16 * 12 * STEPS * tasks) as f64 / time.as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(steps: usize) {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
    let mut sums = [_mm512_setzero_ps(); 12];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    for sum in sums {
        black_box(_mm512_reduce_add_ps(sum));
    }
}

fn multiply_add(steps: usize) {
    let (a, b) = (black_box(0.999f32), black_box(1e-3f32));
    let mut sums = [[0f32; 16]; 12];
    for _ in 0..steps {
        for sum in sums.as_flattened_mut() {
            *sum = sum.mul_add(a, b);
        }
    }
    black_box(sums);
}

/// Bytes per second that all threads read from memory together.
fn reads(pool: &Pool) -> f64 {
    let numbers = vec![1u64; 256 << 17];
    let sum = AtomicU64::new(0);
    let tasks = 256;
    let time = time(|| {
        pool.run(tasks, &|i| {
            let part = &numbers[i * numbers.len() / tasks..(i + 1) * numbers.len() / tasks];
            sum.fetch_add(part.iter().fold(0, |sum, x| sum ^ x), Relaxed);
        });
    });
    black_box(sum);
    (numbers.len() * 8) as f64 / time.as_secs_f64()
}
