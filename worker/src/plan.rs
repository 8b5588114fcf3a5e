//! How a device's memory is shared out: weights first, then what a step computes with, and of the rest as many KV
//! blocks as the sequences can use.

use std::cell::Cell;

use volley_kernels::{BLOCK_TOKENS, Backend, DeviceMemory};

use crate::{
    Error,
    config::Config,
    decoder::{Capacity, Decoder},
    format::Weights,
    memory,
    model::Description,
    shard::Shard,
    step_size::StepSize,
};

/// Of the memory that is free, the KV cache takes this part of a machine's by default.
const CACHE_SHARE: u64 = 4;
/// Of a GPU's memory, this part stays free whatever was allowed.
const SPARE: u64 = 50;

/// What is known before anything is loaded.
pub(crate) struct Plan {
    /// Bytes for keys and values, if they were asked for.
    asked: Option<u64>,
    /// Bytes of a KV block on this device, in all models; the CPU has the blocks of all ranks.
    block_bytes: u64,
    /// Blocks that all sequences together can fill.
    usable: u64,
    sequences: u32,
    /// The device's memory, if it has its own, and how much of it may be used.
    device: Option<(DeviceMemory, f64)>,
}

// === impl Plan ===

impl Plan {
    /// For a model, and the draft model beside it.
    pub(crate) fn new<B: Backend>(
        config: &Config,
        size: StepSize,
        model: &Description,
        draft: Option<&Description>,
        backend: &B,
    ) -> Result<Self, Error> {
        let block_bytes = |model: &Description| backend.block_bytes(model.layers, model.heads) as u64;
        let (device, shard) = (backend.memory()?, Shard::of(backend));
        let ranks = if device.is_some() { 1 } else { shard.ranks() as u64 };
        let of_ranks = block_bytes(&shard.description(model)) * ranks;
        let plan = Self {
            asked: config.kv_cache_bytes,
            block_bytes: (of_ranks + draft.map_or(0, block_bytes)).max(1),
            usable: model.context.div_ceil(BLOCK_TOKENS) as u64 * u64::from(size.max_sequences),
            sequences: size.max_sequences,
            device: device.map(|memory| (memory, config.gpu_memory_fraction)),
        };
        if plan.device.is_none() {
            plan.of_machine(memory::available())?; // what can't work is said before weights are read
        }
        Ok(plan)
    }

    /// Loads a model, and reserves so many KV blocks as `blocks` says once all else has its memory, or the least that
    /// a rank of the group says; says how many.
    pub(crate) fn load<B: Backend>(
        &self,
        backend: B,
        model: &Description,
        weights: &Weights,
        capacity: Capacity,
        progress: &mut dyn FnMut(u64, u64),
        blocks: impl FnOnce(&B) -> Result<usize, Error>,
    ) -> Result<(Decoder<B>, usize), Error> {
        let (loaded, counted) = (Cell::new((0, 0)), Cell::new(None));
        let mut progress = |done, total| {
            loaded.set((done, total));
            progress(done, total);
        };
        let count = |backend: &B| {
            let count = match (blocks(backend)?, backend.peers()) {
                (count, None) => count,
                (count, Some(peers)) => peers.least(count as u64)? as usize,
            };
            counted.set(Some(count));
            Ok(count)
        };
        let decoder = Decoder::load(backend, model.clone(), weights, capacity, &mut progress, count);
        match decoder {
            Ok(decoder) => Ok((decoder, counted.get().unwrap_or(0))),
            Err(Error::Kernel(volley_kernels::Error::Memory { bytes, .. })) if self.device.is_some() => {
                Err(self.full(loaded.get(), counted.get(), capacity, bytes))
            }
            Err(error) => Err(error),
        }
    }

    /// As many KV blocks as there is room for.
    pub(crate) fn blocks_of<B: Backend>(&self, backend: &B) -> Result<usize, Error> {
        match backend.memory()? {
            Some(now) => self.of_device(now),
            None => self.of_machine(memory::available()),
        }
    }

    /// Blocks in the machine's memory, of which so much is free.
    fn of_machine(&self, free: u64) -> Result<usize, Error> {
        let blocks = self.blocks(self.asked.unwrap_or(free / CACHE_SHARE))?;
        let wanted = blocks as u64 * self.block_bytes;
        if self.asked.is_some() && wanted > free {
            return Err(Error::Config(format!(
                "a KV cache of {} does not fit: {} of memory are free",
                gb(wanted),
                gb(free)
            )));
        }
        Ok(blocks)
    }

    /// Blocks in the device's memory, which has its weights and activations.
    fn of_device(&self, now: DeviceMemory) -> Result<usize, Error> {
        let (start, fraction) = self.device.unwrap_or((now, 1.0));
        let (free, total) = (now.free as u64, now.total as u64);
        let (may, has) = ((total as f64 * fraction) as u64, (start.free as u64).saturating_sub(free));
        // Others may be on it too.
        let left = may.saturating_sub(has).min(free.saturating_sub(total / SPARE));
        if left < self.block_bytes {
            return Err(Error::Config(format!(
                "no memory is left for the KV cache: weights and activations take {} of the {} that \
                 --gpu-memory-fraction {fraction} allows, and {} of the GPU's {} are free; raise it, lower \
                 --max-batch-tokens, or take a smaller quantization",
                gb(has),
                gb(may),
                gb(free),
                gb(total)
            )));
        }
        let blocks = self.blocks(self.asked.unwrap_or(left))?;
        let wanted = blocks as u64 * self.block_bytes;
        if wanted > left {
            return Err(Error::Config(format!(
                "a KV cache of {} does not fit beside weights and activations: lower --kv-cache-gb to {:.1}",
                gb(wanted),
                (left as f64 / 1e8).floor() / 10.0
            )));
        }
        Ok(blocks)
    }

    /// Of a budget, and no more than all sequences can use.
    fn blocks(&self, budget: u64) -> Result<usize, Error> {
        let blocks = (budget / self.block_bytes).min(self.usable).min(u32::MAX.into());
        if self.asked.is_some_and(|asked| asked / self.block_bytes > blocks) {
            let size = gb(blocks * self.block_bytes);
            tracing::warn!("the KV cache has {size}: {} sequences can fill no more", self.sequences);
        }
        match blocks {
            0 => Err(Error::Config(format!(
                "a KV cache of {budget} bytes holds no block of {BLOCK_TOKENS} tokens ({} bytes)",
                self.block_bytes
            ))),
            blocks => Ok(blocks as usize),
        }
    }

    /// What to lower, where an allocation of `bytes` failed after so many bytes of weights.
    fn full(&self, loaded: (u64, u64), blocks: Option<usize>, capacity: Capacity, bytes: usize) -> Error {
        let (free, total) =
            self.device.map_or((0, 0), |(memory, _)| (memory.free as u64, memory.total as u64));
        let start = format!("{} of the GPU's {} were free at the start", gb(free), gb(total));
        let (done, weights) = loaded;
        Error::Config(match blocks {
            Some(blocks) => format!(
                "no room for a KV cache of {}: lower --kv-cache-gb or --gpu-memory-fraction ({start})",
                gb(blocks as u64 * self.block_bytes)
            ),
            None if done < weights => format!(
                "the weights do not fit in the GPU's memory: it was full after {} of {} ({start}); take a smaller \
                 quantization or a larger GPU",
                gb(done),
                gb(weights)
            ),
            None => format!(
                "no room for what steps of {} tokens and {} sequences compute with beside {} of weights: {} more \
                 were asked for ({start}); lower --max-batch-tokens or --max-sequences",
                capacity.rows,
                capacity.sequences,
                gb(weights),
                gb(bytes as u64)
            ),
        })
    }
}

fn gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use volley_kernels::{DType, Peers};
    use volley_twin::{Schedule, Twin};

    use crate::{Config, Worker, model::Model, testing};

    const MIB: usize = 1 << 20;

    /// The blocks of a worker on a GPU with so much memory, or why there is none.
    fn load(total: usize, change: fn(&mut Config)) -> Result<u64, String> {
        let model = testing::made_up([DType::BF16; 3]);
        let mut config =
            Config { max_batch_tokens: Some(64), max_sequences: Some(64), ..Config::new("", "made-up") };
        change(&mut config);
        let twin = Twin::new(Schedule::ALL[0]).with_memory(total);
        let worker =
            Worker::with_ranks(&config, (vec![testing::cuda(twin, false)], &model), None, &mut |_, _| ());
        worker.map(|worker| worker.blocks()).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_and_values_have_what_weights_and_activations_leave_of_a_gpu_s_memory() {
        // A block of two layers' keys and values of 2 × 64 numbers for 16 tokens takes 16 KiB; all sequences together
        // can fill 2048.
        assert_eq!(load(1 << 30, |_| ()), Ok(2048));
        let half = load(40 * MIB, |config| config.gpu_memory_fraction = 0.5).unwrap();
        let more = load(40 * MIB, |config| config.gpu_memory_fraction = 0.55).unwrap();
        // A twentieth of 40 MiB.
        assert_eq!(more - half, 128);
        assert_eq!(load(1 << 30, |config| config.kv_cache_bytes = Some(64 << 14)), Ok(64));
    }

    #[test]
    fn what_eight_bits_leave_of_a_gpu_s_memory_is_for_keys_and_values() {
        let config =
            Config { max_batch_tokens: Some(64), max_sequences: Some(64), ..Config::new("", "made-up") };
        let blocks = |model: &Model| {
            let twin = Twin::new(Schedule::ALL[0]).with_memory(24 * MIB);
            let worker =
                Worker::with_ranks(&config, (vec![testing::cuda(twin, false)], model), None, &mut |_, _| ());
            worker.unwrap().blocks()
        };
        let plain = || testing::wide([DType::BF16; 3]);
        let int8 = plain().converted(DType::Int8);
        let saved = plain().bytes_on_gpu() - int8.bytes_on_gpu();
        // A block of two layers' keys and values of 4 × 64 numbers for 16 tokens takes 32 KiB; scales take a little.
        let (more, most) = (blocks(&int8) - blocks(&plain()), saved / (32 << 10));
        assert!(most > 8 && more <= most && more + 2 >= most, "{more} blocks of at most {most}");
    }

    #[test]
    fn a_group_has_the_blocks_of_the_gpu_with_the_least_room() {
        let model = testing::wide([DType::BF16; 3]);
        let config =
            Config { max_batch_tokens: Some(64), max_sequences: Some(64), ..Config::new("", "made-up") };
        let load = |totals: [usize; 2]| {
            let rank = |peers: Peers| {
                let twin = Twin::new(Schedule::ALL[0]).with_memory(totals[peers.rank()]);
                testing::cuda(twin, false).in_group(peers)
            };
            Worker::with_ranks(&config, (testing::ranks(2, rank), &model), None, &mut |_, _| ())
        };
        let blocks = |totals| load(totals).unwrap().blocks();
        let (small, large) = (blocks([32 * MIB; 2]), blocks([36 * MIB; 2]));
        // The first rank has a little more on it than the second.
        for mixed in [blocks([32 * MIB, 36 * MIB]), blocks([36 * MIB, 32 * MIB])] {
            assert!((small..small + 20).contains(&mixed) && small + 100 < large, "{small}, {mixed}, {large}");
        }
        let error = load([36 * MIB, MIB]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("lower --max-batch-tokens"), "{error}");
    }

    #[test]
    fn a_gpu_that_is_too_small_says_what_to_lower() {
        let says = |total, change, words: &[&str]| {
            let error = load(total, change).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        says(MIB / 4, |_| (), &["the weights do not fit", "0.0 GB of", "smaller quantization"]);
        says(4 * MIB, |_| (), &["steps of 64 tokens and 64 sequences", "lower --max-batch-tokens"]);
        says(24 * MIB, |c| c.gpu_memory_fraction = 0.1, &["--gpu-memory-fraction 0.1", "raise it"]);
        says(
            24 * MIB,
            |c| c.kv_cache_bytes = Some(30 << 20),
            &["a KV cache of 0.0 GB", "lower --kv-cache-gb to 0.0"],
        );
    }
}
