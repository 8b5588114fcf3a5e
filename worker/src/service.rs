//! The gRPC face: messages in, jobs out, and the other way round. No decisions.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use volley_proto::{
    PROTOCOL,
    v1::{
        Claim, FetchModelRequest, FileChunk, PlanMessage, ResultMessage, WorkerHello, plan_message::Message,
        worker_server,
    },
};

use crate::engine::{Epoch, Job, Results, WAITING_RESULTS};

/// Bytes of a file in one message.
const CHUNK: usize = 256 << 10;

/// Serves the connections of schedulers.
pub(crate) struct Service {
    pub(crate) jobs: mpsc::Sender<Job>,
    /// The answer to a claim.
    pub(crate) hello: WorkerHello,
    /// What routers fetch; the model card in `hello` has their hash.
    pub(crate) files: Arc<BTreeMap<&'static str, Bytes>>,
    pub(crate) shutdown: CancellationToken,
}

/// One scheduler's connection.
struct Connection {
    jobs: mpsc::Sender<Job>,
    hello: WorkerHello,
    results: Results,
    shutdown: CancellationToken,
}

// === impl Service ===

#[tonic::async_trait]
impl worker_server::Worker for Service {
    type RunStream = ReceiverStream<Result<ResultMessage, Status>>;
    type FetchModelStream = Pin<Box<dyn Stream<Item = Result<FileChunk, Status>> + Send>>;

    async fn run(
        &self,
        request: Request<Streaming<PlanMessage>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let (results, stream) = mpsc::channel(WAITING_RESULTS);
        let connection = Connection {
            jobs: self.jobs.clone(),
            hello: self.hello.clone(),
            results,
            shutdown: self.shutdown.clone(),
        };
        tokio::spawn(connection.serve(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch_model(
        &self,
        request: Request<FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        let (asked, have) = (request.into_inner().hash, self.hello.card.as_ref().map(|card| &card.hash));
        if have != Some(&asked) {
            return Err(Status::not_found(format!("this worker does not have model {asked}")));
        }
        let files: Vec<_> = self.files.iter().map(|(name, data)| (*name, data.clone())).collect();
        let chunks = stream::iter(files).flat_map(|(name, data)| stream::iter(chunks(name, data)).map(Ok));
        Ok(Response::new(chunks.boxed()))
    }
}

/// A file as messages: the name is on the first, an empty file has one.
fn chunks(name: &'static str, data: Bytes) -> impl Iterator<Item = FileChunk> {
    let starts = (0..data.len().max(1)).step_by(CHUNK);
    starts.map(move |start| FileChunk {
        name: if start == 0 { name.to_owned() } else { String::new() },
        data: data[start..data.len().min(start + CHUNK)].to_vec(),
    })
}

// === impl Connection ===

impl Connection {
    /// Passes plans on until either side ends. Ends with a status where the scheduler broke the protocol.
    async fn serve(self, mut plans: Streaming<PlanMessage>) {
        let claim = tokio::select! {
            claim = plans.message() => claim,
            () = self.shutdown.cancelled() => return,
        };
        let claim = match claim {
            Ok(Some(PlanMessage { message: Some(Message::Claim(claim)) })) => claim,
            Ok(Some(_)) => return self.refuse("the first message must be a claim"),
            Ok(None) | Err(_) => return, // it is gone
        };
        let epoch = match check(&claim) {
            Ok(epoch) => epoch,
            Err(problem) => return self.refuse(&problem),
        };
        tracing::info!(scheduler = claim.scheduler_id, %epoch, "claimed");
        let hello = Box::new(self.hello.clone());
        let ended = CancellationToken::new();
        let alive = ended.clone().drop_guard();
        let job = Job::Claim { epoch, hello, results: self.results.clone(), alive };
        if self.jobs.send(job).await.is_ok() {
            self.forward(epoch, &mut plans, &ended).await;
            // Fails where the step thread is gone, and then there is nothing to end.
            let _ = self.jobs.send(Job::End { epoch }).await;
        }
        tracing::info!(%epoch, "connection ended");
    }

    async fn forward(&self, epoch: Epoch, plans: &mut Streaming<PlanMessage>, ended: &CancellationToken) {
        loop {
            let message = tokio::select! {
                message = plans.message() => message,
                () = ended.cancelled() => return,
                () = self.results.closed() => return, // the scheduler is gone
                () = self.shutdown.cancelled() => {
                    let _ = self.results.try_send(Err(Status::unavailable("the worker is shutting down")));
                    return;
                }
            };
            match message {
                Ok(Some(PlanMessage { message: Some(Message::Plan(plan)) })) => {
                    if self.jobs.send(Job::Step { epoch, plan: Box::new(plan) }).await.is_err() {
                        let _ = self.results.try_send(Err(Status::internal("the step thread has died")));
                        return;
                    }
                }
                Ok(Some(PlanMessage { message: Some(Message::Claim(_)) })) => {
                    return self.refuse("a connection claims once");
                }
                Ok(Some(PlanMessage { message: None })) => {} // from a later version
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn refuse(&self, problem: &str) {
        let _ = self.results.try_send(Err(Status::invalid_argument(problem))); // else it is gone already
    }
}

fn check(claim: &Claim) -> Result<Epoch, String> {
    if claim.protocol != PROTOCOL {
        return Err(format!("protocol {}; this worker speaks {PROTOCOL}", claim.protocol));
    }
    claim.epoch.map(Epoch::from).ok_or_else(|| "a claim needs an epoch".to_owned())
}
