//! The step thread: it owns the decoder and the slots, and runs plans in the order in which they come.
//!
//! ```text
//!  service (async) ── Job, bounded ──▶ step thread: slots ─▶ decoder ─▶ slots ── result ──▶ service
//! ```
//!
//! Fencing lives here too, since here everything has an order: the highest epoch owns the worker, what
//! carries a lower one is dropped, and a new owner finds all slots empty. What the KV cache holds, it is told
//! (`inventory.rs`).

mod draft;
mod flight;
mod guide;
mod inventory;
mod metrics;
mod pool;
mod sequence;
mod shaping;
mod slots;
#[cfg(test)]
mod tests;
mod trace;
mod watch;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tonic::Status;
use volley_kernels::{Backend, Draw, Drawing};
use volley_proto::v1::{self, ResultMessage, StepPlan, StepResult, WorkerHello, result_message::Message};

pub(crate) use self::{
    draft::DraftModel,
    guide::Guides,
    metrics::describe,
    slots::Slots,
    watch::{Running, Watch},
};
use self::{
    flight::{Flight, Landings},
    slots::{PlanError, Step},
};
use crate::{Error, config::Pooling, group::Group};

/// Jobs that may wait for the step thread: a scheduler is one step ahead.
const WAITING_JOBS: usize = 4;
/// Results that may wait for the scheduler; one that leaves more unread is cut off.
pub(crate) const WAITING_RESULTS: usize = 64;

/// What a plan may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Slots.
    pub(crate) sequences: usize,
    /// Rows of a step.
    pub(crate) rows: usize,
    /// KV blocks.
    pub(crate) blocks: usize,
    /// Tokens of a sequence.
    pub(crate) context: usize,
    pub(crate) vocab: usize,
    /// How embeddings are made, if they are.
    pub(crate) pooling: Option<Pooling>,
}

/// Who may send plans: (revision of the claim, connection under it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch {
    pub(crate) claim: u64,
    pub(crate) connection: u64,
}

/// Where a connection's results go.
pub(crate) type Results = mpsc::Sender<Result<ResultMessage, Status>>;

/// Work for the step thread.
pub(crate) enum Job {
    /// A connection claims the worker; the answer is the hello, or why not. Dropping `alive` tells the
    /// connection that it is of no more use.
    Claim { epoch: Epoch, hello: Box<WorkerHello>, results: Results, alive: DropGuard },
    /// A step of that owner.
    Step { epoch: Epoch, plan: Box<StepPlan> },
    /// The owner's connection is gone.
    End { epoch: Epoch },
    /// The device is done with that step, which it may be told of late.
    Landed(Running),
}

/// Jobs as the step thread gets them.
pub(crate) struct Jobs {
    queue: mpsc::Receiver<Job>,
    /// For its own: it ends when everybody else's are gone.
    sender: mpsc::WeakSender<Job>,
}

/// The thread's state.
pub(crate) struct Engine<B: Backend> {
    decoder: Group<B>,
    /// Guesses, where there is one.
    draft_model: Option<DraftModel<B>>,
    slots: Slots,
    /// The highest epoch seen; its connection may be gone.
    epoch: Option<Epoch>,
    /// The connection of that epoch.
    owner: Option<Owner>,
    /// Steps under way, all of the owner's.
    flights: VecDeque<Flight>,
    /// When the last step landed.
    landed: Instant,
    /// Since when there was nothing to do.
    idle_since: Instant,
    metrics: metrics::Metrics,
    watch: Watch,
    /// See [`crate::Config::abort_on`].
    abort_on: Vec<u32>,
}

struct Owner {
    results: Results,
    _alive: DropGuard,
    last_step: Option<u64>,
}

// === impl Engine ===

impl<B: Backend> Engine<B> {
    pub(crate) fn new(
        decoder: impl Into<Group<B>>,
        draft_model: Option<DraftModel<B>>,
        limits: Limits,
        guides: Guides,
    ) -> Self {
        Self {
            decoder: decoder.into(),
            draft_model,
            slots: Slots::new(limits, guides),
            epoch: None,
            owner: None,
            flights: VecDeque::new(),
            landed: Instant::now(),
            idle_since: Instant::now(),
            metrics: metrics::Metrics::default(),
            watch: Watch::default(),
            abort_on: Vec::new(),
        }
    }

    /// Dies of sequences with these tokens in a row.
    pub(crate) fn abort_on(self, tokens: Vec<u32>) -> Self {
        Self { abort_on: tokens, ..self }
    }

    /// Tells there which step is under way.
    pub(crate) fn watched(self, watch: Watch) -> Self {
        Self { watch, ..self }
    }

    /// Works until nobody can send jobs any more, or the device fails: its sequences then go on elsewhere.
    pub(crate) fn run(mut self, mut jobs: Jobs) -> Result<(), Error> {
        // A step is long; the async threads of the same process must not wait for its end.
        volley_kernels::cpu::lower_priority();
        let landings = Landings::start(jobs.sender)?;
        while let Some(job) = jobs.queue.blocking_recv() {
            match job {
                Job::Claim { epoch, hello, results, alive } => self.claim(epoch, *hello, results, alive),
                Job::Step { epoch, plan } if Some(epoch) == self.epoch => {
                    self.step(Running::of(epoch, &plan), *plan, &landings)?;
                }
                Job::End { epoch } if Some(epoch) == self.epoch => self.disown(None),
                Job::Landed(step) if self.flights.front().is_some_and(|flight| flight.running == step) => {
                    self.land()?;
                }
                // Of an older epoch, or of a step that was waited for.
                Job::Step { .. } | Job::End { .. } | Job::Landed(_) => {}
            }
        }
        Ok(())
    }

    fn claim(&mut self, epoch: Epoch, mut hello: WorkerHello, results: Results, alive: DropGuard) {
        if let Some(current) = self.epoch
            && epoch <= current
        {
            let message = format!("fenced: {epoch} is not above {current}");
            let _ = results.try_send(Err(Status::failed_precondition(message))); // else it is gone already
            return;
        }
        self.disown(Some(Status::aborted(format!("superseded by {epoch}"))));
        self.epoch = Some(epoch);
        self.owner = Some(Owner { results, _alive: alive, last_step: None });
        hello.inventory = self.slots.inventory();
        self.send(Message::Hello(hello));
    }

    /// Ends the owner's connection, with a reason if it is still there, and empties the slots. Nobody wants to know of
    /// steps under way any more.
    fn disown(&mut self, reason: Option<Status>) {
        self.flights.clear();
        self.watch.end();
        if let (Some(owner), Some(reason)) = (self.owner.take(), reason) {
            let _ = owner.results.try_send(Err(reason)); // else it is gone already
        }
        self.slots.clear();
        self.metrics.slots(0);
    }

    fn send(&mut self, message: Message) {
        let Some(owner) = &self.owner else { return };
        let message = ResultMessage { message: Some(message) };
        if owner.results.try_send(Ok(message)).is_err() {
            // Gone, or it reads nothing.
            self.disown(None);
        }
    }

    /// Applies a plan's deltas, guesses, and lays out the rows. The outer error is the device's.
    fn lay_out(&mut self, plan: StepPlan) -> Result<Result<Step, PlanError>, Error> {
        let mut planned = match self.slots.apply(plan) {
            Ok(planned) => planned,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(model) = &mut self.draft_model {
            model.guess(&mut self.slots, &mut planned)?;
        }
        Ok(self.slots.lay_out(planned))
    }

    /// Whether a sequence that is about to run is what tests plant to kill workers.
    fn is_poisoned(&self, plan: &StepPlan) -> bool {
        let poisoned = |tokens: &[u32]| tokens.windows(self.abort_on.len()).any(|run| run == self.abort_on);
        !self.abort_on.is_empty() && plan.admit.iter().any(|new| poisoned(&new.tokens))
    }

    /// Starts a step, before the end of the one before it if nothing of that is needed here; the error is the device's.
    fn step(&mut self, running: Running, plan: StepPlan, landings: &Landings) -> Result<(), Error> {
        if self.is_poisoned(&plan) {
            std::process::abort();
        }
        let must_see = |flight: &Flight, slots: &Slots| !flight.is_passable || !slots.goes_on_unseen(&plan);
        while self.flights.len() >= flight::MOST
            || self.flights.back().is_some_and(|flight| must_see(flight, &self.slots))
        {
            self.land()?;
        }
        let Some(owner) = &mut self.owner else { return Ok(()) };
        if let Some(last) = owner.last_step.replace(plan.step_id)
            && plan.step_id != last.wrapping_add(1)
        {
            let problem = format!("step {} after step {last}; expected the next", plan.step_id);
            self.disown(Some(Status::invalid_argument(problem)));
            return Ok(());
        }
        self.watch.begin(self.flights.front().map_or(running, |flight| flight.running));
        let started = Instant::now();
        let step = match self.lay_out(plan)? {
            Ok(step) => step,
            Err(error) => {
                self.disown(Some(Status::invalid_argument(error.to_string())));
                return Ok(());
            }
        };
        let flight = self.launch(step, running, started)?;
        let waiter = flight.drawing.waiter();
        self.flights.push_back(flight);
        match waiter {
            Some(waiter) => landings.watch(running, waiter),
            // It has landed, unless the one before it hasn't: then they land together.
            None if self.flights.len() == 1 => self.land()?,
            None => {}
        }
        Ok(())
    }

    /// Has the device run a step.
    fn launch(&mut self, mut step: Step, running: Running, started: Instant) -> Result<Flight, Error> {
        let wait = match self.flights.is_empty() {
            true => started.saturating_duration_since(self.idle_since),
            false => Duration::ZERO,
        };
        if !step.copies.is_empty() {
            self.decoder.copy_blocks(&step.copies);
        }
        let (rows, sequences) = (step.batch.tokens.len(), step.batch.sequences.len());
        let (mut drawing, mut is_passable) = (Drawing::done(Vec::new()), true);
        if rows > 0 {
            let forward = Instant::now();
            self.decoder.forward(std::mem::take(&mut step.batch));
            // What waits for this step here must not keep back what the one before it drew.
            if !step.pooled.is_empty() || step.draws.iter().any(Draw::is_by_surprise) {
                self.land_all()?;
            }
            if !step.pooled.is_empty() {
                let rows = step.pooled.iter().map(|pooled| pooled.rows.clone());
                let hidden = self.decoder.hidden(rows.collect())?;
                self.slots.pool(&mut step, &hidden);
            }
            self.slots.guide(&mut step, forward.elapsed());
            drawing = self.decoder.draw(&step.rows, &step.draws)?;
            is_passable = step.draws.len() <= self.decoder.draws_at_once() && Slots::is_expectable(&step);
            if is_passable && drawing.waiter().is_some() {
                self.slots.expect(&step);
            }
        }
        Ok(Flight { running, step, drawing, rows, sequences, started, wait, is_passable })
    }

    fn land_all(&mut self) -> Result<(), Error> {
        while !self.flights.is_empty() {
            self.land()?;
        }
        Ok(())
    }

    /// Waits for the oldest step under way and sends what it drew; likewise those after it that are done by themselves. The
    /// error is the device's.
    fn land(&mut self) -> Result<(), Error> {
        while let Some(flight) = self.flights.pop_front() {
            let drawn = flight.drawing.wait()?;
            let slots = self.slots.settle(flight.step, drawn);
            let (now, wait, rows) = (Instant::now(), flight.wait, flight.rows);
            let compute = now.saturating_duration_since(flight.started.max(self.landed));
            self.landed = now;
            self.metrics.slots(self.slots.taken());
            // A plan that only releases slots is no step: the worker is as idle after it as before.
            if rows > 0 {
                self.metrics.step(rows, flight.sequences, compute, wait);
                self.idle_since = now;
            }
            self.send(Message::Result(StepResult {
                step_id: flight.running.step_id,
                epoch: Some(flight.running.epoch.into()),
                slots,
                rows: rows as u32,
                compute_us: compute.as_micros() as u64,
                wait_us: wait.as_micros() as u64,
            }));
            match self.flights.front() {
                Some(next) if next.drawing.waiter().is_some() => {
                    self.watch.begin(next.running);
                    return Ok(());
                }
                Some(_) => {}
                None => self.watch.end(),
            }
        }
        Ok(())
    }
}

// === impl Jobs ===

impl Jobs {
    /// A queue of jobs, and who may add to it.
    pub(crate) fn queue() -> (mpsc::Sender<Job>, Self) {
        let (sender, queue) = mpsc::channel(WAITING_JOBS);
        let jobs = Self { queue, sender: sender.downgrade() };
        (sender, jobs)
    }
}

// === impl Epoch ===

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.claim, self.connection)
    }
}

impl From<v1::Epoch> for Epoch {
    fn from(v1::Epoch { claim, connection }: v1::Epoch) -> Self {
        Self { claim, connection }
    }
}

impl From<Epoch> for v1::Epoch {
    fn from(Epoch { claim, connection }: Epoch) -> Self {
        Self { claim, connection }
    }
}
