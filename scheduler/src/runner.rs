//! The task around a [`Planner`]: one connection to one worker. Plans go down, results come back, and what
//! they say goes straight to the links.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming, transport::Channel};
use volley_proto::{
    MAX_MESSAGE, PROTOCOL,
    v1::{self, plan_message, result_message, worker_client::WorkerClient},
};

use crate::{
    Config, MAX_DRAFTS,
    core::{
        placement::Facts,
        planner::{Limits, Load, Planner},
        sequence::{Output, Sequence},
        types::{LinkId, SequenceKey, WorkerId},
    },
    front::{Clock, FromRunner, Joined},
    link::Link,
    telemetry::WorkerMetrics,
};

/// How often sequences are looked through for passed deadlines.
const EXPIRY: Duration = Duration::from_secs(1);

/// How long a worker that takes no more plans has to say why.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What the front tells a runner.
pub(crate) enum Command {
    /// One request's sequences, and where their output goes.
    Run(Arc<Link>, Vec<Sequence>),
    Cancel(Vec<SequenceKey>),
    /// What waits is to be given back.
    Recall,
}

/// A connection to a worker that has said hello.
pub(crate) struct Connection {
    id: WorkerId,
    hello: v1::WorkerHello,
    channel: Channel,
    plans: mpsc::Sender<v1::PlanMessage>,
    results: Streaming<v1::ResultMessage>,
}

/// Why a worker is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("{0}")]
    Connect(#[from] volley_proto::transport::ConnectError),
    #[error("{}", volley_proto::transport::why(.0))]
    Rpc(#[from] tonic::Status),
    #[error("it closed the stream")]
    Closed,
    #[error("it said nothing for {0:?}")]
    Silent(Duration),
    #[error("its hello makes no sense: {0}")]
    Hello(&'static str),
    #[error("{0}")]
    Inventory(#[from] crate::core::inventory::BadInventory),
    #[error("{0}")]
    OutOfStep(#[from] crate::core::planner::OutOfStep),
    #[error("the scheduler stops")]
    Stopping,
    #[error("another scheduler is to have it")]
    Drained,
}

struct Runner {
    id: WorkerId,
    planner: Planner,
    plans: mpsc::Sender<v1::PlanMessage>,
    links: HashMap<LinkId, Arc<Link>>,
    front: mpsc::UnboundedSender<FromRunner>,
    load: watch::Sender<Load>,
    metrics: WorkerMetrics,
    clock: Clock,
    /// What sequences have to say; emptied after every event.
    outputs: Vec<Output>,
}

// === impl Connection ===

impl Connection {
    /// Claims the worker behind `channel` with `epoch` and waits for its hello.
    pub(crate) async fn open(
        id: WorkerId,
        channel: Channel,
        epoch: v1::Epoch,
        config: &Config,
    ) -> Result<Self, Lost> {
        // Never full: the claim, and `depth` plans that the worker has to answer first.
        let (plans, outgoing) = mpsc::channel(config.step_depth + 1);
        let claim = v1::Claim { protocol: PROTOCOL, scheduler_id: config.id.clone(), epoch: Some(epoch) };
        send(&plans, plan_message::Message::Claim(claim))?;
        let mut client = WorkerClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let silent = |_| Lost::Silent(config.step_deadline);
        let opened = timeout(config.step_deadline, client.run(ReceiverStream::new(outgoing)));
        let mut results = opened.await.map_err(silent)??.into_inner();
        let first = timeout(config.step_deadline, results.message()).await.map_err(silent)??;
        let Some(result_message::Message::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(Lost::Hello("it isn't one"));
        };
        Ok(Self { id, hello, channel, plans, results })
    }

    /// Runs steps until the worker is lost, or drained. Its sequences are handed to the front.
    pub(crate) async fn run(
        mut self,
        config: &Config,
        (front, clock): (mpsc::UnboundedSender<FromRunner>, Clock),
        stop: &CancellationToken,
        drain: &CancellationToken,
    ) -> Lost {
        let (limits, facts) = match limits(&self.hello, config) {
            Ok(made) => made,
            Err(lost) => return lost,
        };
        let planner = Planner::new(limits).weighing(config.tenant_weights.clone());
        let planner = match planner.holding(&std::mem::take(&mut self.hello.inventory)) {
            Ok(planner) => planner,
            Err(bad) => return bad.into(),
        };
        let (load, loads) = watch::channel(planner.load());
        let (sender, mut commands) = mpsc::unbounded_channel();
        let joined = Joined {
            card: self.hello.card.take().unwrap_or_default(),
            facts,
            channel: self.channel,
            commands: sender,
            load: loads,
        };
        let mut runner = Runner {
            id: self.id,
            planner,
            plans: self.plans,
            links: HashMap::new(),
            front,
            load,
            metrics: WorkerMetrics::new(&self.hello.worker_id),
            clock,
            outputs: Vec::new(),
        };
        runner.tell(FromRunner::Joined(runner.id, Box::new(joined)));
        runner.report(); // what its cache holds from before
        let steps = runner.steps(&mut self.results, &mut commands, config, (stop, drain));
        let Err(lost) = steps.await;
        runner.leave(commands, lost.is_death());
        lost
    }
}

/// What the worker can do, in the core's terms.
fn limits(hello: &v1::WorkerHello, config: &Config) -> Result<(Limits, Facts), Lost> {
    let card = hello.card.as_ref().ok_or(Lost::Hello("no model card"))?;
    let positive = [hello.block_tokens, hello.max_sequences, hello.max_batch_tokens, card.context_length];
    if positive.contains(&0) || hello.groups.is_empty() {
        return Err(Lost::Hello("a worker has slots, rows, blocks and a context window"));
    }
    let blocks = hello.groups.iter().map(|group| u32::try_from(group.blocks).unwrap_or(u32::MAX));
    let limits = Limits {
        slots: hello.max_sequences,
        batch_tokens: hello.max_batch_tokens as usize,
        block_tokens: hello.block_tokens as usize,
        blocks: blocks.collect(),
        context: card.context_length as usize,
        depth: config.step_depth.max(1),
        drafts: config.drafts.min(MAX_DRAFTS),
        always_guess: config.always_guess,
        prefix_cache: config.prefix_cache,
        max_waiting: config.max_waiting_sequences,
        max_waiting_tokens: config.max_waiting_tokens,
    };
    let facts = Facts {
        model_hash: card.hash.clone(),
        numerics_class: card.numerics_class.clone(),
        kv_tokens: limits.blocks.iter().min().map_or(0, |&blocks| blocks as usize) * limits.block_tokens,
        block_tokens: limits.block_tokens,
        context: limits.context,
    };
    Ok((limits, facts))
}

fn send(plans: &mpsc::Sender<v1::PlanMessage>, message: plan_message::Message) -> Result<(), Lost> {
    plans.try_send(v1::PlanMessage { message: Some(message) }).map_err(|_| Lost::Closed)
}

/// Why a worker that takes no more plans is lost: what it says about it may still be on its way. That another scheduler
/// has it is no death of those that it ran.
async fn last_word(results: &mut Streaming<v1::ResultMessage>) -> Lost {
    let end = async {
        loop {
            match results.message().await {
                Ok(Some(_)) => {} // computed again elsewhere
                Ok(None) => return Lost::Closed,
                Err(status) => return Lost::Rpc(status),
            }
        }
    };
    timeout(LAST_WORD, end).await.unwrap_or(Lost::Closed)
}

// === impl Lost ===

impl Lost {
    /// Whether what the worker was running may be the reason.
    fn is_death(&self) -> bool {
        match self {
            Self::Stopping | Self::Drained => false,
            // Another scheduler has it.
            Self::Rpc(status) => !matches!(status.code(), Code::Aborted | Code::FailedPrecondition),
            _ => true,
        }
    }
}

// === impl Runner ===

impl Runner {
    async fn steps(
        &mut self,
        results: &mut Streaming<v1::ResultMessage>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        config: &Config,
        (stop, drain): (&CancellationToken, &CancellationToken),
    ) -> Result<std::convert::Infallible, Lost> {
        let mut expiry = interval(EXPIRY);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut busy_since = Instant::now();
        let deadline = config.step_deadline;
        // Until when its sequences may go on here, once it is to be drained.
        let mut drained: Option<Instant> = None;
        loop {
            tokio::select! {
                message = results.message() => {
                    busy_since = Instant::now();
                    self.hear(message?.ok_or(Lost::Closed)?)?;
                }
                Some(command) = commands.recv() => self.obey(command),
                _ = expiry.tick() => {
                    self.planner.expire(self.clock.now(), &mut self.outputs);
                }
                () = sleep_until(busy_since + deadline), if self.planner.in_flight() > 0 => {
                    return Err(Lost::Silent(deadline));
                }
                () = stop.cancelled() => return Err(Lost::Stopping),
                () = drain.cancelled(), if drained.is_none() => {
                    drained = Some(Instant::now() + config.drain);
                    let waiting = self.planner.let_waiting_go();
                    self.tell(FromRunner::Drains(self.id, waiting));
                }
                () = sleep_until(drained.unwrap_or(busy_since)), if drained.is_some() => {
                    return Err(Lost::Drained);
                }
            }
            self.planner.at(self.clock.now());
            // Whoever arrived by now shares the next step.
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            if self.planner.in_flight() == 0 {
                busy_since = Instant::now();
            }
            // The worker first: it may be idle.
            while let Some(plan) = self.planner.plan() {
                if send(&self.plans, plan_message::Message::Plan(plan)).is_err() {
                    return Err(last_word(results).await);
                }
            }
            self.report();
            if drained.is_some() && self.planner.is_idle() {
                return Err(Lost::Drained);
            }
        }
    }

    fn hear(&mut self, message: v1::ResultMessage) -> Result<(), Lost> {
        let Some(result_message::Message::Result(result)) = message.message else { return Ok(()) };
        self.metrics.step(&result);
        Ok(self.planner.complete(result, &mut self.outputs)?)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Run(link, sequences) => {
                if !self.links.contains_key(&link.id) {
                    self.links.retain(|_, link| !link.is_closed());
                    self.links.insert(link.id, link);
                }
                self.planner.submit(sequences, &mut self.outputs);
            }
            Command::Cancel(keys) => keys.iter().for_each(|key| self.planner.cancel(key)),
            Command::Recall => {
                let waiting = self.planner.let_waiting_go();
                // Before another worker goes on: what a sequence that gave way has only just said.
                self.report();
                if !waiting.is_empty() {
                    self.tell(FromRunner::Returned(self.id, waiting));
                }
            }
        }
    }

    /// Sends every link one message with all that its sequences have to say.
    fn report(&mut self) {
        let keys = |of: fn(&Output) -> bool| -> Vec<_> {
            self.outputs.iter().filter(|output| of(output)).map(|output| output.key).collect()
        };
        let (begun, ended) = (keys(|output| output.begins), keys(Output::ends));
        let mut by_link: Vec<(LinkId, Vec<v1::SequenceOutput>)> = Vec::new();
        for output in self.outputs.drain(..) {
            match by_link.iter_mut().find(|(link, _)| *link == output.key.link) {
                Some((_, messages)) => messages.push(output.message),
                None => by_link.push((output.key.link, vec![output.message])),
            }
        }
        for (link, messages) in by_link {
            if let Some(link) = self.links.get(&link) {
                link.report(messages);
            }
        }
        if !(begun.is_empty() && ended.is_empty()) {
            self.tell(FromRunner::Progress { begun, ended });
        }
        let changes = self.planner.cache_changes();
        if !changes.is_empty() {
            self.tell(FromRunner::Cache(self.id, changes));
        }
        let load = self.planner.load();
        self.metrics.state(load, self.planner.totals());
        self.load.send_replace(load);
    }

    /// Hands everything that isn't over to the front, what it has only just sent included.
    fn leave(mut self, mut commands: mpsc::UnboundedReceiver<Command>, death: bool) {
        self.report();
        commands.close();
        let mut late = Vec::new();
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Run(_, sequences) => late.extend(sequences),
                Command::Cancel(keys) => keys.iter().for_each(|key| self.planner.cancel(key)),
                Command::Recall => {} // all of them go
            }
        }
        let mut sequences = if death { self.planner.lost() } else { self.planner.let_go() };
        sequences.extend(late);
        let _ = self.front.send(FromRunner::Left(self.id, sequences));
    }

    fn tell(&self, event: FromRunner) {
        // The front is gone only when the whole scheduler is.
        let _ = self.front.send(event);
    }
}
