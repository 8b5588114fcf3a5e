//! Where a worker computes: the CPU, or a GPU if there is one.

use std::sync::Arc;

use volley_kernels::{
    cpu::{CpuBackend, CpuOptions},
    cuda::{Cuda, CudaBackend, CudaOptions, Device as _},
};

use crate::{Error, config};

/// A device, ready to take weights.
pub(crate) enum Device {
    /// This machine's processor.
    Cpu(CpuBackend),
    /// A GPU.
    Cuda(CudaBackend),
}

/// Opens the device that the configuration asks for; left to choose, a GPU if one can be opened.
pub(crate) fn open(config: &config::Config) -> Result<Device, Error> {
    match config.device {
        config::Device::Cpu => cpu(config),
        config::Device::Cuda(index) => cuda(config, index).map_err(|error| {
            Error::Config(format!("device cuda:{index}: {error}; --device cpu works anywhere"))
        }),
        config::Device::Auto => match cuda(config, 0) {
            Ok(device) => Ok(device),
            Err(reason) => {
                tracing::info!(%reason, "computing on the CPU");
                cpu(config)
            }
        },
    }
}

fn cpu(config: &config::Config) -> Result<Device, Error> {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = config.threads.unwrap_or_else(cores).min(cores());
    if let Some(asked) = config.threads.filter(|&asked| asked > threads) {
        tracing::warn!(
            "{asked} threads were asked for; this process may run {threads} side by side, so it has {threads}"
        );
    }
    tracing::info!(threads, "computing on the CPU");
    let options = CpuOptions { threads, activations: config.activations, isa: None };
    Ok(Device::Cpu(CpuBackend::new(options)?))
}

fn cuda(config: &config::Config, index: usize) -> Result<Device, volley_kernels::Error> {
    let device = Cuda::open(index)?;
    let properties = device.properties();
    tracing::info!(
        name = properties.name,
        architecture = properties.arch,
        multiprocessors = properties.processors,
        deterministic = config.deterministic,
        "computing on GPU {index}"
    );
    let options = CudaOptions { deterministic: config.deterministic };
    Ok(Device::Cuda(CudaBackend::new(Arc::new(device), options)))
}
