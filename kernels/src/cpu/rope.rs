//! Norms of query and key heads, rotary positions, and the way of keys and values into the cache.
//!
//! Angles are `position · frequency` in f32, as Hugging Face computes them; their sines and cosines are
//! computed in f64 once per step, and shared by its layers.

use std::sync::{Arc, Mutex};

use super::cache::{Cache, Element, Precision, Shape};
use super::isa::Isa;
use super::norm::{load, norm_head};
use super::pool::Pool;
use super::scratch::{self, Shared};
use super::simd::{self, Kernel, Lanes, WIDTH};
use crate::{BLOCK_TOKENS, Batch, BlockId, Heads, Rope, RopePairing};

/// Rows of a task.
const TASK_ROWS: usize = 8;

/// The rotations of the last step.
#[derive(Default)]
pub(crate) struct Rotations(Mutex<Arc<Table>>);

/// Cosines and sines of each row and pair.
#[derive(Default)]
struct Table {
    positions: Vec<usize>,
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Where a row belongs.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    position: usize,
    block: BlockId,
}

/// Gains of the heads' norms, and what is added to the mean square.
#[derive(Clone, Copy)]
pub(crate) struct Gains<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) key: &'a [f32],
    pub(crate) epsilon: f32,
}

/// Norms, rotates and stores one row.
struct Store<'a> {
    /// `[heads × dim | kv_heads × dim | kv_heads × dim]`.
    row: &'a mut [f32],
    gains: Option<Gains<'a>>,
    cos: &'a [f32],
    sin: &'a [f32],
    pairing: RopePairing,
    heads: Heads,
    cache: &'a Cache,
    layer: usize,
    place: Place,
}

// === impl Rotations ===

impl Rotations {
    /// Norms and rotates the queries and keys of `qkv`; writes keys and values to the cache.
    ///
    /// # Panics
    /// If the shapes don't fit together.
    #[allow(clippy::too_many_arguments)] // the operation's operands
    pub(crate) fn run(
        &self,
        pool: &Pool,
        isa: Isa,
        batch: &Batch,
        layer: usize,
        heads: Heads,
        rope: &Rope,
        gains: Option<Gains<'_>>,
        qkv: &mut [f32],
        cache: &mut Cache,
    ) {
        let shape = cache.shape();
        assert_eq!(shape, Shape::new(shape.layers, heads, shape.precision), "the cache is for other heads");
        let pairs = rope.frequencies.len();
        assert!(2 * pairs <= heads.dim, "{pairs} pairs in heads of {} dimensions", heads.dim);
        let fits = |gains: Gains<'_>| gains.query.len() == heads.dim && gains.key.len() == heads.dim;
        assert!(gains.is_none_or(fits), "the gains are not for heads of {} dimensions", heads.dim);
        let places = places(batch);
        let table = self.table(&places, rope);
        let stride = (heads.heads + 2 * heads.kv_heads) * heads.dim;
        let end = places.iter().map(|place| place.row + 1).max().unwrap_or(0);
        assert!(end * stride <= qkv.len(), "more rows than the QKV buffer has");
        let (qkv, cache) = (Shared::new(qkv), &*cache);
        pool.run(places.len().div_ceil(TASK_ROWS), &|task| {
            let first = task * TASK_ROWS;
            for (i, &place) in places.iter().enumerate().skip(first).take(TASK_ROWS) {
                let angles = i * pairs..(i + 1) * pairs;
                // SAFETY: within the buffer, as checked above; each row is in one task.
                let row = unsafe { std::slice::from_raw_parts_mut(qkv.at(place.row * stride), stride) };
                let (cos, sin) = (&table.cos[angles.clone()], &table.sin[angles]);
                let pairing = rope.pairing;
                let store = Store { row, gains, cos, sin, pairing, heads, cache, layer, place };
                // SAFETY: this machine has `isa`.
                unsafe { simd::run(isa, store) };
            }
        });
    }

    /// The rotations of a step's rows: those of the last call, if they are the same.
    fn table(&self, places: &[Place], rope: &Rope) -> Arc<Table> {
        let mut last = scratch::lock(&self.0);
        let same = last.frequencies == rope.frequencies
            && last.positions.len() == places.len()
            && last.positions.iter().zip(places).all(|(&position, place)| position == place.position);
        if !same {
            *last = Arc::new(Table::new(places.iter().map(|place| place.position).collect(), rope));
        }
        last.clone()
    }
}

// === impl Table ===

impl Table {
    fn new(positions: Vec<usize>, rope: &Rope) -> Self {
        let angles = |&position: &usize| rope.frequencies.iter().map(move |f| f64::from(position as f32 * f));
        let (sin, cos) = positions.iter().flat_map(angles).map(sin_cos).unzip();
        Self { positions, frequencies: rope.frequencies.clone(), cos, sin }
    }
}

fn sin_cos(angle: f64) -> (f32, f32) {
    let (sin, cos) = angle.sin_cos();
    (sin as f32, cos as f32)
}

/// Where each row of a batch belongs.
fn places(batch: &Batch) -> Vec<Place> {
    let mut places = Vec::with_capacity(batch.tokens.len());
    for sequence in &batch.sequences {
        for i in 0..sequence.rows {
            let position = sequence.position + i;
            let block = sequence.blocks[position / BLOCK_TOKENS];
            places.push(Place { row: sequence.first_row + i, position, block });
        }
    }
    places
}

// === impl Store ===

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Heads { heads, kv_heads, dim, .. } = self.heads;
        for (i, head) in self.row[..(heads + kv_heads) * dim].chunks_exact_mut(dim).enumerate() {
            if let Some(Gains { query, key, epsilon }) = self.gains {
                // SAFETY: as the caller promises.
                unsafe { norm_head::<L>(head, if i < heads { query } else { key }, epsilon) };
            }
            rotate(head, self.cos, self.sin, self.pairing);
        }
        match self.cache.shape().precision {
            Precision::Half => self.store::<L, u16>(),
            Precision::Single => self.store::<L, f32>(),
        }
    }
}

impl Store<'_> {
    /// Writes the row's keys, rotated, and values to the cache.
    #[inline(always)]
    fn store<L: Lanes, E: Element + Default>(&self) {
        let Heads { heads, kv_heads, dim, .. } = self.heads;
        let (keys, values) = self.row[heads * dim..].split_at(kv_heads * dim);
        let slot = self.place.position % BLOCK_TOKENS;
        let value_stride = self.cache.shape().value_stride();
        for kv_head in 0..kv_heads {
            let (to_key, to_value) = self.cache.head::<E>(self.layer, self.place.block, kv_head);
            for start in (0..dim).step_by(WIDTH) {
                let at = kv_head * dim + start;
                let lanes = WIDTH.min(dim - start);
                // SAFETY: `head` gives whole heads; rows of V are padded to whole vectors.
                unsafe {
                    let mut numbers = [E::default(); WIDTH];
                    E::store(load::<L>(&keys[at..at + lanes]), numbers.as_mut_ptr());
                    for (d, &number) in numbers[..lanes].iter().enumerate() {
                        to_key.add((start + d) * BLOCK_TOKENS + slot).write(number);
                    }
                    E::store(load::<L>(&values[at..at + lanes]), to_value.add(slot * value_stride + start));
                }
            }
        }
    }
}

#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], pairing: RopePairing) {
    match pairing {
        RopePairing::Adjacent => {
            for ((pair, &cos), &sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                (pair[0], pair[1]) = turn(pair[0], pair[1], cos, sin);
            }
        }
        RopePairing::Halves => {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = turn(*a, *b, cos, sin);
            }
        }
    }
}

#[inline(always)]
fn turn(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin))
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::Sequence;

    const HEADS: Heads = Heads { heads: 4, kv_heads: 2, dim: 24, scale: 1.0, window: None };
    const STRIDE: usize = 8 * 24;

    fn batch() -> Batch {
        let blocks = vec![BlockId(2), BlockId(0)];
        let sequence = Sequence { first_row: 0, rows: 11, position: 9, blocks };
        Batch::new(vec![0; 11], vec![sequence])
    }

    fn rows() -> Vec<f32> {
        (0..11 * STRIDE).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect()
    }

    fn rotated(pairing: RopePairing, isa: Isa, threads: usize) -> (Vec<f32>, Cache) {
        let rope = Rope { frequencies: (0..8).map(|i| 0.7f32.powi(i)).collect(), pairing };
        let (mut qkv, pool) = (rows(), Pool::new(threads).unwrap());
        let mut cache = Cache::new(Shape::new(2, HEADS, Precision::Half), 3).unwrap();
        Rotations::default().run(&pool, isa, &batch(), 1, HEADS, &rope, None, &mut qkv, &mut cache);
        (qkv, cache)
    }

    /// What pair `i` of a head should become, by the definition.
    fn expected(head: &[f32], d: usize, position: usize, pairing: RopePairing) -> f64 {
        let (pair, second, other) = match pairing {
            _ if d >= 16 => return f64::from(head[d]),
            RopePairing::Adjacent => (d / 2, d % 2 == 1, d ^ 1),
            RopePairing::Halves => (d % 8, d >= 8, d ^ 8),
        };
        let angle = f64::from(position as f32 * 0.7f32.powi(pair as i32));
        let sign = if second { 1.0 } else { -1.0 };
        f64::from(head[d]) * angle.cos() + sign * f64::from(head[other]) * angle.sin()
    }

    #[test]
    fn queries_and_keys_turn_and_values_stay() {
        for pairing in [RopePairing::Adjacent, RopePairing::Halves] {
            let (turned, before) = (rotated(pairing, Isa::detect(), 2).0, rows());
            for (i, (&new, &old)) in turned.iter().zip(&before).enumerate() {
                let (row, column) = (i / STRIDE, i % STRIDE);
                if column < 6 * 24 {
                    let head = &before[i - column % 24..][..24];
                    let expected = expected(head, column % 24, 9 + row, pairing);
                    assert!((f64::from(new) - expected).abs() < 1e-6, "{pairing:?} {row} {column}");
                } else {
                    assert_eq!(new, old);
                }
            }
        }
    }

    #[test]
    fn keys_and_values_lie_where_their_position_says() {
        let (qkv, cache) = rotated(RopePairing::Halves, Isa::detect(), 2);
        for row in 0..11 {
            let (block, slot) = if 9 + row < 16 { (BlockId(2), 9 + row) } else { (BlockId(0), row - 7) };
            for kv_head in 0..2 {
                let (key, value) = cache.head::<u16>(1, block, kv_head);
                for d in 0..24 {
                    let column = row * STRIDE + kv_head * 24 + d;
                    // SAFETY: within the block.
                    let (k, v) = unsafe { (key.add(d * 16 + slot).read(), value.add(slot * 32 + d).read()) };
                    assert_eq!(k, f16::from_f32(qkv[column + 4 * 24]).to_bits());
                    assert_eq!(v, f16::from_f32(qkv[column + 6 * 24]).to_bits());
                }
            }
        }
    }

    #[test]
    fn instruction_sets_and_threads_give_the_same_bits() {
        for pairing in [RopePairing::Adjacent, RopePairing::Halves] {
            let reference = rotated(pairing, Isa::available()[0], 1).0;
            for isa in Isa::available() {
                assert_eq!(rotated(pairing, isa, 3).0, reference);
            }
        }
    }

    #[test]
    fn heads_are_normed_before_they_turn() {
        let gain = |first: f32| (0..24).map(|d| first + d as f32 / 24.0).collect::<Vec<f32>>();
        let (query, key) = (gain(0.5), gain(-2.0));
        let normed = |rope: &Rope, isa, gains, mut qkv: Vec<f32>| {
            let mut cache = Cache::new(Shape::new(2, HEADS, Precision::Half), 3).unwrap();
            let pool = Pool::new(2).unwrap();
            Rotations::default().run(&pool, isa, &batch(), 1, HEADS, rope, gains, &mut qkv, &mut cache);
            qkv
        };
        let rope = Rope { frequencies: vec![0.7, 0.2], pairing: RopePairing::Halves };
        let gains = Some(Gains { query: &query, key: &key, epsilon: 0.5 });
        let mut by_hand = rows();
        for (i, head) in by_hand.chunks_mut(24).enumerate() {
            let square = head.iter().map(|x| x * x).sum::<f32>() / 24.0;
            let gain = match i % 8 {
                0..4 => &query,
                4..6 => &key,
                _ => continue,
            };
            head.iter_mut().zip(gain).for_each(|(x, gain)| *x = *x / (square + 0.5).sqrt() * gain);
        }
        let expected = normed(&rope, Isa::detect(), None, by_hand);
        let got = normed(&rope, Isa::detect(), gains, rows());
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
        for isa in Isa::available() {
            assert_eq!(normed(&rope, isa, gains, rows()), got);
        }
        let still = Rope { frequencies: vec![], ..rope };
        assert_eq!(normed(&still, Isa::detect(), None, rows()), rows(), "a rotation without frequencies");
    }

    #[test]
    fn a_new_step_does_not_see_the_last_ones_angles() {
        let rotations = Rotations::default();
        let rope = |f: f32| Rope { frequencies: vec![f], pairing: RopePairing::Halves };
        let place = |position| [Place { row: 0, position, block: BlockId(0) }];
        let cos = |position: usize, f: f32| rotations.table(&place(position), &rope(f)).cos[0];
        for (position, f) in [(1, 1.0), (2, 1.0), (2, 0.5), (1, 1.0)] {
            assert_eq!(cos(position, f), (f64::from(position as f32 * f)).cos() as f32);
        }
    }
}
