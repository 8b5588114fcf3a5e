//! Where a worker computes: the CPU, or a GPU if there is one; and what a machine has of both.

use std::sync::Arc;

use volley_kernels::{
    Peers,
    cpu::{CpuBackend, CpuOptions, Isa},
    cuda::{Cuda, CudaBackend, CudaOptions, Device as _, FATBINS, Nccl},
};

use crate::{Error, available_memory, config};

/// A device for each rank, ready to take weights.
pub(crate) enum Device {
    /// Parts of this machine's processor.
    Cpu(Vec<CpuBackend>),
    /// GPUs, and their name for people.
    Cuda(Vec<CudaBackend>, String),
}

/// What a machine has to compute with.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The instructions that the CPU's kernels use.
    pub instructions: String,
    /// Threads that may run side by side.
    pub threads: usize,
    /// Bytes that are free.
    pub memory: u64,
    /// Kernels for GPUs in this program.
    pub kernels: usize,
    /// Each GPU, or why it can't be used; or why none can.
    pub gpus: Result<Vec<Result<Gpu, String>>, String>,
}

/// A GPU that can be used.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// For people.
    pub name: String,
    /// Compute capability: 80, 90.
    pub architecture: u32,
    /// Kernels that were loaded onto it.
    pub kernels: usize,
    /// Bytes that nobody has.
    pub free: u64,
    /// All bytes.
    pub total: u64,
}

/// How many GPUs there are for workers that are told so, 0 where they compute on the CPU. Left to choose, opens the
/// first and closes it again. Fails where a GPU is asked for that isn't there.
pub fn gpus(device: config::Device) -> Result<usize, Error> {
    match device {
        config::Device::Cpu => Ok(0),
        config::Device::Cuda(index) => Cuda::count_with(index).map_err(|error| absent(index, error)),
        config::Device::Auto => Ok(Cuda::open(0).and_then(|_| Cuda::count()).unwrap_or(0)),
    }
}

/// Opens the device that the configuration asks for; left to choose, a GPU if one can be opened.
pub(crate) fn open(config: &config::Config) -> Result<Device, Error> {
    match config.device {
        config::Device::Cpu => cpus(config).map(Device::Cpu),
        config::Device::Cuda(index) => cuda(config, index).map_err(|error| absent(index, error)),
        config::Device::Auto => match cuda(config, 0) {
            Ok(device) => Ok(device),
            // There is a GPU: that there aren't as many as ranks is for the operator to know.
            Err(reason) if config.tensor_parallel > 1 && Cuda::open(0).is_ok() => Err(absent(0, reason)),
            Err(reason) => {
                tracing::info!(%reason, "computing on the CPU");
                cpus(config).map(Device::Cpu)
            }
        },
    }
}

fn absent(index: usize, error: volley_kernels::Error) -> Error {
    Error::Config(format!("device cuda:{index}: {error}; --device cpu works anywhere"))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// The CPU, with threads of its own.
pub(crate) fn cpu(config: &config::Config) -> Result<CpuBackend, Error> {
    let threads = threads_of(config);
    tracing::info!(threads, "computing on the CPU");
    with_threads(config, threads)
}

/// The CPU, its threads shared out among the ranks.
fn cpus(config: &config::Config) -> Result<Vec<CpuBackend>, Error> {
    if config.tensor_parallel == 1 {
        return Ok(vec![cpu(config)?]);
    }
    let (threads, ranks) = (threads_of(config), config.tensor_parallel);
    tracing::info!(threads, ranks, "computing on the CPU");
    let rank = |peers: Peers| {
        let threads = threads * (peers.rank() + 1) / ranks - threads * peers.rank() / ranks;
        Ok(with_threads(config, threads.max(1))?.in_group(peers))
    };
    Peers::group(ranks).into_iter().map(rank).collect()
}

fn with_threads(config: &config::Config, threads: usize) -> Result<CpuBackend, Error> {
    Ok(CpuBackend::new(CpuOptions { threads, activations: config.activations, isa: None })?)
}

/// Kernel threads in all.
fn threads_of(config: &config::Config) -> usize {
    let threads = config.threads.unwrap_or_else(threads).min(threads());
    if let Some(asked) = config.threads.filter(|&asked| asked > threads) {
        tracing::warn!(
            "{asked} threads were asked for; this process may run {threads} side by side, so it has {threads}"
        );
    }
    threads
}

/// A GPU for each rank, from that index on.
fn cuda(config: &config::Config, index: usize) -> Result<Device, volley_kernels::Error> {
    let ranks = config.tensor_parallel;
    if ranks == 1 {
        let gpu = gpu(config, index)?;
        let name = format!("cuda:{index} ({})", gpu.properties().name);
        return Ok(Device::Cuda(vec![backend(config, gpu)], name));
    }
    let gpus: Vec<_> = (index..index + ranks)
        .map(|index| gpu(config, index))
        .collect::<Result<_, volley_kernels::Error>>()?;
    // Where the order of a sum matters, ours is taken.
    let joined = if config.deterministic { Ok(Vec::new()) } else { Nccl::group(&gpus) };
    let mut sums: Vec<Option<Nccl>> = match joined {
        Ok(sums) => sums.into_iter().map(Some).collect(),
        Err(reason) => {
            tracing::warn!(%reason, "GPUs add up by way of this machine's memory, which is slow");
            Vec::new()
        }
    };
    sums.resize_with(ranks, || None);
    let rank = |((gpu, sums), peers)| {
        let rank = backend(config, gpu).in_group(peers);
        match sums {
            Some(sums) => rank.reducing(Box::new(sums)),
            None => rank,
        }
    };
    let name = format!("cuda:{index} to {} ({})", index + ranks - 1, gpus[0].properties().name);
    Ok(Device::Cuda(gpus.into_iter().zip(sums).zip(Peers::group(ranks)).map(rank).collect(), name))
}

fn backend(config: &config::Config, gpu: Arc<Cuda>) -> CudaBackend {
    let (deterministic, graphs) = (config.deterministic, config.cuda_graphs);
    CudaBackend::new(gpu, CudaOptions { deterministic, graphs, ..CudaOptions::default() })
}

fn gpu(config: &config::Config, index: usize) -> Result<Arc<Cuda>, volley_kernels::Error> {
    let device = Cuda::open(index)?;
    let properties = device.properties();
    tracing::info!(
        name = properties.name,
        architecture = properties.arch,
        multiprocessors = properties.processors,
        deterministic = config.deterministic,
        "computing on GPU {index}"
    );
    Ok(Arc::new(device))
}

// === impl Machine ===

impl Machine {
    /// Looks around.
    pub fn look() -> Self {
        let gpus = Cuda::count().map(|count| (0..count).map(Gpu::look).collect());
        Self {
            instructions: format!("{:?}", Isa::detect()),
            threads: threads(),
            memory: available_memory(),
            kernels: FATBINS.iter().map(|fatbin| fatbin.kernels.len()).sum(),
            gpus: gpus.map_err(|error| error.to_string()),
        }
    }
}

// === impl Gpu ===

impl Gpu {
    fn look(index: usize) -> Result<Self, String> {
        let open = || -> Result<Self, volley_kernels::Error> {
            let device = Cuda::open(index)?;
            let (memory, properties) = (device.memory()?, device.properties());
            Ok(Self {
                name: properties.name.clone(),
                architecture: properties.arch,
                kernels: device.kernels(),
                free: memory.free as u64,
                total: memory.total as u64,
            })
        };
        open().map_err(|error| error.to_string())
    }
}
