//! Loading a model and serving it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use volley_grammar::{Compiler, Vocabulary};
use volley_kernels::{BLOCK_TOKENS, Backend, DType, cuda::CudaBackend};
use volley_proto::{
    MAX_MESSAGE, PROTOCOL,
    transport::Incoming,
    v1::{KvGroup, ModelCard, WorkerHello, worker_server::WorkerServer},
};

use crate::{
    Error,
    card::card,
    config::{Config, Quantization},
    decoder::Capacity,
    device::{self, Device},
    engine::{self, DraftModel, Engine, Guides, Jobs, Limits, Running, Watch},
    group::Group,
    model::Model,
    plan::Plan,
    service::Service,
    shard::{self, Shard},
    step_size::{Room, StepSize},
    text::Text,
    weights,
};

/// A dead peer is noticed within the sum of these.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));
/// How long connections may take to end at a shutdown.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// A loaded model, ready to serve.
pub struct Worker {
    hello: WorkerHello,
    files: Arc<BTreeMap<&'static str, Bytes>>,
    /// What the step thread runs; hides which backend it is.
    steps: Box<dyn FnOnce(Jobs) -> Result<(), Error> + Send>,
    card: ModelCard,
    watch: Watch,
    /// Where steps run, for people, and how long one may take.
    device: String,
    step_limit: Duration,
}

// === impl Worker ===

impl Worker {
    /// Opens and loads a model; `progress` is told the bytes of weights done and in total. Takes its time:
    /// not for the async threads.
    pub fn load(config: Config, progress: impl FnMut(u64, u64)) -> Result<Self, Error> {
        // A device that isn't there is said before a model is read.
        let device = device::open(&config)?;
        Self::load_on(device, config, progress)
    }

    /// The same on a GPU that is open already, whatever the configuration says: in tests, the twin of one.
    pub fn load_on_gpu(
        gpu: CudaBackend,
        config: Config,
        progress: impl FnMut(u64, u64),
    ) -> Result<Self, Error> {
        Self::load_on(Device::Cuda(vec![gpu], "the GPU".to_owned()), config, progress)
    }

    fn load_on(device: Device, config: Config, mut progress: impl FnMut(u64, u64)) -> Result<Self, Error> {
        let started = Instant::now();
        let model = open(&config, &device, &config.model)?;
        shard::check(&model, config.tensor_parallel)?;
        let draft = config.draft.as_deref().map(|draft| open(&config, &device, draft)).transpose()?;
        if let Some(draft) = &draft {
            speaks_alike(&model, draft)?;
        }
        let worker = match device {
            Device::Cpu(ranks) => {
                let draft = draft.as_ref().map(|draft| Ok::<_, Error>((device::cpu(&config)?, draft)));
                Self::with_ranks(&config, (ranks, &model), draft.transpose()?, &mut progress)?
            }
            Device::Cuda(ranks, name) => {
                let draft = draft.as_ref().zip(ranks.first()).map(|(draft, gpu)| (gpu.another(), draft));
                let worker = Self::with_ranks(&config, (ranks, &model), draft, &mut progress)?;
                let step_limit = config.step_limit.unwrap_or(Config::GPU_STEP_LIMIT);
                Self { device: name, step_limit, ..worker }
            }
        };
        tracing::info!(
            model = worker.card.name,
            architecture = worker.card.architecture,
            weights = worker.card.weight_format,
            context = worker.card.context_length,
            kv_blocks = worker.hello.groups[0].blocks,
            max_batch_tokens = worker.hello.max_batch_tokens,
            max_sequences = worker.hello.max_sequences,
            numerics = worker.card.numerics_class,
            seconds = (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            "loaded"
        );
        Ok(worker)
    }

    /// Loads a model onto devices that are open, one for each rank; a draft model has a device of its own.
    pub(crate) fn with_ranks<B: Backend>(
        config: &Config,
        (ranks, model): (Vec<B>, &Model),
        draft: Option<(B, &Model)>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let weights_hash = match &config.weights_hash {
            Some(hash) => hash.clone(),
            None => weights::hash(&model.files, config.cache.as_deref())?,
        };
        let mut others = ranks.into_iter();
        let Some(first) = others.next() else {
            return Err(Error::Config("a worker needs a device".to_owned()));
        };
        let card = card(config, model, weights_hash, first.numerics());
        let Model { description, weights, text, .. } = model;
        let guides = Guides::start(compiler(text, description.vocab))
            .map_err(|e| Error::Config(format!("cannot start the threads of guided sequences: {e}")))?;
        let ranks = Shard::of(&first).ranks() as u64;
        let drafts_bytes = draft.as_ref().map_or(0, |(_, draft)| draft.bytes_on_gpu());
        let weights_bytes = model.bytes_on_gpu() / ranks + drafts_bytes;
        let room = first.memory()?.map(|memory| Room { memory, weights: weights_bytes });
        let size = StepSize::of(config, description, room);
        let (rows, sequences) = (size.max_batch_tokens as usize, size.max_sequences as usize);
        if rows == 0 || sequences == 0 {
            return Err(Error::Config(format!(
                "max-batch-tokens {rows}, max-sequences {sequences}: expected at least 1 of each"
            )));
        }
        let capacity = Capacity { rows, sequences };
        let drafts = draft.as_ref().map(|(_, draft)| &draft.description);
        let plan = Plan::new(config, size, description, drafts, &first)?;
        let mut draft_model = None;
        // What else is to have memory has it before blocks are counted: each has its like in the draft model's cache.
        let blocks = |backend: &B| match draft {
            None => plan.blocks_of(backend),
            Some((backend, Model { description, weights, .. })) => {
                let blocks = |backend: &B| plan.blocks_of(backend);
                let (decoder, blocks) =
                    plan.load(backend, description, weights, capacity, &mut |_, _| (), blocks)?;
                draft_model = Some(DraftModel::new(decoder, rows, blocks));
                Ok(blocks)
            }
        };
        let first = || plan.load(first, description, weights, capacity, progress, blocks);
        let other = |backend: B| {
            let plan = Plan::new(config, size, description, None, &backend)?;
            let blocks = |backend: &B| plan.blocks_of(backend);
            let loaded = plan.load(backend, description, weights, capacity, &mut |_, _| (), blocks);
            loaded.map(|(decoder, _)| decoder)
        };
        let (decoder, blocks) = Group::load(first, others.collect(), other)?;
        let limits = Limits {
            sequences,
            rows,
            blocks,
            context: description.context,
            vocab: description.vocab,
            pooling: config.pooling,
        };
        let block_bytes = decoder.backend().block_bytes(description.layers, description.heads) as u64;
        let group = KvGroup {
            layers: description.layers as u32,
            bytes_per_token: block_bytes.div_ceil(BLOCK_TOKENS as u64) as u32,
            window: None,
            blocks: blocks as u64,
        };
        let hello = WorkerHello {
            protocol: PROTOCOL,
            worker_id: config.id.clone(),
            card: Some(card.clone()),
            groups: vec![group],
            block_tokens: BLOCK_TOKENS as u32,
            max_sequences: size.max_sequences,
            max_batch_tokens: size.max_batch_tokens,
            inventory: Vec::new(), // the step thread's to tell
        };
        let (abort_on, watch) = (config.abort_on.clone(), Watch::default());
        let watched = watch.clone();
        let steps = Box::new(move |jobs| {
            let engine = Engine::new(decoder, draft_model, limits, guides);
            engine.abort_on(abort_on).watched(watched).run(jobs)
        });
        Ok(Self {
            hello,
            files: Arc::new(text.files.clone()),
            steps,
            card,
            watch,
            device: "the CPU".to_owned(),
            step_limit: config.step_limit.unwrap_or(Config::CPU_STEP_LIMIT),
        })
    }

    /// What is served.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// KV blocks.
    #[cfg(test)]
    pub(crate) fn blocks(&self) -> u64 {
        self.hello.groups[0].blocks
    }

    /// Serves schedulers until `shutdown`; then ends their connections, and the step thread.
    pub async fn serve(self, incoming: Incoming, shutdown: CancellationToken) -> Result<(), Error> {
        engine::describe();
        let (jobs, waiting) = Jobs::queue();
        let (ended, mut thread) = oneshot::channel::<Result<(), Error>>();
        let steps = self.steps;
        std::thread::Builder::new()
            .name("volley-step".to_owned())
            .spawn(move || {
                let _ = ended.send(steps(waiting)); // nobody waits after an error
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
            ended = &mut thread => return Err(match ended {
                Ok(Err(error)) => Error::StepThread(format!("ended: {error}")),
                Ok(Ok(())) | Err(_) => Error::StepThread("died".to_owned()),
            }),
            Running { step_id, rows, sequences, .. } = self.watch.hung(self.step_limit) => {
                let (device, limit) = (self.device, self.step_limit);
                return Err(Error::Hung { step: step_id, rows, sequences, device, limit });
            }
        }
        // The connections are gone, and so is the last sender of jobs: the thread ends when its step does.
        let _ = tokio::time::timeout(SHUTDOWN, thread).await;
        Ok(())
    }
}

/// Opens a model whose weights go to a device as they are to.
fn open(config: &Config, device: &Device, model: &Path) -> Result<Model, Error> {
    let model = Model::open(model)?;
    match (config.quantization, device) {
        (None, _) => Ok(model),
        (Some(Quantization::Int8), _) => Ok(model.converted(DType::Int8)),
        (Some(Quantization::Fp8), Device::Cuda(..)) => Ok(model.converted(DType::E4m3)),
        (Some(Quantization::Fp8), Device::Cpu(_)) => Err(Error::Config(
            "--quantization fp8: a CPU computes with 8-bit integers, and would round twice; it takes int8"
                .to_owned(),
        )),
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
