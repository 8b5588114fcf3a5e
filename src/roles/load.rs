//! From flags to a loaded worker.

use std::{path::PathBuf, time::Duration};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use volley_worker::Worker;

use super::Error;
use crate::{
    cli::{self, EngineArgs},
    models::{self, Cache, Model, Sources},
    progress::Progress,
};

/// Finds the model, downloading it if need be. Ends with [`models::Error::Interrupted`] when cancelled.
pub(super) async fn resolve(args: &EngineArgs, cancel: &CancellationToken) -> Result<Model, Error> {
    let mut model = find(args, args.model.clone(), cancel).await?;
    if let Some(name) = &args.model_name {
        model.name.clone_from(name);
    }
    Ok(model)
}

/// The same for the draft model, if there is to be one: where it is.
pub(super) async fn resolve_draft(
    args: &EngineArgs,
    cancel: &CancellationToken,
) -> Result<Option<PathBuf>, Error> {
    match args.draft_model.clone() {
        Some(spec) => Ok(Some(find(args, spec, cancel).await?.path)),
        None => Ok(None),
    }
}

async fn find(args: &EngineArgs, spec: String, cancel: &CancellationToken) -> Result<Model, Error> {
    let cache = Cache::new(args.home.clone());
    let sources = Sources { hub_token: args.hub_token.clone(), ..Sources::default() };
    let cancel = cancel.clone();
    let found = spawn_blocking(move || models::resolve(&spec, &cache, &sources, &cancel)).await;
    Ok(found.map_err(|e| ended(&e))??)
}

/// Loads them.
pub(super) async fn load(
    args: &EngineArgs,
    model: Model,
    draft: Option<PathBuf>,
    id: String,
    mut progress: Progress,
) -> Result<Worker, Error> {
    let config = volley_worker::Config {
        id,
        model: model.path,
        name: model.name,
        weights_hash: model.weights_hash,
        cache: Some(Cache::new(args.home.clone()).home().to_owned()),
        device: device(args),
        tensor_parallel: args.tensor_parallel,
        threads: args.threads,
        draft,
        kv_cache_bytes: args.kv_cache_gb.map(|gb| (gb * 1e9) as u64),
        gpu_memory_fraction: args.gpu_memory_fraction,
        deterministic: args.deterministic,
        cuda_graphs: !args.no_cuda_graphs,
        max_batch_tokens: args.max_batch_tokens,
        max_sequences: args.max_sequences,
        step_limit: args.step_limit.map(Duration::from_secs),
        quantization: match args.quantization {
            cli::Quantization::Auto => None,
            cli::Quantization::Int8 => Some(volley_worker::Quantization::Int8),
            cli::Quantization::Fp8 => Some(volley_worker::Quantization::Fp8),
        },
        activations: match args.activations {
            cli::Activations::Int8 => volley_worker::Activations::Int8,
            cli::Activations::F32 => volley_worker::Activations::F32,
        },
        pooling: match args.pooling {
            cli::Pooling::None => None,
            cli::Pooling::Mean => Some(volley_worker::Pooling::Mean),
            cli::Pooling::Last => Some(volley_worker::Pooling::Last),
        },
        abort_on: args.test_abort_on_tokens.clone(),
    };
    let loaded = spawn_blocking(move || {
        let worker = Worker::load(config, |done, total| progress.update(done, total));
        progress.finish();
        worker
    });
    Ok(loaded.await.map_err(|e| ended(&e))??)
}

/// Where the model is to run.
pub(super) fn device(args: &EngineArgs) -> volley_worker::Device {
    match args.device {
        cli::Device::Auto => volley_worker::Device::Auto,
        cli::Device::Cpu => volley_worker::Device::Cpu,
        cli::Device::Cuda(index) => volley_worker::Device::Cuda(index.unwrap_or(0)),
    }
}

fn ended(error: &tokio::task::JoinError) -> Error {
    Error::Ended { part: "loader", reason: Some(error.to_string()) }
}
