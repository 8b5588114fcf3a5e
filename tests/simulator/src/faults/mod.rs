//! Runs with faults: a small cluster, some clients, and what goes wrong, all drawn from one seed.
//!
//! ```text
//!  clients ─▶ Router ══wire══▶ Scheduler ══wire══▶ WorkerProcess
//!   (oracle)  real Request,     real Placement,     simulated: fencing, slots,
//!             Assembler          Planner, Blocks     KV cells, tokens by hash
//!               └───────────── Etcd: leases, watches, claims ─────────────┘
//!        Net: virtual time, delays, broken wires       fate: which faults, when
//! ```
//!
//! Afterwards every stream must be what the undisturbed run says, or have ended with an error that a bound
//! allows; and nothing may be left: no live sequence, no taken slot, no block that isn't free.
//!
//! A wire is ordered and duplicates nothing, as a gRPC stream. What comes twice or late is what a process says
//! again on another wire: older attempts, older epochs, links that one end thinks alive.

mod client;
mod etcd;
mod fate;
mod net;
mod router;
mod runner;
mod scheduler;
mod silence;
mod worker;
mod world;

use volley_router::engine::StreamError;
use volley_scheduler::core::types::WorkerId;

use self::{
    net::{End, Process},
    world::World,
};

/// What happens next, to the process that it is sent to.
#[derive(Clone, Debug)]
enum Event {
    /// A message arrives at this end.
    Deliver(End),
    /// This end learns that its wire is broken.
    Broken(End),
    /// A scheduler's front takes in what it was told.
    Front,
    /// A runner does.
    Runner(WorkerId),
    /// A worker may have been silent for too long.
    Deadline(WorkerId),
    /// A worker that another scheduler is to have has had its time.
    Drained(WorkerId),
    /// A scheduler connects to that worker.
    Connect(usize),
    /// A router links up with that scheduler.
    LinkUp(usize),
    /// A router looks for a place for that request.
    Search(u64),
    /// A router's client may have read nothing for too long.
    SlowClient(u64),
    /// A worker's step is done.
    StepDone,
    /// A worker dies of a request.
    Poisoned(Process),
    /// The cluster has changed.
    Watch,
    /// A process tells etcd that it is there.
    Register,
    /// A lease may have ended.
    Expire(Process),
    /// A client calls a router.
    Call(usize),
    /// A client has something to read.
    Readable(usize),
    /// A client reads it.
    Read(usize),
    /// A client goes away.
    Leave(usize),
    /// A client learns that its router is gone.
    Resume { client: usize, router: usize },
    /// Something goes wrong.
    Fault(usize),
    /// A process like the one that died.
    Start(Process),
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Faults that happened.
    pub faults: u64,
    /// Workers that died of a request.
    pub poisoned: u64,
    /// Streams that a client got whole, byte for byte.
    pub whole: u64,
    /// Of these, those that a client began again at another router.
    pub resumed: u64,
    /// Streams that ended early, with an error that a bound allows.
    pub ended: u64,
    /// Clients that went away by themselves.
    pub left: u64,
    /// Sequences that lost their worker and got another from the same scheduler.
    pub moved: u64,
    /// Blocks that workers had cached when a scheduler claimed them, or claimed them again.
    pub taken_over: u64,
    /// Rows computed in vain, at workers that lived to the end.
    pub wasted: u64,
    /// Preemptions there.
    pub preempted: u64,
    /// Events.
    pub events: u64,
}

/// A promise that a run broke.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The run's seed.
    pub seed: u64,
    /// Which promises.
    pub broken: Vec<String>,
    /// What happened, one event a line, if it was asked for.
    pub log: Vec<String>,
}

/// One run. With `log`, a failure tells what happened.
pub fn run(seed: u64, log: bool) -> Result<Outcome, Box<Failure>> {
    let (outcome, broken, log) = World::new(seed, log).run();
    if broken.is_empty() { Ok(outcome) } else { Err(Box::new(Failure { seed, broken, log })) }
}

/// Whether an error ends a stream rightly in a run in which so much went wrong: a bound was reached.
fn allowed(error: &StreamError, faults: u64) -> bool {
    match error {
        // At least three moves, or three deaths.
        StreamError::Lost(_) => faults >= 3,
        StreamError::SlowClient | StreamError::Deadline | StreamError::Internal(_) => false,
    }
}

// === impl Outcome ===

impl Outcome {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.faults += other.faults;
        self.poisoned += other.poisoned;
        self.whole += other.whole;
        self.resumed += other.resumed;
        self.ended += other.ended;
        self.left += other.left;
        self.moved += other.moved;
        self.taken_over += other.taken_over;
        self.wasted += other.wasted;
        self.preempted += other.preempted;
        self.events += other.events;
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { faults, poisoned, whole, resumed, ended, left, .. } = self;
        let Self { moved, taken_over, wasted, preempted, events, .. } = self;
        writeln!(f, "faults {faults}, workers poisoned {poisoned}, events {events}")?;
        writeln!(
            f,
            "streams whole {whole} (resumed at another router {resumed}), ended at a bound {ended}, left {left}"
        )?;
        write!(
            f,
            "moved within a scheduler {moved}, cached blocks taken over {taken_over}, rows wasted {wasted}, preempted {preempted}"
        )
    }
}

// === impl Failure ===

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in self.log.iter().chain(&self.broken) {
            writeln!(f, "{line}")?;
        }
        write!(f, "again: cargo run --release -p volley-simulator -- replay --seed {}", self.seed)
    }
}
