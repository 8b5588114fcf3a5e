//! Workers, schedulers and routers in one process, over the in-memory transport.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};
use volley_membership::{Local, Member, Membership, Registration, Role};
use volley_proto::{
    PROTOCOL,
    transport::Transport,
    v1::{
        self, plan_message, result_message, router_message, scheduler_client::SchedulerClient,
        scheduler_message, worker_server,
    },
};
use volley_scheduler::{Config, Readiness, serve};

use super::{FakeWorker, Poison, Stream as Tokens};

pub const CONTEXT: usize = 8192;
pub const BLOCK_TOKENS: u32 = 16;
pub const BLOCKS: u64 = 1024;

/// What the parts of a test's cluster share.
#[derive(Clone, Default)]
pub struct Cluster {
    pub transport: Transport,
    pub membership: Local,
    /// What every worker dies of.
    pub poison: Option<Poison>,
}

/// A worker's process.
pub struct Worker {
    /// One permit lets one step run.
    pub gate: Arc<Semaphore>,
    pub steps: Arc<AtomicUsize>,
    pub epochs: Arc<Mutex<Vec<v1::Epoch>>>,
    deaths: Arc<AtomicUsize>,
    streams: Arc<Mutex<CancellationToken>>,
    _registration: Registration,
    _server: DropGuard,
}

/// A scheduler's process.
pub struct Scheduler {
    pub id: String,
    pub readiness: Readiness,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// A router's end of a link.
pub struct Router {
    messages: mpsc::Sender<v1::RouterMessage>,
    pub answers: Streaming<v1::SchedulerMessage>,
    pub streams: BTreeMap<(u64, u32), Tokens>,
    pub failures: BTreeMap<(u64, u32), v1::Failure>,
    /// The last that was said.
    pub load: v1::Load,
}

struct WorkerService {
    id: String,
    poison: Option<Poison>,
    deaths: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    steps: Arc<AtomicUsize>,
    epochs: Arc<Mutex<Vec<v1::Epoch>>>,
    streams: Arc<Mutex<CancellationToken>>,
}

// === impl Cluster ===

impl Cluster {
    /// Starts a worker that runs as many steps as its gate lets it.
    pub async fn worker(&self, id: &str, steps: usize) -> Worker {
        let service = WorkerService {
            id: id.to_owned(),
            poison: self.poison.clone(),
            deaths: Arc::default(),
            gate: Arc::new(Semaphore::new(steps)),
            steps: Arc::default(),
            epochs: Arc::default(),
            streams: Arc::default(),
        };
        let (gate, counted, epochs) = (service.gate.clone(), service.steps.clone(), service.epochs.clone());
        let (streams, deaths) = (service.streams.clone(), service.deaths.clone());
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder()
            .add_service(worker_server::WorkerServer::new(service))
            .serve_with_incoming(self.transport.listen_inproc(id));
        tokio::spawn(stop.clone().run_until_cancelled_owned(server));
        let member = Member { id: id.into(), address: format!("inproc://{id}"), model: "fake".into() };
        let registration = self.membership.register(Role::Worker, member).await.unwrap();
        Worker {
            gate,
            steps: counted,
            epochs,
            deaths,
            streams,
            _registration: registration,
            _server: stop.drop_guard(),
        }
    }

    pub fn scheduler(&self, id: &str) -> Scheduler {
        let config =
            Config { step_deadline: Duration::from_secs(2), ..Config::new(id, format!("inproc://{id}")) };
        let (readiness, shutdown) = (config.readiness.clone(), CancellationToken::new());
        let served = serve(
            config,
            Arc::new(self.membership.clone()),
            self.transport.clone(),
            self.transport.listen_inproc(id),
            shutdown.clone(),
        );
        let task = tokio::spawn(async move { served.await.unwrap() });
        Scheduler { id: id.into(), readiness, shutdown, task }
    }

    pub async fn client(&self, scheduler: &str) -> SchedulerClient<tonic::transport::Channel> {
        SchedulerClient::new(self.transport.connect(&format!("inproc://{scheduler}")).await.unwrap())
    }

    /// Opens a link, and waits until the scheduler has said who it is.
    pub async fn router(&self, scheduler: &str) -> Router {
        let (messages, outgoing) = mpsc::channel(1000);
        let hello = v1::RouterHello { protocol: PROTOCOL, router_id: "router".into() };
        let hello = v1::RouterMessage { message: Some(router_message::Message::Hello(hello)) };
        messages.send(hello).await.unwrap();
        let mut client = self.client(scheduler).await;
        let answers = client.serve(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let (streams, failures) = (BTreeMap::new(), BTreeMap::new());
        let mut router = Router { messages, answers, streams, failures, load: v1::Load::default() };
        let first = router.next().await.unwrap();
        assert!(matches!(first, scheduler_message::Message::Hello(hello) if hello.scheduler_id == scheduler));
        router
    }
}

// === impl Worker ===

impl Worker {
    pub fn steps(&self) -> usize {
        self.steps.load(Ordering::SeqCst)
    }

    /// How often it died of poison. It is back at once.
    pub fn deaths(&self) -> usize {
        self.deaths.load(Ordering::SeqCst)
    }

    /// Breaks the streams that are open; it listens on.
    pub fn hang_up(&self) {
        std::mem::take(&mut *self.streams.lock().unwrap()).cancel();
    }

    /// What `kill -9` does: streams and listener go together.
    pub fn die(self) {
        self.hang_up();
    }
}

// === impl Scheduler ===

impl Scheduler {
    pub async fn ready(&self) {
        self.readiness.workers().wait_for(|&workers| workers > 0).await.unwrap();
    }

    pub async fn shut_down(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

// === impl Router ===

impl Router {
    /// Submits in two chunks.
    pub async fn submit(&self, request: u64, prompt: &[u32], submission: &v1::Submission) {
        let (head, tail) = prompt.split_at(prompt.len() / 2);
        let header = v1::Submission { model_hash: "hash".into(), ..submission.clone() };
        let first = v1::Submit { request, header: Some(header), prompt: head.into(), ..Default::default() };
        let last = v1::Submit { request, prompt: tail.into(), last: true, ..Default::default() };
        for chunk in [first, last] {
            self.send(router_message::Message::Submit(chunk)).await;
        }
    }

    pub async fn cancel(&self, request: u64) {
        self.send(router_message::Message::Cancel(v1::Cancel { request, choice: None })).await;
    }

    async fn send(&self, message: router_message::Message) {
        self.messages.send(v1::RouterMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message. Outputs are also added to `streams` and `failures`.
    pub async fn next(&mut self) -> Option<scheduler_message::Message> {
        let message = self.answers.message().await.ok()??.message.unwrap();
        if let scheduler_message::Message::Load(load) = message {
            self.load = load;
        }
        if let scheduler_message::Message::Output(step) = &message {
            for output in step.sequences.clone() {
                let key = (output.request, output.choice);
                match output.failure.clone() {
                    Some(failure) => drop(self.failures.insert(key, failure)),
                    None => self.streams.entry(key).or_default().extend(output),
                }
            }
        }
        Some(message)
    }

    /// Reads until a choice has this many tokens.
    pub async fn tokens(&mut self, key: (u64, u32), tokens: usize) {
        while self.streams.get(&key).is_none_or(|stream| stream.tokens.len() < tokens) {
            self.next().await.expect("the link holds");
        }
    }

    /// Reads until so many sequences are over.
    pub async fn ends(&mut self, sequences: usize) {
        let finished =
            |s: &Self| s.streams.values().filter(|s| s.finish != v1::FinishReason::Unspecified).count();
        while finished(self) + self.failures.len() < sequences {
            self.next().await.expect("the link holds");
        }
    }

    /// Reads until the last load holds.
    pub async fn load(&mut self, holds: impl Fn(&v1::Load) -> bool) -> v1::Load {
        while !holds(&self.load) {
            self.next().await.expect("the link holds");
        }
        self.load
    }

    /// Reads until a list of models that holds.
    pub async fn models(&mut self, holds: impl Fn(&[v1::ModelCard]) -> bool) {
        loop {
            match self.next().await.expect("the link holds") {
                scheduler_message::Message::Models(models) if holds(&models.cards) => return,
                _ => {}
            }
        }
    }
}

// === impl WorkerService ===

#[tonic::async_trait]
impl worker_server::Worker for WorkerService {
    type RunStream = std::pin::Pin<Box<dyn Stream<Item = Result<v1::ResultMessage, Status>> + Send>>;
    type FetchModelStream = std::pin::Pin<Box<dyn Stream<Item = Result<v1::FileChunk, Status>> + Send>>;

    async fn run(
        &self,
        request: Request<Streaming<v1::PlanMessage>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let mut plans = request.into_inner();
        let first = plans.message().await?.and_then(|message| message.message);
        let Some(plan_message::Message::Claim(claim)) = first else { panic!("a claim comes first") };
        let epoch = claim.epoch.unwrap();
        {
            let mut epochs = self.epochs.lock().unwrap();
            if epochs
                .last()
                .is_some_and(|last| (last.claim, last.connection) >= (epoch.claim, epoch.connection))
            {
                return Err(Status::failed_precondition("a newer scheduler has this worker"));
            }
            epochs.push(epoch);
        }
        // Whoever was here before is fenced off.
        let stop = CancellationToken::new();
        std::mem::replace(&mut *self.streams.lock().unwrap(), stop.clone()).cancel();
        let mut worker = FakeWorker::new(BLOCK_TOKENS as usize, 64);
        worker.poison.clone_from(&self.poison);
        let counts = (self.steps.clone(), self.deaths.clone());
        let results = async_stream(self.id.clone(), worker, epoch, plans, self.gate.clone(), counts);
        Ok(Response::new(results.take_until(stop.cancelled_owned()).boxed()))
    }

    async fn fetch_model(
        &self,
        request: Request<v1::FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        let data = request.into_inner().hash.into_bytes();
        let chunk = v1::FileChunk { name: "tokenizer.json".into(), data };
        Ok(Response::new(futures::stream::iter([Ok(chunk)]).boxed()))
    }
}

fn async_stream(
    id: String,
    worker: FakeWorker,
    epoch: v1::Epoch,
    plans: Streaming<v1::PlanMessage>,
    gate: Arc<Semaphore>,
    (steps, deaths): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) -> impl Stream<Item = Result<v1::ResultMessage, Status>> + Send {
    let hello = result_message::Message::Hello(hello(id));
    let hello = futures::stream::iter([Ok(v1::ResultMessage { message: Some(hello) })]);
    let results = futures::stream::unfold((worker, plans), move |(mut worker, mut plans)| {
        let (gate, steps, deaths) = (gate.clone(), steps.clone(), deaths.clone());
        async move {
            let plan = plans.message().await.ok()??.message?;
            let plan_message::Message::Plan(plan) = plan else { panic!("one claim, then plans") };
            gate.acquire().await.unwrap().forget();
            if worker.dies_of(&plan) {
                deaths.fetch_add(1, Ordering::SeqCst);
                return None;
            }
            let mut result = worker.step(plan);
            result.epoch = Some(epoch);
            steps.fetch_add(1, Ordering::SeqCst);
            let message = result_message::Message::Result(result);
            Some((Ok(v1::ResultMessage { message: Some(message) }), (worker, plans)))
        }
    });
    hello.chain(results)
}

fn hello(worker_id: String) -> v1::WorkerHello {
    let card = v1::ModelCard {
        name: "fake".into(),
        hash: "hash".into(),
        context_length: CONTEXT as u32,
        ..Default::default()
    };
    v1::WorkerHello {
        protocol: PROTOCOL,
        worker_id,
        card: Some(card),
        groups: vec![v1::KvGroup { layers: 1, bytes_per_token: 1, window: None, blocks: BLOCKS }],
        block_tokens: BLOCK_TOKENS,
        max_sequences: 8,
        max_batch_tokens: 64,
        inventory: Vec::new(),
    }
}
