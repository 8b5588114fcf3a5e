use half::f16;
use proptest::prelude::*;

use super::*;
use crate::cpu::cache::Precision;
use crate::cpu::rope::Rotations;
use crate::{BlockId, Rope, RopePairing, Sequence};

const LAYERS: usize = 2;
const LAYER: usize = 1;
/// No rotation: attention sees the numbers as they are.
const ROPE: Rope = Rope { frequencies: Vec::new(), pairing: RopePairing::Halves };

/// Q, K and V of one sequence: `[tokens][heads + 2 kv_heads][dim]`.
#[derive(Clone, Debug)]
struct Text {
    heads: Heads,
    qkv: Vec<f32>,
}

/// Sequences in one cache, run step by step.
struct Run {
    pool: Pool,
    isa: Isa,
    attention: Attention,
    rotations: Rotations,
    cache: Cache,
    heads: Heads,
    free: Vec<BlockId>,
}

/// A sequence under way.
#[derive(Clone, Default)]
struct State {
    done: usize,
    blocks: Vec<BlockId>,
    out: Vec<f32>,
}

// === impl Text ===

impl Text {
    fn new(heads: Heads, tokens: usize, seed: u64) -> Self {
        let len = tokens * (heads.heads + 2 * heads.kv_heads) * heads.dim;
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 * 2.0 - 2.0
        };
        Self { heads, qkv: std::iter::repeat_with(next).take(len).map(|x| x + 1.0).collect() }
    }

    fn stride(&self) -> usize {
        (self.heads.heads + 2 * self.heads.kv_heads) * self.heads.dim
    }

    fn tokens(&self) -> usize {
        self.qkv.len() / self.stride()
    }

    fn rows(&self, rows: std::ops::Range<usize>) -> &[f32] {
        &self.qkv[rows.start * self.stride()..rows.end * self.stride()]
    }

    /// Attention by its definition, in f64, over what a cache of that precision holds.
    fn reference(&self, precision: Precision) -> Vec<f64> {
        let Heads { heads, kv_heads, dim, scale, window } = self.heads;
        let at = |token: usize, head: usize| &self.qkv[token * self.stride() + head * dim..][..dim];
        let stored = |x: &f32| match precision {
            Precision::Half => f16::from_f32(*x).to_f64(),
            Precision::Single => f64::from(*x),
        };
        let mut out = Vec::new();
        for token in 0..self.tokens() {
            for head in 0..heads {
                let (q, kv) = (at(token, head), head / (heads / kv_heads));
                let score = |past: usize| -> f64 {
                    let k = at(past, heads + kv);
                    q.iter().zip(k).map(|(q, k)| f64::from(*q) * stored(k)).sum::<f64>() * f64::from(scale)
                };
                let first = window.map_or(0, |window| (token + 1).saturating_sub(window));
                let scores: Vec<f64> = (first..=token).map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..dim {
                    let value =
                        |past: usize| weights[past - first] * stored(&at(past, heads + kv_heads + kv)[d]);
                    out.push((first..=token).map(value).sum::<f64>() / sum);
                }
            }
        }
        out
    }
}

// === impl Run ===

impl Run {
    /// A poisoned cache for `tokens` tokens, whose blocks are handed out in an order given by `seed`.
    fn new(isa: Isa, threads: usize, heads: Heads, tokens: usize, seed: u64) -> Self {
        Self::with(Precision::Half, isa, threads, heads, tokens, seed)
    }

    fn with(precision: Precision, isa: Isa, threads: usize, heads: Heads, tokens: usize, seed: u64) -> Self {
        let blocks = tokens.div_ceil(BLOCK_TOKENS) + 64;
        let mut cache = Cache::new(Shape::new(LAYERS, heads, precision), blocks).unwrap();
        cache.poison();
        let mut free: Vec<BlockId> = (0..blocks as u32).map(BlockId).collect();
        free.sort_by_key(|block| (u64::from(block.0) + 1).wrapping_mul(seed | 1) % 65_537);
        let pool = Pool::new(threads).unwrap();
        Self {
            pool,
            isa,
            attention: Attention::default(),
            rotations: Rotations::default(),
            cache,
            heads,
            free,
        }
    }

    /// Runs the next `rows` tokens of each text in one step.
    fn step(&mut self, texts: &[Text], states: &mut [State], rows: &[usize]) {
        let mut batch = Batch::default();
        let mut qkv = Vec::new();
        for ((text, state), &rows) in texts.iter().zip(&mut *states).zip(rows) {
            let end = state.done + rows;
            while state.blocks.len() * BLOCK_TOKENS < end {
                state.blocks.push(self.free.pop().unwrap());
            }
            let (first_row, blocks) = (batch.tokens.len(), state.blocks.clone());
            batch.sequences.push(Sequence { first_row, rows, position: state.done, blocks });
            batch.tokens.resize(first_row + rows, 0);
            qkv.extend_from_slice(text.rows(state.done..end));
        }
        let Self { pool, isa, heads, cache, .. } = self;
        self.rotations.run(pool, *isa, &batch, LAYER, *heads, &ROPE, None, &mut qkv, cache);
        let width = heads.heads * heads.dim;
        let mut out = vec![f32::NAN; batch.tokens.len() * width];
        let step = Step { batch: &batch, layer: LAYER, heads: *heads, qkv: &qkv, cache };
        self.attention.run(pool, *isa, step, &mut out);
        for (state, sequence) in states.iter_mut().zip(&batch.sequences) {
            state.out.extend_from_slice(&out[sequence.first_row * width..][..sequence.rows * width]);
            state.done += sequence.rows;
        }
    }

    /// Runs one text alone, cut into steps of `chunk` tokens.
    fn alone(&mut self, text: &Text, chunk: usize) -> Vec<f32> {
        let mut states = [State::default()];
        while states[0].done < text.tokens() {
            let rows = chunk.min(text.tokens() - states[0].done);
            self.step(std::slice::from_ref(text), &mut states, &[rows]);
        }
        let [state] = states;
        self.free.extend(state.blocks);
        state.out
    }
}

fn heads() -> impl Strategy<Value = Heads> {
    let dim = prop_oneof![Just(8), Just(16), Just(24), Just(64), Just(80), Just(128), Just(256)];
    let group = prop_oneof![7 => 1usize..8, 1 => Just(48)];
    let window = prop_oneof![2 => Just(None), 1 => (1usize..200).prop_map(Some)];
    (1usize..4, group, dim, window).prop_map(|(kv_heads, group, dim, window)| Heads {
        heads: kv_heads * group,
        kv_heads,
        dim,
        scale: 2.0 * (dim as f32).powf(-0.5),
        window,
    })
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn attention_is_what_it_is_defined_as(
        heads in heads(), tokens in 1usize..200, chunk in 1usize..200, single: bool, seed: u64,
    ) {
        let precision = if single { Precision::Single } else { Precision::Half };
        let text = Text::new(heads, tokens, seed);
        let out = Run::with(precision, Isa::detect(), 2, heads, tokens, seed).alone(&text, chunk);
        for (i, (&y, expected)) in out.iter().zip(text.reference(precision)).enumerate() {
            prop_assert!((f64::from(y) - expected).abs() < 5e-5, "{}: {} {}", i, y, expected);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_however_it_is_run(
        heads in heads(),
        lengths in proptest::collection::vec(1usize..400, 1..5),
        chunks in proptest::collection::vec(prop_oneof![Just(1usize), 1usize..150], 1..9),
        threads in 1usize..4,
        seed: u64,
    ) {
        let texts: Vec<Text> =
            lengths.iter().enumerate().map(|(i, &n)| Text::new(heads, n, seed.wrapping_add(i as u64))).collect();
        let total = lengths.iter().sum();
        let mut whole = Run::new(Isa::detect(), 1, heads, total, seed);
        let expected: Vec<_> = texts.iter().map(|text| bits(&whole.alone(text, text.tokens()))).collect();

        let mut run = Run::new(Isa::detect(), threads, heads, total, !seed);
        let mut states = vec![State::default(); texts.len()];
        for step in 0.. {
            let rows: Vec<usize> = texts
                .iter()
                .zip(&states)
                .enumerate()
                .map(|(i, (text, state))| chunks[(step + i) % chunks.len()].min(text.tokens() - state.done))
                .collect();
            if rows.iter().all(|&rows| rows == 0) {
                break;
            }
            run.step(&texts, &mut states, &rows);
        }
        for (state, expected) in states.iter().zip(expected) {
            prop_assert_eq!(bits(&state.out), expected);
        }
    }

    #[test]
    fn instruction_sets_give_the_same_bits(
        heads in heads(), tokens in 1usize..100, chunk in 1usize..100, seed: u64,
    ) {
        let text = Text::new(heads, tokens, seed);
        let outs: Vec<_> = Isa::available()
            .into_iter()
            .map(|isa| bits(&Run::new(isa, 2, heads, tokens, seed).alone(&text, chunk)))
            .collect();
        for out in &outs {
            prop_assert_eq!(out, &outs[0]);
        }
    }
}

#[test]
fn a_long_decode_has_the_same_bits_on_any_number_of_threads() {
    let heads = Heads { heads: 6, kv_heads: 2, dim: 32, scale: 0.3, window: None };
    let text = Text::new(heads, 3000, 7);
    let decode = |threads: usize| {
        let mut run = Run::new(Isa::detect(), threads, heads, 3000, 7);
        let mut states = [State::default()];
        run.step(std::slice::from_ref(&text), &mut states, &[2990]);
        for rows in [1, 2, 7] {
            run.step(std::slice::from_ref(&text), &mut states, &[rows]);
        }
        bits(&states[0].out)
    };
    let whole = bits(&Run::new(Isa::detect(), 1, heads, 3000, 7).alone(&text, 3000));
    for threads in [1, 2, 3, 8] {
        assert_eq!(decode(threads), whole, "{threads} threads");
    }
}

#[test]
fn a_batch_that_does_not_fit_its_memory_is_refused() {
    let heads = Heads { heads: 2, kv_heads: 1, dim: 8, scale: 1.0, window: None };
    let cache = Cache::new(Shape::new(1, heads, Precision::Half), 1).unwrap();
    // Two rows of 32 numbers in, of 16 out.
    let fits = |heads: Heads, rows: usize, blocks: usize, qkv: usize, out: usize| {
        let blocks = vec![BlockId(0); blocks];
        let sequences = vec![Sequence { first_row: 0, rows, position: 15, blocks }];
        let (batch, qkv) = (Batch::new(vec![0; rows], sequences), vec![0.0; qkv]);
        let step = Step { batch: &batch, layer: 0, heads, qkv: &qkv, cache: &cache };
        std::panic::catch_unwind(|| step.check(out)).is_ok()
    };
    assert!(fits(heads, 2, 2, 64, 32));
    assert!(!fits(heads, 2, 1, 64, 32), "the second row is in a second block");
    assert!(!fits(heads, 2, 2, 63, 32) && !fits(heads, 2, 2, 64, 31));
    assert!(!fits(Heads { dim: 16, ..heads }, 2, 2, 999, 999));
}
