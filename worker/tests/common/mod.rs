//! A worker that serves in this process, and a connection to it.

#![allow(dead_code)] // each test binary uses a part
#![allow(clippy::unwrap_used)] // as in the tests that call it

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};
use volley_proto::{
    MAX_MESSAGE, PROTOCOL,
    transport::Transport,
    v1::{
        Claim, Epoch, PlanMessage, ResultMessage, StepPlan, StepResult, WorkerHello, plan_message,
        result_message::Message, worker_client::WorkerClient,
    },
};
use volley_worker::{Config, Error, Worker};

/// A worker that serves in this process.
pub(crate) struct Served {
    pub(crate) transport: Transport,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Served {
    pub(crate) fn start(config: Config) -> Self {
        let worker = Worker::load(config, |_, _| ()).unwrap();
        let (transport, shutdown) = (Transport::default(), CancellationToken::new());
        let task = tokio::spawn(worker.serve(transport.listen_inproc("worker"), shutdown.clone()));
        Self { transport, shutdown, task }
    }

    pub(crate) async fn client(&self) -> WorkerClient<Channel> {
        let channel = self.transport.connect("inproc://worker").await.unwrap();
        WorkerClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) async fn link(&self) -> Link {
        let (plans, stream) = mpsc::channel(8);
        let results = self.client().await.run(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Link { plans, results }
    }

    pub(crate) async fn claimed(&self, claim: u64) -> (Link, WorkerHello) {
        let mut link = self.link().await;
        let claim = Claim {
            protocol: PROTOCOL,
            scheduler_id: "s".into(),
            epoch: Some(Epoch { claim, connection: 1 }),
        };
        link.send(plan_message::Message::Claim(claim)).await;
        match link.next().await.unwrap() {
            Message::Hello(hello) => (link, hello),
            Message::Result(_) => panic!("a result before the hello"),
        }
    }
}

pub(crate) struct Link {
    plans: mpsc::Sender<PlanMessage>,
    results: Streaming<ResultMessage>,
}

impl Link {
    pub(crate) async fn send(&self, message: plan_message::Message) {
        self.plans.send(PlanMessage { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<Message, Status> {
        let message = self.results.message().await?;
        Ok(message.ok_or_else(|| Status::cancelled("the stream has ended"))?.message.unwrap())
    }

    pub(crate) async fn step(&mut self, plan: StepPlan) -> Result<StepResult, Status> {
        self.send(plan_message::Message::Plan(plan)).await;
        match self.next().await? {
            Message::Result(result) => Ok(result),
            Message::Hello(_) => panic!("a second hello"),
        }
    }
}
