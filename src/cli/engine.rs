//! The flags of whoever runs a model: which one, and with what of the machine.

use std::path::PathBuf;

use clap::Args;

use super::values::{Activations, Device, Pooling, Quantization, device, fraction, gigabytes, positive};
use crate::models;

/// The model and the machine it runs on.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model and machine")]
pub(crate) struct EngineArgs {
    /// A name from `volley models`, a GGUF file, a Hugging Face directory, or a hub id (`org/name`,
    /// `org/name/file.gguf`).
    ///
    /// The default is small enough for any machine and comes from the hub or from a package index.
    #[arg(long, env = "VOLLEY_MODEL", default_value = models::DEFAULT, value_name = "MODEL")]
    pub(crate) model: String,
    /// The name the model is served under. By default its own, in lower case: the catalogue's, the file's or the
    /// folder's. Requests may write it in any case.
    #[arg(long, env = "VOLLEY_MODEL_NAME", value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// A smaller model of the same vocabulary that guesses tokens ahead, named as the model is. It is asked where the
    /// text has nothing to guess from and `--speculation` finds that it pays. By default there is none: tokens are
    /// guessed from the text so far and from a request's prediction alone.
    #[arg(long, env = "VOLLEY_DRAFT_MODEL", value_name = "MODEL")]
    pub(crate) draft_model: Option<String>,
    /// Where the model runs: auto, cpu, cuda or cuda:INDEX. cuda: the first GPU, and of `volley serve` all of them. auto:
    /// the same if the first can be used, else the CPU; `volley doctor` says which.
    #[arg(long, env = "VOLLEY_DEVICE", default_value = "auto", value_name = "DEVICE", value_parser = device)]
    pub(crate) device: Device,
    /// Ranks that share out every step of a worker: so many GPUs from the device's index on, or parts of the CPU's
    /// threads. It must divide the model's key/value heads. 1: a CPU gains nothing from more.
    #[arg(long, env = "VOLLEY_TENSOR_PARALLEL", default_value_t = 1, value_name = "N", value_parser = positive)]
    pub(crate) tensor_parallel: usize,
    /// Kernel threads; never more than cores. By default one per core: decoding is bound by memory, and the async
    /// threads need little.
    #[arg(long, env = "VOLLEY_THREADS", value_name = "N", value_parser = positive)]
    pub(crate) threads: Option<usize>,
    /// Part of a GPU's memory that a worker may use. Weights and activations have theirs first, the KV cache what is
    /// left of it. 0.9: drivers and libraries take some too.
    #[arg(long, env = "VOLLEY_GPU_MEMORY_FRACTION", default_value_t = volley_worker::Config::GPU_MEMORY_FRACTION,
          value_name = "FRACTION", value_parser = fraction)]
    pub(crate) gpu_memory_fraction: f64,
    /// On a GPU, the same bytes for a request whatever runs beside it, and after a move; long prompts take longer. On a
    /// CPU it is always so.
    #[arg(long, env = "VOLLEY_DETERMINISTIC")]
    pub(crate) deterministic: bool,
    /// On a GPU, launch the kernels of steps that only decode one by one, to compare: as CUDA graphs they take less of the
    /// CPU's time, and a little of the GPU's memory.
    #[arg(long, env = "VOLLEY_NO_CUDA_GRAPHS")]
    pub(crate) no_cuda_graphs: bool,
    /// Memory for the KV cache, GB; of several GPUs, on each; the workers of one share it. By default a quarter of what is
    /// free, and no more than all sequences can fill: the rest of the machine stays usable. Pages are touched when they
    /// are first used; the prefix cache uses fresh ones before it forgets anything, so in time it fills this.
    #[arg(long, env = "VOLLEY_KV_CACHE_GB", value_name = "GB", value_parser = gigabytes)]
    pub(crate) kv_cache_gb: Option<f64>,
    /// Tokens that one step computes at most.
    ///
    /// By default 512 on a CPU: a usual prompt is one step, and no step is so long that the streams beside it visibly
    /// stall. 8192 on a GPU, which needs many to be busy; less, down to 512, where weights leave it little memory.
    #[arg(long, env = "VOLLEY_MAX_BATCH_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(16..=65536))]
    pub(crate) max_batch_tokens: Option<u32>,
    /// Sequences that run at the same time at most; others wait.
    ///
    /// By default 64 on a CPU, which gains little beyond it; 256 on a GPU, less where it has little memory.
    #[arg(long, env = "VOLLEY_MAX_SEQUENCES", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_sequences: Option<u32>,
    /// A step that takes longer is hung: the worker's process ends, seconds. What supervises it starts it again, and its
    /// sequences go on elsewhere. `serve` with its one CPU worker is one process, and ends as a whole.
    ///
    /// By default 30 on a GPU, where a step takes a second or two at most; 120 on a CPU, whose first step may page in
    /// weights from a slow disk.
    #[arg(long, env = "VOLLEY_STEP_LIMIT", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) step_limit: Option<u64>,
    /// What the plain weights (F32, F16, BF16) of the model's layers are made when they are loaded: `int8` or `fp8` (on a
    /// GPU), with a scale for each row. They take half the memory, of which every step reads all, and are a little less
    /// precise.
    ///
    /// `auto`: nothing; a quantized model is computed on as it is. The embedding table and the output matrix always stay.
    #[arg(long, env = "VOLLEY_QUANTIZATION", default_value = "auto", value_name = "KIND")]
    pub(crate) quantization: Quantization,
    /// How activations are multiplied with quantized weights. `int8` is fast; `f32` also unpacks the weights to
    /// float32, for comparing with other engines.
    #[arg(long, env = "VOLLEY_ACTIVATIONS", default_value = "int8", value_name = "KIND")]
    pub(crate) activations: Activations,
    /// How prompts become embeddings. `none`: the model serves none, since most that generate text embed badly.
    #[arg(long, env = "VOLLEY_POOLING", default_value = "none", value_name = "KIND")]
    pub(crate) pooling: Pooling,
    /// Where downloaded models are kept. By default `volley` in the user's cache directory.
    #[arg(long, env = "VOLLEY_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Your token for private repositories of the hub. By default the one that its own tools saved.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) hub_token: Option<String>,
    /// For tests of how a cluster bears it: a worker aborts when it is to run a sequence with these tokens in a row.
    #[arg(
        long,
        hide = true,
        env = "VOLLEY_TEST_ABORT_ON_TOKENS",
        value_delimiter = ',',
        value_name = "TOKEN,…"
    )]
    pub(crate) test_abort_on_tokens: Vec<u32>,
}
