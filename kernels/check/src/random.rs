//! Numbers that look random and are the same in every run.

use half::{bf16, f16};

/// A generator (splitmix64).
pub struct Random {
    state: u64,
    /// What `between` takes first.
    draws: std::vec::IntoIter<u32>,
}

impl Random {
    /// Keyed by a number.
    pub fn new(seed: u64) -> Self {
        Self::drawn(seed, Vec::new())
    }

    /// Of which the first numbers `between` others are chosen elsewhere: a draw goes from 0, the lower end, up.
    pub fn drawn(seed: u64, draws: Vec<u32>) -> Self {
        Self { state: seed, draws: draws.into_iter() }
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        let count = (high - low + 1) as u64;
        let chosen = match self.draws.next() {
            Some(draw) => (u64::from(draw) * count) >> 32,
            None => self.bits() % count,
        };
        low + chosen as usize
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.between(0, of.len() - 1)]
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normally distributed, deviation 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Normally distributed numbers.
    pub fn f32(&mut self, len: usize, deviation: f64) -> Vec<f32> {
        (0..len).map(|_| (self.normal() * deviation) as f32).collect()
    }

    /// Normally distributed numbers.
    pub fn bf16(&mut self, len: usize, deviation: f64) -> Vec<bf16> {
        (0..len).map(|_| bf16::from_f64(self.normal() * deviation)).collect()
    }

    /// Normally distributed numbers.
    pub fn f16(&mut self, len: usize, deviation: f64) -> Vec<f16> {
        (0..len).map(|_| f16::from_f64(self.normal() * deviation)).collect()
    }

    /// Bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.bits() as u8).collect()
    }

    /// 0 to `len` − 1 in some order.
    pub fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            order.swap(i, self.between(0, i));
        }
        order
    }
}
