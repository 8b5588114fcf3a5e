use std::{path::PathBuf, time::Duration};

use volley_kernels::cpu::pack::Activations;

/// What a worker is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names this worker to schedulers.
    pub id: String,
    /// A GGUF file, or a Hugging Face directory (config.json, safetensors, tokenizer.json).
    pub model: PathBuf,
    /// The bare name under which the model is served.
    pub name: String,
    /// SHA-256 of the weights, where it is known already (a catalogue's download).
    pub weights_hash: Option<String>,
    /// Folder that keeps the hashes of weights which came without one; none: computed at every start.
    pub cache: Option<PathBuf>,
    /// Where to compute.
    pub device: Device,
    /// Ranks that share each step out among them: GPUs from the device's index on, or parts of the CPU's threads.
    pub tensor_parallel: usize,
    /// Kernel threads of all ranks; none: as many as this process may run side by side.
    pub threads: Option<usize>,
    /// A small model of the same vocabulary that guesses tokens: a file or folder, as `model` is.
    pub draft: Option<PathBuf>,
    /// Bytes for keys and values, of several GPUs on each; none: a quarter of the memory that is free (on a GPU what is
    /// left of `gpu_memory_fraction`), and no more than `max_sequences` full contexts take. Touched as it is used.
    pub kv_cache_bytes: Option<u64>,
    /// Part of a GPU's memory that may be used in all: what weights and activations leave of it has keys and values.
    pub gpu_memory_fraction: f64,
    /// On a GPU, take only kernels that give a row the same bits in any company. The CPU's always do.
    pub deterministic: bool,
    /// Steps that only decode are CUDA graphs.
    pub cuda_graphs: bool,
    /// Rows of a step: a long prompt is cut into so many tokens. None: [`StepSize`](crate::StepSize) says.
    pub max_batch_tokens: Option<u32>,
    /// Sequences that run together; none: likewise.
    pub max_sequences: Option<u32>,
    /// A step that takes longer is hung, and ends the worker; none: 30 s on a GPU, 120 s on a CPU.
    pub step_limit: Option<Duration>,
    /// What plain weights are made when they are loaded; none: nothing else.
    pub quantization: Option<Quantization>,
    /// How activations enter a product with quantized weights.
    pub activations: Activations,
    /// How embeddings are made; none: they are not served.
    pub pooling: Option<Pooling>,
    /// For tests: the process aborts when it is to run a sequence that has these tokens in a row. None: it never does.
    pub abort_on: Vec<u32>,
}

/// What the plain weights (F32, F16, BF16) of a model's layers can be made: of 8 bits, with a scale for each row. The
/// embedding table and the output matrix stay as they are, and so do weights that are quantized already, but for 8-bit
/// floats with a scale for each block, which a GPU reads as bf16 else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Integers.
    Int8,
    /// Floats with 4 bits of exponent (e4m3), on a GPU.
    Fp8,
}

/// How the final hidden states of a prompt become its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last token's.
    Last,
}

/// Where a worker computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, by its index.
    Cuda(usize),
}

// === impl Config ===

impl Config {
    /// Default of `gpu_memory_fraction`: the rest is for the driver and for what libraries take later.
    pub const GPU_MEMORY_FRACTION: f64 = 0.9;
    /// Default of `step_limit` on a GPU, where all of a step lies in its memory: it takes a second or two at most.
    pub const GPU_STEP_LIMIT: Duration = Duration::from_secs(30);
    /// Default of `step_limit` on a CPU: the first step may page in weights from a slow disk.
    pub const CPU_STEP_LIMIT: Duration = Duration::from_secs(120);

    /// The defaults, for a model served as `name`.
    pub fn new(model: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            id: format!("worker-{}", std::process::id()),
            model: model.into(),
            name,
            weights_hash: None,
            cache: None,
            device: Device::Auto,
            tensor_parallel: 1,
            threads: None,
            draft: None,
            kv_cache_bytes: None,
            gpu_memory_fraction: Self::GPU_MEMORY_FRACTION,
            deterministic: false,
            cuda_graphs: true,
            max_batch_tokens: None,
            max_sequences: None,
            step_limit: None,
            quantization: None,
            activations: Activations::Int8,
            pooling: None,
            abort_on: Vec::new(),
        }
    }
}
