//! What a step costs: the roofline of a device and a model, from public figures.
//!
//! ```text
//! step = overhead + max(weights ÷ bandwidth, rows × FLOP per row ÷ FLOP/s) + KV read ÷ bandwidth + attention FLOP ÷ FLOP/s
//! ```
//!
//! Both ceilings are taken at [`REACHED`] of the data sheet: what good kernels get.

use std::time::Duration;

/// The part of a data sheet's bandwidth and arithmetic that kernels reach.
const REACHED: f64 = 0.7;

/// A device with a model on it.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The model's weights, bytes: read once a step.
    pub weights: f64,
    /// Arithmetic of a row, without attention: 2 × parameters.
    pub row_flop: f64,
    /// A token's keys and values, bytes.
    pub kv_bytes: f64,
    /// Attention's arithmetic for a row and a token before it: 4 × layers × heads × head width.
    pub attention_flop: f64,
    /// The device's memory, bytes per second.
    pub bandwidth: f64,
    /// Its arithmetic, FLOP/s.
    pub flops: f64,
    /// What a step takes besides: launches, sampling.
    pub overhead: Duration,
}

/// A step, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows {
    /// Tokens that it computes.
    pub rows: f64,
    /// Σ over sequences: tokens in the KV cache that it reads.
    pub read: f64,
    /// Σ over rows: tokens that each attends to.
    pub attended: f64,
}

// === impl Cost ===

impl Cost {
    /// Llama 3.1 8B in bf16 (8.03 G parameters; 32 layers, 32 heads and 8 KV heads of 128) on an H100 SXM: HBM3 at
    /// 3.35 TB/s, 989 TFLOP/s of dense bf16.
    pub fn h100() -> Self {
        Self {
            weights: 16.06e9,
            row_flop: 2.0 * 8.03e9,
            kv_bytes: 32.0 * 8.0 * 128.0 * 2.0 * 2.0,
            attention_flop: 4.0 * 32.0 * 32.0 * 128.0,
            bandwidth: 3.35e12,
            flops: 989e12,
            overhead: Duration::from_micros(300),
        }
    }

    /// SmolLM2 135M in Q4_1 (30 layers, 9 heads and 3 KV heads of 64, KV in f32) on 16 server cores: eight channels
    /// of DDR5-4800 give 307 GB/s, AVX2 at 3 GHz 32 FLOP a cycle and core.
    pub fn cpu() -> Self {
        Self {
            weights: 0.1e9,
            row_flop: 2.0 * 0.135e9,
            kv_bytes: 30.0 * 3.0 * 64.0 * 2.0 * 4.0,
            attention_flop: 4.0 * 30.0 * 9.0 * 64.0,
            bandwidth: 307e9,
            flops: 16.0 * 3e9 * 32.0,
            overhead: Duration::from_micros(100),
        }
    }

    /// How long a step takes.
    pub fn step(&self, rows: Rows) -> Duration {
        if rows.rows == 0.0 {
            return Duration::ZERO;
        }
        let (bandwidth, flops) = (self.bandwidth * REACHED, self.flops * REACHED);
        let dense = (self.weights / bandwidth).max(rows.rows * self.row_flop / flops);
        let attention = rows.read * self.kv_bytes / bandwidth + rows.attended * self.attention_flop / flops;
        self.overhead + Duration::from_secs_f64(dense + attention)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decode_is_bound_by_memory_and_a_prompt_by_arithmetic() {
        let h100 = Cost::h100();
        let alone = h100.step(Rows { rows: 1.0, read: 1000.0, attended: 1000.0 });
        let together = h100.step(Rows { rows: 64.0, read: 64e3, attended: 64e3 });
        assert!(together < 2 * alone, "{together:?} for 64, {alone:?} for one");
        let prompt = |n: f64| h100.step(Rows { rows: n, read: n, attended: n * n / 2.0 });
        assert!(prompt(4096.0) > 3 * prompt(1024.0));
        let millis = alone.as_secs_f64() * 1e3;
        assert!((6.0..9.0).contains(&millis), "16 GB at 2.3 TB/s take 7 ms, not {millis}");
    }
}
