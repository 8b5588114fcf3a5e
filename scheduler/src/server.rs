//! Starts the parts of a scheduler, and is its gRPC service.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use volley_membership::{Member, Membership, Role};
use volley_proto::{
    MAX_MESSAGE, PROTOCOL,
    transport::{Incoming, Transport},
    v1::{self, scheduler_message::Message, scheduler_server::SchedulerServer, worker_client::WorkerClient},
};

use crate::{
    Config, Error,
    core::types::LinkId,
    front::{Clock, Directory, FromLink, Front},
    link::{self, Link, Outgoing},
    telemetry, workers,
};

/// What routers have said and the front hasn't heard yet.
const INBOX: usize = 256;
/// How long a worker has to begin answering with a model's files.
const FETCH: Duration = Duration::from_secs(10);

struct Service {
    id: String,
    front: mpsc::Sender<FromLink>,
    links: AtomicU64,
    directory: watch::Receiver<Directory>,
    clock: Clock,
    stop: CancellationToken,
}

/// Runs a scheduler: registers it, claims workers, and serves routers until `shutdown`. Then it ends its
/// links (routers take their requests elsewhere), lets its workers go, and leaves the cluster.
pub async fn serve(
    config: Config,
    membership: Arc<dyn Membership>,
    transport: Transport,
    incoming: Incoming,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    telemetry::describe();
    // Ends with `shutdown`, and when anything here fails.
    let stop = shutdown.child_token();
    let _stop = stop.clone().drop_guard();
    let (to_front, from_links) = mpsc::channel(INBOX);
    let (from_runners, runners) = mpsc::unbounded_channel();
    let (directory, files) = watch::channel(Directory::default());

    let clock = Clock::start();
    let front = Front::new(config.readiness.clone(), directory);
    let front = tokio::spawn(front.run(from_links, runners, stop.clone()));

    let member = Member { id: config.id.clone(), address: config.address.clone(), model: String::new() };
    let registration = membership.register(Role::Scheduler, member).await?;
    let service = Service {
        id: config.id.clone(),
        front: to_front,
        links: AtomicU64::new(0),
        directory: files,
        clock,
        stop: stop.clone(),
    };
    let context = workers::Context {
        config,
        membership,
        transport,
        front: from_runners,
        clock,
        stop: stop.clone(),
        connections: AtomicU64::new(0),
    };
    let mut workers = tokio::spawn(workers::run(context, registration));

    let served = tokio::select! {
        served = service.serve(incoming) => served,
        _ = front => Err(Error::Stopped("front")),
        _ = &mut workers => Err(Error::Stopped("workers")),
    };
    let early = !shutdown.is_cancelled();
    stop.cancel();
    if !workers.is_finished() {
        let _ = workers.await;
    }
    if early { served } else { Ok(()) }
}

// === impl Service ===

impl Service {
    async fn serve(self, incoming: Incoming) -> Result<(), Error> {
        let stop = self.stop.clone();
        let service = SchedulerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        tonic::transport::Server::builder()
            // A router that vanished without a word is found out within seconds.
            .http2_keepalive_interval(Some(Duration::from_secs(2)))
            .http2_keepalive_timeout(Some(Duration::from_secs(3)))
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl v1::scheduler_server::Scheduler for Service {
    type ServeStream = Outgoing;
    type FetchModelStream = Streaming<v1::FileChunk>;

    async fn serve(
        &self,
        request: Request<Streaming<v1::RouterMessage>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let id = LinkId(self.links.fetch_add(1, Ordering::Relaxed) + 1);
        let (link, outgoing) = Link::new(id, &self.stop);
        link.send(Message::Hello(v1::SchedulerHello { protocol: PROTOCOL, scheduler_id: self.id.clone() }));
        let stopping = |_| Status::unavailable("the scheduler stops");
        self.front.send(FromLink::Up(link.clone())).await.map_err(stopping)?;
        tokio::spawn(link::read(link, request.into_inner(), self.front.clone(), self.clock));
        Ok(Response::new(outgoing))
    }

    async fn fetch_model(
        &self,
        request: Request<v1::FetchModelRequest>,
    ) -> Result<Response<Self::FetchModelStream>, Status> {
        let request = request.into_inner();
        let worker = self.directory.borrow().get(&request.hash).cloned();
        let Some(worker) = worker else {
            return Err(Status::not_found(format!("no worker serves the model {}", request.hash)));
        };
        let mut client = WorkerClient::new(worker).max_decoding_message_size(MAX_MESSAGE);
        let files = tokio::time::timeout(FETCH, client.fetch_model(request)).await;
        let files = files.map_err(|_| Status::unavailable("the worker does not answer"))??;
        Ok(Response::new(files.into_inner()))
    }
}
