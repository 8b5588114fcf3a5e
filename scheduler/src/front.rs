//! The task around [`Placement`]: takes in what links and runners say, and does what it decides.
//!
//! It never waits for anybody. What runners and the front tell each other goes through unbounded channels:
//! every message stands for a live sequence or a connection, and both are bounded elsewhere. What routers
//! say comes through a bounded one, so that they feel it when the front is behind.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use volley_proto::v1::{self, scheduler_message::Message};

use crate::{
    Readiness,
    core::{
        blocks::Change,
        placement::{Action, Facts, Placement},
        planner::Load,
        sequence::Sequence,
        types::{LinkId, Millis, SequenceKey, WorkerId},
    },
    link::Link,
    runner::Command,
};

/// How often loads are sent.
const TICK: Duration = Duration::from_secs(1);

/// What links say.
pub(crate) enum FromLink {
    Up(Arc<Link>),
    Submit(Vec<Sequence>),
    Cancel(LinkId, v1::Cancel),
    Down(LinkId),
}

/// What runners say.
pub(crate) enum FromRunner {
    Joined(WorkerId, Box<Joined>),
    /// Sequences whose prompts are computed, and those that are over.
    Progress {
        begun: Vec<SequenceKey>,
        ended: Vec<SequenceKey>,
    },
    /// One with what a worker had cached before; then at most one for each step, and no longer than that step's
    /// new and evicted blocks.
    Cache(WorkerId, Vec<Change>),
    /// It takes nothing new, and gives back what waits.
    Drains(WorkerId, Vec<Sequence>),
    /// What waited there, as it was asked for.
    Returned(WorkerId, Vec<Sequence>),
    Left(WorkerId, Vec<Sequence>),
}

/// A worker that has just been connected.
pub(crate) struct Joined {
    pub(crate) card: v1::ModelCard,
    pub(crate) facts: Facts,
    pub(crate) channel: Channel,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) load: watch::Receiver<Load>,
}

/// Where a model's files can be had: channels to workers, by model hash.
pub(crate) type Directory = Arc<HashMap<String, Channel>>;

/// The scheduler's one clock: milliseconds since it started. Copies agree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

pub(crate) struct Front {
    placement: Placement,
    links: HashMap<LinkId, Arc<Link>>,
    workers: BTreeMap<WorkerId, Joined>,
    /// Those that only finish what they have.
    draining: BTreeMap<WorkerId, Joined>,
    arrivals: u64,
    cards: BTreeMap<String, v1::ModelCard>,
    directory: watch::Sender<Directory>,
    readiness: Readiness,
    load: v1::Load,
    moves: u64,
}

// === impl Front ===

impl Front {
    pub(crate) fn new(readiness: Readiness, directory: watch::Sender<Directory>) -> Self {
        Self {
            placement: Placement::default(),
            links: HashMap::new(),
            workers: BTreeMap::new(),
            draining: BTreeMap::new(),
            arrivals: 0,
            cards: BTreeMap::new(),
            directory,
            readiness,
            load: v1::Load::default(),
            moves: 0,
        }
    }

    pub(crate) async fn run(
        mut self,
        mut links: mpsc::Receiver<FromLink>,
        mut runners: mpsc::UnboundedReceiver<FromRunner>,
        stop: CancellationToken,
    ) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut actions = Vec::new();
            tokio::select! {
                Some(event) = runners.recv() => self.hear_runner(event, &mut actions),
                Some(event) = links.recv() => self.hear_link(event, &mut actions),
                _ = tick.tick() => self.tick(),
                () = stop.cancelled() => return,
            }
            self.act(actions);
        }
    }

    fn hear_link(&mut self, event: FromLink, actions: &mut Vec<Action>) {
        match event {
            FromLink::Up(link) => {
                link.send(self.models());
                link.send(Message::Load(self.load));
                self.links.insert(link.id, link);
            }
            FromLink::Submit(mut request) => {
                for sequence in &mut request {
                    self.arrivals += 1;
                    sequence.arrival = self.arrivals;
                }
                self.placement.submit(request, actions);
            }
            FromLink::Cancel(link, cancel) => {
                self.placement.cancel(link, cancel.request, cancel.choice, actions);
            }
            FromLink::Down(link) => {
                self.links.remove(&link);
                self.placement.link_lost(link, actions);
            }
        }
    }

    fn hear_runner(&mut self, event: FromRunner, actions: &mut Vec<Action>) {
        match event {
            FromRunner::Joined(id, joined) => {
                self.placement.worker_joined(id, joined.facts.clone(), actions);
                self.workers.insert(id, *joined);
                self.workers_changed();
            }
            FromRunner::Progress { begun, ended } => {
                begun.iter().for_each(|key| self.placement.begun(key));
                ended.iter().for_each(|key| self.placement.ended(key));
            }
            FromRunner::Cache(id, changes) => self.placement.cache_changed(id, &changes),
            FromRunner::Drains(id, sequences) => {
                self.draining.extend(self.workers.remove(&id).map(|joined| (id, joined)));
                self.workers_changed();
                self.worker_left(id, sequences, actions);
            }
            FromRunner::Returned(id, sequences) => self.placement.returned(id, sequences, actions),
            FromRunner::Left(id, sequences) => {
                self.draining.remove(&id);
                self.worker_left(id, sequences, actions);
            }
        }
    }

    /// Routers learn what is still served here before they get sequences back.
    fn worker_left(&mut self, id: WorkerId, sequences: Vec<Sequence>, actions: &mut Vec<Action>) {
        if self.workers.remove(&id).is_some() {
            self.workers_changed();
        }
        let before = actions.len();
        self.placement.worker_left(id, sequences, actions);
        let back = actions[before..].iter().filter(|action| matches!(action, Action::Report(_))).count();
        metrics::counter!("volley_scheduler_handed_back_total").increment(back as u64);
    }

    fn tick(&mut self) {
        metrics::counter!("volley_scheduler_moves_total").increment(self.placement.moves() - self.moves);
        self.moves = self.placement.moves();
        let load = self.sum_load();
        if load != self.load {
            self.load = load;
            self.links.values().for_each(|link| link.send(Message::Load(load)));
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut todo = std::collections::VecDeque::from(actions);
        // Together: a lost worker may give back more sequences than a link's outbox has room for messages.
        let mut reports: BTreeMap<LinkId, Vec<v1::SequenceOutput>> = BTreeMap::new();
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Report(output) => {
                    reports.entry(output.key.link).or_default().push(output.message);
                }
                Action::Cancel { worker, keys } => self.command(worker, Command::Cancel(keys)),
                Action::Recall { worker } => self.command(worker, Command::Recall),
                Action::Run { worker, sequences } => {
                    let mut more = Vec::new();
                    self.hand_over(worker, sequences, &mut more);
                    todo.extend(more);
                }
            }
        }
        for (link, outputs) in reports {
            if let Some(link) = self.links.get(&link) {
                link.report(outputs);
            }
        }
    }

    fn command(&self, worker: WorkerId, command: Command) {
        if let Some(worker) = self.workers.get(&worker).or_else(|| self.draining.get(&worker)) {
            // A runner that is gone has handed its sequences back, or is about to.
            let _ = worker.commands.send(command);
        }
    }

    fn hand_over(&mut self, worker: WorkerId, sequences: Vec<Sequence>, actions: &mut Vec<Action>) {
        let link = sequences.first().and_then(|s| self.links.get(&s.key.link)).cloned();
        let Some(link) = link else {
            // The link went down while they were on their way: nobody wants them.
            return sequences.iter().for_each(|s| self.placement.ended(&s.key));
        };
        let refused = match self.workers.get(&worker) {
            Some(joined) => joined.commands.send(Command::Run(link, sequences)).err().map(|e| e.0),
            None => Some(Command::Run(link, sequences)),
        };
        if let Some(Command::Run(_, sequences)) = refused {
            // Its runner has just ended; that it left is the next thing it says.
            self.worker_left(worker, sequences, actions);
        }
    }

    fn workers_changed(&mut self) {
        self.readiness.set(self.workers.len());
        metrics::gauge!("volley_scheduler_workers").set(self.workers.len() as f64);
        let serving = self.workers.values();
        let directory = serving.clone().map(|w| (w.card.hash.clone(), w.channel.clone())).collect();
        self.directory.send_replace(Arc::new(directory));
        let cards: BTreeMap<_, _> = serving.map(|w| (w.card.hash.clone(), w.card.clone())).collect();
        if cards != self.cards {
            self.cards = cards;
            let models = self.models();
            self.links.values().for_each(|link| link.send(models.clone()));
        }
    }

    fn models(&self) -> Message {
        Message::Models(v1::Models { cards: self.cards.values().cloned().collect() })
    }

    fn sum_load(&self) -> v1::Load {
        let mut sum = v1::Load::default();
        for worker in self.workers.values().chain(self.draining.values()) {
            let load = *worker.load.borrow();
            sum.running += load.running as u32;
            sum.waiting += load.waiting as u32;
            sum.waiting_tokens += load.waiting_tokens as u64;
            sum.free_blocks += load.free_blocks as u64;
            sum.total_blocks += load.total_blocks as u64;
        }
        sum
    }
}

// === impl Clock ===

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Millis {
        Millis::default().after(self.start.elapsed())
    }
}
