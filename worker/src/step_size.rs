//! How large a step may be: as it was asked for, else by what the device is and has room for.

use volley_kernels::DeviceMemory;

use crate::{config::Config, model::Description};

/// Of the memory that weights leave on a GPU, activations take this part at most; the rest is for keys and values.
const ACTIVATIONS_SHARE: u64 = 4;

/// The most that a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSize {
    /// Its rows: a long prompt is cut into so many tokens.
    pub max_batch_tokens: u32,
    /// Sequences that run together.
    pub max_sequences: u32,
}

/// A GPU's memory, and what it is to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) memory: DeviceMemory,
    /// Bytes that weights will have of it.
    pub(crate) weights: u64,
}

// === impl StepSize ===

impl StepSize {
    /// On a CPU, a 512-token prompt is one step, and a step stays short enough that the streams beside it don't visibly
    /// stall; beyond 64 sequences it gains little.
    pub const CPU: Self = Self { max_batch_tokens: 512, max_sequences: 64 };
    /// A GPU needs many rows to be busy.
    pub const GPU: Self = Self { max_batch_tokens: 8192, max_sequences: 256 };

    /// For a model on a CPU, or on a GPU with that room. What wasn't asked for is halved until activations leave most
    /// of the memory to keys and values, but not below a CPU's.
    pub(crate) fn of(config: &Config, model: &Description, gpu: Option<Room>) -> Self {
        let (rows, sequences) = (config.max_batch_tokens, config.max_sequences);
        let with = |size: Self| Self {
            max_batch_tokens: rows.unwrap_or(size.max_batch_tokens),
            max_sequences: sequences.unwrap_or(size.max_sequences),
        };
        let Some(Room { memory, weights }) = gpu else { return with(Self::CPU) };
        let may = (memory.total as f64 * config.gpu_memory_fraction) as u64;
        let left = may.min(memory.free as u64).saturating_sub(weights);
        let halves = |most: u32, least: u32| {
            std::iter::successors(Some(most), move |n| (n / 2 >= least).then_some(n / 2))
        };
        let mut smaller =
            halves(Self::GPU.max_sequences, Self::CPU.max_sequences).flat_map(|max_sequences| {
                halves(Self::GPU.max_batch_tokens, Self::CPU.max_batch_tokens)
                    .map(move |max_batch_tokens| with(Self { max_batch_tokens, max_sequences }))
            });
        let fits = |size: &Self| size.activations(model) <= left / ACTIVATIONS_SHARE;
        smaller.find(fits).unwrap_or(with(Self::CPU))
    }

    /// About the bytes that a GPU needs for a step: bf16 rows between operations, and logits.
    fn activations(self, model: &Description) -> u64 {
        let heads = model.heads;
        let qkv = (heads.heads + 2 * heads.kv_heads) * heads.dim;
        let row = 3 * model.width + qkv + heads.heads * heads.dim + 3 * model.hidden;
        u64::from(self.max_batch_tokens) * 2 * row as u64
            + u64::from(self.max_sequences) * 4 * model.vocab as u64
    }
}

#[cfg(test)]
mod tests {
    use volley_kernels::Heads;

    use super::*;
    use crate::testing;

    const GB: usize = 1_000_000_000;

    /// A model of 8 billion parameters on a GPU with so much free memory of so much.
    fn size(config: &Config, free: usize, total: usize, weights: usize) -> (u32, u32) {
        let mut model = testing::fixture("tiny-llama").model.description;
        (model.width, model.hidden, model.vocab) = (4096, 14336, 128_256);
        model.heads = Heads { heads: 32, kv_heads: 8, dim: 128, scale: 1.0, window: None, softcap: None };
        let room = Room { memory: DeviceMemory { free, total }, weights: weights as u64 };
        let size = StepSize::of(config, &model, Some(room));
        (size.max_batch_tokens, size.max_sequences)
    }

    #[test]
    fn a_large_gpu_runs_large_steps_and_what_is_asked_for_is_done() {
        let config = Config::new("", "m");
        assert_eq!(size(&config, 80 * GB, 80 * GB, 16 * GB), (8192, 256));
        let asked = Config { max_batch_tokens: Some(100_000), max_sequences: Some(3), ..config.clone() };
        assert_eq!(size(&asked, 18 * GB, 80 * GB, 16 * GB), (100_000, 3));
        let model = testing::fixture("tiny-llama").model.description;
        assert_eq!(StepSize::of(&config, &model, None), StepSize::CPU);
    }

    #[test]
    fn steps_get_smaller_where_weights_leave_little_room() {
        let config = Config::new("", "m");
        // A row takes 131 kB: 8192 of them a gigabyte.
        assert_eq!(size(&config, 24 * GB, 24 * GB, 16 * GB), (8192, 256));
        assert_eq!(size(&config, 24 * GB, 24 * GB, 18 * GB), (4096, 256));
        assert_eq!(size(&config, 20 * GB, 24 * GB, 19 * GB), (512, 256));
        assert_eq!(size(&config, 19 * GB, 24 * GB, 19 * GB), (512, 64));
        // Half of the memory is another worker's.
        let half = Config { gpu_memory_fraction: 0.45, ..config };
        assert_eq!(size(&half, 40 * GB, 40 * GB, 16 * GB), (2048, 256));
        // One is asked for: the other is what there is room for.
        let asked = Config { max_sequences: Some(1000), ..half };
        assert_eq!(size(&asked, 40 * GB, 40 * GB, 16 * GB), (512, 1000));
    }
}
