//! A scheduler that does what a test tells it to, and an engine linked to it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{StreamExt, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};
use volley_membership::{Local, Member, Membership, Registration, Role};
use volley_proto::{
    transport::Transport,
    v1::{
        Cancel, FetchModelRequest, FileChunk, Load, ModelCard, Models, RouterMessage, SchedulerHello,
        SchedulerMessage, SequenceOutput, StepOutput, Submission,
        router_message::Message as Up,
        scheduler_message::Message as Down,
        scheduler_server::{Scheduler, SchedulerServer},
    },
};

use super::super::{Engine, EngineConfig};
use crate::{engine::artefacts, fixture};

/// A router's engine, the members it sees, and the schedulers that listen.
pub(super) struct World {
    pub(super) engine: Engine,
    members: Local,
    registrations: HashMap<String, Registration>,
    transport: Transport,
    _shutdown: DropGuard,
}

/// A scheduler's side.
pub(super) struct Fake {
    pub(super) connections: mpsc::UnboundedReceiver<Connection>,
    pub(super) fetches: Arc<AtomicUsize>,
}

/// A router's link as the scheduler sees it. Dropping it breaks the link.
pub(super) struct Connection {
    inbound: Streaming<RouterMessage>,
    outbound: mpsc::Sender<Result<SchedulerMessage, Status>>,
}

/// A whole submission.
#[derive(Debug)]
pub(super) struct Submitted {
    pub(super) request: u64,
    pub(super) attempt: u32,
    pub(super) header: Submission,
    pub(super) prompt: Vec<u32>,
    pub(super) chunks: usize,
}

struct Service {
    connections: mpsc::UnboundedSender<Connection>,
    fetches: Arc<AtomicUsize>,
    files: BTreeMap<String, Vec<u8>>,
}

/// The files of the model that every fake serves.
pub(super) fn files() -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([
        ("tokenizer.json".to_owned(), fixture::byte_level(&[])),
        ("chat_template.jinja".to_owned(), fixture::CHAT_TEMPLATE.as_bytes().to_vec()),
    ])
}

/// Their card.
pub(super) fn card() -> ModelCard {
    ModelCard { hash: artefacts::hash_files(&files()), ..fixture::card() }
}

// === impl World ===

impl World {
    pub(super) fn new(config: EngineConfig) -> Self {
        let members = Local::default();
        let (transport, shutdown) = (Transport::default(), CancellationToken::new());
        let engine = Engine::connect(config, Arc::new(members.clone()), transport.clone(), shutdown.clone());
        Self { engine, members, registrations: HashMap::new(), transport, _shutdown: shutdown.drop_guard() }
    }

    /// A scheduler comes up and announces itself.
    pub(super) async fn scheduler(&mut self, id: &str, files: BTreeMap<String, Vec<u8>>) -> Fake {
        let (connections, accepted) = mpsc::unbounded_channel();
        let fetches = Arc::new(AtomicUsize::new(0));
        let service = Service { connections, fetches: fetches.clone(), files };
        let incoming = self.transport.listen_inproc(id);
        let server = tonic::transport::Server::builder().add_service(SchedulerServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming));
        let member = Member { id: id.to_owned(), address: format!("inproc://{id}"), model: String::new() };
        let registration = self.members.register(Role::Scheduler, member).await.unwrap();
        self.registrations.insert(id.to_owned(), registration);
        Fake { connections: accepted, fetches }
    }

    /// A scheduler is no longer announced.
    pub(super) fn withdraw(&mut self, id: &str) {
        self.registrations.remove(id);
    }
}

// === impl Fake ===

impl Fake {
    /// The next link, shaken hands and told what is served.
    pub(super) async fn linked(&mut self) -> Connection {
        let mut connection = self.connections.recv().await.unwrap();
        assert!(matches!(connection.next().await, Up::Hello(hello) if hello.router_id == "router-1"));
        connection.send(Down::Hello(SchedulerHello { protocol: 1, scheduler_id: "s".into() })).await;
        connection.serves(vec![card()]).await;
        connection
    }
}

// === impl Connection ===

impl Connection {
    pub(super) async fn send(&self, message: Down) {
        self.outbound.send(Ok(SchedulerMessage { message: Some(message) })).await.unwrap();
    }

    /// Says what is served from now on.
    pub(super) async fn serves(&self, cards: Vec<ModelCard>) {
        self.send(Down::Models(Models { cards })).await;
    }

    /// Sends one step's outputs.
    pub(super) async fn step(&self, sequences: Vec<SequenceOutput>) {
        self.send(Down::Output(StepOutput { sequences })).await;
    }

    pub(super) async fn load(&self, waiting: u32) {
        self.send(Down::Load(Load { waiting, ..Load::default() })).await;
    }

    pub(super) async fn next(&mut self) -> Up {
        self.inbound.message().await.unwrap().unwrap().message.unwrap()
    }

    /// The next message must be a cancel.
    pub(super) async fn cancelled(&mut self) -> Cancel {
        match self.next().await {
            Up::Cancel(cancel) => cancel,
            other => panic!("not a cancel: {other:?}"),
        }
    }

    /// The next messages must be a submission.
    pub(super) async fn submitted(&mut self) -> Submitted {
        let mut whole: Option<Submitted> = None;
        loop {
            let Up::Submit(submit) = self.next().await else { panic!("not a submission") };
            let whole = whole.get_or_insert_with(|| Submitted {
                request: submit.request,
                attempt: submit.attempt,
                header: submit.header.clone().unwrap(),
                prompt: Vec::new(),
                chunks: 0,
            });
            assert_eq!(whole.request, submit.request);
            whole.prompt.extend(submit.prompt);
            whole.chunks += 1;
            if submit.last {
                return Submitted {
                    header: whole.header.clone(),
                    prompt: std::mem::take(&mut whole.prompt),
                    ..*whole
                };
            }
        }
    }
}

// === impl Submitted ===

impl Submitted {
    /// An output of its choice 0: this text, a token per byte.
    pub(super) fn text(&self, text: &str) -> SequenceOutput {
        self.choice(0, text)
    }

    pub(super) fn choice(&self, choice: u32, text: &str) -> SequenceOutput {
        SequenceOutput {
            request: self.request,
            attempt: self.attempt,
            choice,
            tokens: text.bytes().map(u32::from).collect(),
            ..SequenceOutput::default()
        }
    }
}

// === impl Service ===

#[tonic::async_trait]
impl Scheduler for Service {
    type ServeStream = ReceiverStream<Result<SchedulerMessage, Status>>;
    type FetchModelStream = BoxStream<'static, Result<FileChunk, Status>>;

    async fn serve(
        &self,
        request: Request<Streaming<RouterMessage>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let (outbound, messages) = mpsc::channel(1024);
        let connection = Connection { inbound: request.into_inner(), outbound };
        self.connections.send(connection).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn fetch_model(
        &self,
        _: Request<FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let mut chunks = Vec::new();
        for (name, data) in &self.files {
            for (i, data) in data.chunks(1000).enumerate() {
                let name = if i == 0 { name.clone() } else { String::new() };
                chunks.push(Ok(FileChunk { name, data: data.to_vec() }));
            }
        }
        Ok(Response::new(futures::stream::iter(chunks).boxed()))
    }
}
