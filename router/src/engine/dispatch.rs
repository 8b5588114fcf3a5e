//! The engine: places requests on links, and carries their outputs to the clients.
//!
//! ```text
//!  start ─▶ Request ─▶ table ─▶ place: link.submit
//!  text thread, one per link: outputs ─▶ Request.take ─▶ deltas ─▶ bounded channel ─▶ Deltas
//!                                   link breaks: move │  channel full: pause, submit again when it drains
//! ```

mod stream;
mod table;

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::mpsc, time};
use tokio_util::sync::CancellationToken;
use volley_membership::{Membership, Role};
use volley_proto::{
    transport::Transport,
    v1::{ModelCard, StepOutput},
};

use self::{
    stream::{Guard, Running},
    table::{Active, Table},
};
use super::{
    Deltas, Generate, ModelError, StartError, StreamError,
    cluster::Cluster,
    link::Link,
    request::{Left, Request, Taken},
    supervise::{Links, Sink, supervise},
};
use crate::{
    generation::{Delta, Generation},
    text::{model::Model, tokenizer::TextPool},
};

const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Before a full link is tried again: nothing tells when it drains.
const OUTBOX_RETRY: Duration = Duration::from_millis(100);

/// The engine's bounds.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This router's name, for the schedulers' logs.
    pub router_id: String,
    /// Prompts in flight.
    pub max_requests: usize,
    /// Batches that a client may leave unread before its sequences pause.
    pub client_buffer: usize,
    /// How long they may pause before the client is dropped.
    pub slow_client: Duration,
    /// How many schedulers a request may lose.
    pub max_moves: u32,
    /// How long a request may be without a scheduler that has a worker for it, between two outputs.
    pub move_deadline: Duration,
    /// Texts that are tokenized at a time.
    pub text_threads: usize,
}

/// Makes text by way of the schedulers. Clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    config: EngineConfig,
    cluster: Arc<Cluster>,
    table: Table,
    next_request: AtomicU64,
    runtime: Handle,
}

/// What a step gave a request.
struct Batch {
    request: Arc<Active>,
    deltas: Vec<Delta>,
    admitted: bool,
    /// What ended the request here, if something did.
    end: Option<Taken>,
}

// === impl EngineConfig ===

impl EngineConfig {
    /// Default of `client_buffer`.
    pub const CLIENT_BUFFER: usize = 256;
    /// Default of `move_deadline`: outlasts the restart of a worker with a model of moderate size.
    pub const MOVE_DEADLINE: Duration = Duration::from_secs(30);
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            router_id: String::new(),
            max_requests: 64 << 10,
            client_buffer: Self::CLIENT_BUFFER,
            slow_client: Duration::from_secs(60),
            max_moves: 3,
            move_deadline: Self::MOVE_DEADLINE,
            text_threads: std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2),
        }
    }
}

// === impl Engine ===

impl Engine {
    /// Starts to link up with every scheduler that `membership` knows, until `shutdown`. Needs a tokio runtime.
    pub fn connect(
        config: EngineConfig,
        membership: Arc<dyn Membership>,
        transport: Transport,
        shutdown: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            cluster: Arc::new(Cluster::new(TextPool::new(config.text_threads))),
            config,
            table: Table::default(),
            next_request: AtomicU64::new(1),
            runtime: Handle::current(),
        });
        let members = membership.members(Role::Scheduler);
        let router_id = shared.config.router_id.clone();
        let links =
            Links { cluster: shared.cluster.clone(), sink: shared.clone(), transport, router_id, shutdown };
        tokio::spawn(supervise(Arc::new(links), members));
        Self { shared }
    }
}

impl Generate for Engine {
    fn models(&self) -> Vec<Arc<ModelCard>> {
        self.shared.cluster.cards()
    }

    async fn model(&self, name: &str) -> Result<Arc<Model>, ModelError> {
        self.shared.cluster.model(name).await
    }

    async fn start(&self, model: Arc<Model>, generation: Generation) -> Result<Deltas, StartError> {
        let shared = &self.shared;
        let (out, batches) = mpsc::channel(shared.config.client_buffer.max(1));
        let failure = Arc::new(OnceLock::new());
        let mut running = Running {
            batches,
            first: None,
            failure: failure.clone(),
            unfinished: generation.prompts.len() as u32 * generation.n,
            guard: Guard { shared: shared.clone(), requests: Vec::new() },
        };
        let mut local = Vec::new();
        for index in 0..generation.prompts.len() {
            let id = shared.next_request.fetch_add(1, Ordering::Relaxed);
            let mut request = Request::new(id, model.clone(), &generation, index);
            if request.needs_scheduler() {
                running.guard.requests.push(id);
                let (out, failure) = (out.clone(), failure.clone());
                shared.admit(Arc::new(Active { id, request: Mutex::new(request), out, failure }))?;
            } else {
                let echoed = tokio::task::spawn_blocking(move || request.finish_locally()).await;
                local.extend(echoed.map_err(|panic| StartError::Internal(panic.to_string()))?);
            }
        }
        drop(out);
        if !running.guard.requests.is_empty() {
            match running.batches.recv().await {
                Some(Ok(batch)) => local.extend(batch),
                Some(Err(error)) => return Err(error),
                None => return Err(StartError::Internal("the request ended without an output".into())),
            }
        }
        running.first = Some(local);
        Ok(Deltas::new(running))
    }
}

// === impl Shared ===

impl Shared {
    /// Takes a new request in and submits it: to the best link, else to any that will have it.
    fn admit(self: &Arc<Self>, request: Arc<Active>) -> Result<(), StartError> {
        if !self.table.insert(request.clone(), self.config.max_requests) {
            let message = "too many requests are in flight".to_owned();
            return Err(StartError::Overloaded { message, retry_after: RETRY_AFTER });
        }
        match self.place(&request) {
            Placed::Yes => Ok(()),
            Placed::Refused => Err(StartError::Overloaded {
                message: "the links to the schedulers are full".to_owned(),
                retry_after: RETRY_AFTER,
            }),
            Placed::Late => Err(StartError::Deadline),
            Placed::NoLink => Err(StartError::Unavailable {
                message: "no scheduler serves the model".to_owned(),
                retry_after: RETRY_AFTER,
            }),
        }
    }

    fn place(self: &Arc<Self>, request: &Arc<Active>) -> Placed {
        let mut refused = Vec::new();
        let model = match request.lock() {
            request if request.is_late(now()) => return Placed::Late,
            request => request.model_hash().to_owned(),
        };
        while let Some(link) = self.cluster.pick(&model, &refused) {
            if request.lock().place_on(&link, now()) {
                // If it broke meanwhile, its text thread may not have seen this request.
                if link.is_broken() {
                    self.displace(request, &link, true);
                }
                return Placed::Yes;
            }
            refused.push(link);
        }
        if refused.is_empty() { Placed::NoLink } else { Placed::Refused }
    }

    /// Takes a step's outputs: runs on the link's text thread.
    fn take_step(self: &Arc<Self>, link: &Arc<Link>, output: StepOutput) {
        let (mut current, mut moved): (Option<Batch>, u32) = (None, 0);
        for sequence in output.sequences {
            if current.as_ref().is_none_or(|batch| batch.request.id != sequence.request) {
                if let Some(batch) = current.take() {
                    moved += u32::from(self.deliver(link, batch));
                }
                current = self.table.get(sequence.request).map(Batch::new);
            }
            let Some(batch) = &mut current else { continue };
            let taken = batch.request.lock().take(sequence, &mut batch.deltas);
            match taken {
                Taken::Running { admitted } => batch.admitted |= admitted,
                end => batch.end = Some(end),
            }
        }
        if let Some(batch) = current {
            moved += u32::from(self.deliver(link, batch));
        }
        if moved > 0 {
            tracing::info!(
                scheduler = link.scheduler,
                streams = moved,
                "moving streams: their worker is lost"
            );
        }
    }

    /// Hands a batch to the client, even an empty one if it tells that the request was admitted. Then sees to
    /// what ended the request here: whether it moves.
    fn deliver(self: &Arc<Self>, link: &Arc<Link>, batch: Batch) -> bool {
        let Batch { request, deltas, admitted, end } = batch;
        let finished = matches!(end, Some(Taken::Finished));
        if finished {
            self.table.end(request.id);
        }
        if admitted || !deltas.is_empty() {
            self.send(&request, deltas, finished);
        }
        match end {
            // One that took it for a model that it doesn't have contradicts itself: that counts, so that it ends.
            Some(Taken::Displaced { unannounced }) => return self.displace(&request, link, unannounced),
            Some(Taken::Failed(error)) => self.fail(&request, error),
            Some(Taken::Finished | Taken::Running { .. }) | None => {}
        }
        false
    }

    fn send(self: &Arc<Self>, request: &Arc<Active>, deltas: Vec<Delta>, finished: bool) {
        match request.out.try_send(Ok(deltas)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => self.table.end(request.id),
            Err(mpsc::error::TrySendError::Full(held)) => {
                request.lock().pause();
                metrics::counter!("volley_router_pauses_total").increment(1);
                self.runtime.spawn(self.clone().resume(request.clone(), held, finished));
            }
        }
    }

    /// Waits until a slow client has taken half of what is kept for it, then goes on. Not sooner: what it was sent is
    /// computed again then, at every pause.
    async fn resume(
        self: Arc<Self>,
        request: Arc<Active>,
        held: Result<Vec<Delta>, StartError>,
        finished: bool,
    ) {
        let mut room = Vec::new();
        while room.len() < self.config.client_buffer.div_ceil(2).max(1) {
            match time::timeout(self.config.slow_client, request.out.reserve()).await {
                Ok(Ok(one)) => room.push(one),
                Ok(Err(_closed)) => return self.table.end(request.id),
                Err(_elapsed) => {
                    metrics::counter!("volley_router_slow_clients_total").increment(1);
                    let _ = request.failure.set(StreamError::SlowClient);
                    return self.table.end(request.id);
                }
            }
        }
        if let Some(first) = room.pop() {
            first.send(held);
        }
        drop(room);
        if !finished {
            self.find_place(request.clone()).await;
        }
    }

    /// Moves a request that can't go on where it is. Whether it was there.
    fn displace(self: &Arc<Self>, request: &Arc<Active>, link: &Arc<Link>, counts: bool) -> bool {
        let left = request.lock().leave(link, counts, self.config.max_moves);
        if left == Left::Elsewhere {
            return false;
        }
        metrics::counter!("volley_router_moves_total").increment(1);
        if left == Left::TooOften {
            let message = format!("it moved {} times", self.config.max_moves);
            self.fail(request, StartError::Unavailable { message, retry_after: RETRY_AFTER });
        } else {
            self.runtime.spawn(self.clone().find_place(request.clone()));
        }
        true
    }

    /// Submits a request as soon as a link will have it. The one place where requests wait for a worker.
    async fn find_place(self: Arc<Self>, request: Arc<Active>) {
        let mut changed = self.cluster.changed();
        let bound = self.config.move_deadline;
        let deadline = request.lock().deadline(bound, now());
        loop {
            changed.mark_unchanged();
            match self.place(&request) {
                Placed::Yes => return,
                Placed::Late => return self.fail(&request, StartError::Deadline),
                Placed::Refused | Placed::NoLink => {}
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = time::sleep(OUTBOX_RETRY) => {}
                () = request.out.closed() => return self.table.end(request.id),
                () = time::sleep_until(deadline.into()) => {
                    if request.lock().is_late(now()) {
                        return self.fail(&request, StartError::Deadline);
                    }
                    let message = format!("no worker took it over within {} s", bound.as_secs_f64());
                    return self.fail(&request, StartError::Unavailable { message, retry_after: RETRY_AFTER });
                }
            }
        }
    }

    fn fail(&self, request: &Arc<Active>, error: StartError) {
        if request.out.try_send(Err(error.clone())).is_err() {
            let _ = request.failure.set(error.into());
        }
        self.table.end(request.id);
    }
}

/// The runtime's clock: tests pause it.
fn now() -> Instant {
    time::Instant::now().into_std()
}

/// Whether a request found a link.
enum Placed {
    Yes,
    /// Links that serve the model are full.
    Refused,
    NoLink,
    /// Its time is over.
    Late,
}

// === impl Sink for Shared ===

impl Sink for Shared {
    fn take(self: &Arc<Self>, link: &Arc<Link>, output: StepOutput) {
        self.take_step(link, output);
    }

    fn abandon(self: &Arc<Self>, link: &Arc<Link>) {
        let moved = self.table.all().iter().filter(|request| self.displace(request, link, true)).count();
        if moved > 0 {
            tracing::info!(scheduler = link.scheduler, streams = moved, "moving streams: the link is lost");
        }
    }
}

// === impl Batch ===

impl Batch {
    fn new(request: Arc<Active>) -> Self {
        Self { request, deltas: Vec::new(), admitted: false, end: None }
    }
}

#[cfg(test)]
mod tests;
