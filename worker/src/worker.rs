//! Loading a model and serving it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use volley_grammar::{Compiler, Vocabulary};
use volley_kernels::{
    BLOCK_TOKENS, Backend,
    cpu::{CpuBackend, CpuOptions},
};
use volley_proto::{
    MAX_MESSAGE, PROTOCOL,
    transport::Incoming,
    v1::{KvGroup, ModelCard, WorkerHello, worker_server::WorkerServer},
};

use crate::{
    Error,
    card::card,
    config::{Config, Device},
    decoder::{Capacity, Decoder},
    engine::{self, DraftModel, Engine, Guides, Job, Limits, WAITING_JOBS},
    memory,
    model::{Description, Model},
    service::Service,
    text::Text,
    weights,
};

/// Of the memory that is free, the KV cache takes this part by default.
const CACHE_SHARE: u64 = 4;
/// A dead peer is noticed within the sum of these.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));
/// How long connections may take to end at a shutdown.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// A loaded model, ready to serve.
pub struct Worker {
    hello: WorkerHello,
    files: Arc<BTreeMap<&'static str, Bytes>>,
    /// What the step thread runs; hides which backend it is.
    steps: Box<dyn FnOnce(mpsc::Receiver<Job>) + Send>,
    card: ModelCard,
}

// === impl Worker ===

impl Worker {
    /// Opens and loads a model; `progress` is told the bytes of weights done and in total. Takes its time:
    /// not for the async threads.
    pub fn load(config: Config, mut progress: impl FnMut(u64, u64)) -> Result<Self, Error> {
        if let Device::Cuda(index) = config.device {
            return Err(Error::Config(format!(
                "device cuda:{index}: GPUs are not in this build yet; use cpu"
            )));
        }
        let started = Instant::now();
        let model = Model::open(&config.model)?;
        let weights_hash = match &config.weights_hash {
            Some(hash) => hash.clone(),
            None => weights::hash(&model.files, config.cache.as_deref())?,
        };
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let threads = config.threads.unwrap_or_else(cores).min(cores());
        if let Some(asked) = config.threads.filter(|&asked| asked > threads) {
            tracing::warn!(
                "{asked} threads were asked for; this process may run {threads} side by side, so it has {threads}"
            );
        }
        let draft = config.draft.as_deref().map(Model::open).transpose()?;
        if let Some(draft) = &draft {
            speaks_alike(&model, draft)?;
        }
        let options = CpuOptions { threads, activations: config.activations, isa: None };
        let backend = || CpuBackend::new(options);
        let draft = draft.as_ref().map(|draft| backend().map(|backend| (backend, draft))).transpose()?;
        let backend = backend()?;
        let card = card(&config, &model, weights_hash, &backend.numerics());
        let worker = Self::with_backend(&config, (backend, &model), draft, card, &mut progress)?;
        tracing::info!(
            model = worker.card.name,
            architecture = worker.card.architecture,
            weights = worker.card.weight_format,
            context = worker.card.context_length,
            kv_blocks = worker.hello.groups[0].blocks,
            threads,
            seconds = (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            "loaded"
        );
        Ok(worker)
    }

    fn with_backend<B: Backend>(
        config: &Config,
        (backend, model): (B, &Model),
        draft: Option<(B, &Model)>,
        card: ModelCard,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let Model { description, weights, text, .. } = model;
        let guides = Guides::start(compiler(text, description.vocab))
            .map_err(|e| Error::Config(format!("cannot start the threads of guided sequences: {e}")))?;
        let (rows, sequences) = (config.max_batch_tokens as usize, config.max_sequences as usize);
        if rows == 0 || sequences == 0 {
            return Err(Error::Config(format!(
                "max-batch-tokens {rows}, max-sequences {sequences}: expected at least 1 of each"
            )));
        }
        let block_bytes =
            |backend: &B, model: &Description| backend.block_bytes(model.layers, model.heads) as u64;
        let of_draft = draft.as_ref().map_or(0, |(backend, draft)| block_bytes(backend, &draft.description));
        let block_bytes = block_bytes(&backend, description);
        // Each block has its like in the draft model's cache.
        let blocks = blocks(config, description, block_bytes + of_draft)?;
        let limits = Limits {
            sequences,
            rows,
            blocks,
            context: description.context,
            vocab: description.vocab,
            pooling: config.pooling,
        };
        let group = KvGroup {
            layers: description.layers as u32,
            bytes_per_token: block_bytes.div_ceil(BLOCK_TOKENS as u64) as u32,
            window: None,
            blocks: blocks as u64,
        };
        let capacity = Capacity { rows, blocks };
        let decoder = Decoder::load(backend, description.clone(), weights, capacity, progress)?;
        let load_draft = |(backend, draft): (B, &Model)| {
            let decoder =
                Decoder::load(backend, draft.description.clone(), &draft.weights, capacity, progress)?;
            Ok::<_, Error>(DraftModel::new(decoder, rows, blocks))
        };
        let draft = draft.map(load_draft).transpose()?;
        let hello = WorkerHello {
            protocol: PROTOCOL,
            worker_id: config.id.clone(),
            card: Some(card.clone()),
            groups: vec![group],
            block_tokens: BLOCK_TOKENS as u32,
            max_sequences: config.max_sequences,
            max_batch_tokens: config.max_batch_tokens,
        };
        let abort_on = config.abort_on.clone();
        let steps =
            Box::new(move |jobs| Engine::new(decoder, draft, limits, guides).abort_on(abort_on).run(jobs));
        Ok(Self { hello, files: Arc::new(text.files.clone()), steps, card })
    }

    /// What is served.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Serves schedulers until `shutdown`; then ends their connections, and the step thread.
    pub async fn serve(self, incoming: Incoming, shutdown: CancellationToken) -> Result<(), Error> {
        engine::describe();
        let (jobs, waiting) = mpsc::channel(WAITING_JOBS);
        let (ended, mut thread) = oneshot::channel::<()>();
        let steps = self.steps;
        std::thread::Builder::new()
            .name("volley-step".to_owned())
            .spawn(move || {
                steps(waiting);
                let _ = ended.send(()); // nobody waits after an error
            })
            .map_err(|e| Error::StepThread(format!("could not start: {e}")))?;

        let stop = shutdown.clone().cancelled_owned();
        let service = Service { jobs, hello: self.hello, files: self.files, shutdown: shutdown.clone() };
        let service = WorkerServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE.0))
            .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop);
        let overdue = async {
            shutdown.cancelled().await;
            tokio::time::sleep(SHUTDOWN).await;
        };
        tokio::select! {
            served = server => served?,
            () = overdue => tracing::warn!("some connections did not end in time"),
            _ = &mut thread => return Err(Error::StepThread("died".to_owned())),
        }
        // The connections are gone, and so is the last sender of jobs: the thread ends when its step does.
        let _ = tokio::time::timeout(SHUTDOWN, thread).await;
        Ok(())
    }
}

/// What one model guesses must be tokens of the other.
fn speaks_alike(model: &Model, draft: &Model) -> Result<(), Error> {
    let vocabulary = |model: &Model| {
        let tokenizer = serde_json::from_slice::<serde_json::Value>(&model.text.tokenizer()).ok()?;
        Some(tokenizer.get("model")?.get("vocab")?.clone())
    };
    let (size, drafts) = (model.description.vocab, draft.description.vocab);
    if size != drafts || vocabulary(model) != vocabulary(draft) {
        return Err(Error::Config(format!(
            "the draft model has another vocabulary ({drafts} tokens) than the model ({size}): choose one of the \
             same family, or leave out --draft-model"
        )));
    }
    Ok(())
}

/// Compiles grammars for the model's vocabulary, which is read for the first of them.
pub(crate) fn compiler(text: &Text, vocab: usize) -> Compiler {
    let file = text.tokenizer();
    let vocabulary = move || Vocabulary::from_json(&file).map(Arc::new);
    Compiler::new(vocabulary, vocab as u32, &text.stop)
}

/// How many KV blocks to reserve: what the memory allows, and no more than all slots can use.
fn blocks(config: &Config, model: &Description, block_bytes: u64) -> Result<usize, Error> {
    let budget = config.kv_cache_bytes.unwrap_or_else(|| memory::available() / CACHE_SHARE);
    let usable = model.context.div_ceil(BLOCK_TOKENS) as u64 * u64::from(config.max_sequences);
    let blocks = (budget / block_bytes.max(1)).min(usable).min(u32::MAX.into());
    let (wanted, free) = (blocks * block_bytes, memory::available());
    if config.kv_cache_bytes.is_some_and(|asked| asked / block_bytes.max(1) > blocks) {
        let gb = wanted as f64 / 1e9;
        tracing::warn!("the KV cache has {gb:.1} GB: {} sequences can fill no more", config.max_sequences);
    }
    if config.kv_cache_bytes.is_some() && wanted > free {
        let (wanted, free) = (wanted as f64 / 1e9, free as f64 / 1e9);
        return Err(Error::Config(format!(
            "a KV cache of {wanted:.1} GB does not fit: {free:.1} GB of memory are free"
        )));
    }
    match blocks {
        0 => Err(Error::Config(format!(
            "a KV cache of {budget} bytes holds no block of {BLOCK_TOKENS} tokens ({block_bytes} bytes)"
        ))),
        blocks => Ok(blocks as usize),
    }
}
