//! All processes of a run, and what happens to them.

use std::time::Duration;

use volley_scheduler::core::planner::Limits;

use super::{
    Event, Outcome, allowed,
    client::{Client, State},
    etcd::{Etcd, LEASE},
    fate::{self, Fault},
    net::{End, MILLI, Message, Micros, Net, Process, SECOND},
    router::{Router, stream_error},
    scheduler::Scheduler,
    worker::WorkerProcess,
};
use crate::{
    model::CONTEXT,
    random::Random,
    worker::{Cost, Memory, Shape, Violation, Worker},
};

/// A run that isn't over by then never will be.
const MAX_EVENTS: u64 = 2_000_000;
/// After a silence of this, a peer's connection is given up (HTTP/2 keep-alive).
const KEEP_ALIVE: Micros = 5 * SECOND;
/// By then everybody knows everybody.
const SETTLED: Micros = 500 * MILLI;
/// Before a client that was refused, or lost its router, calls again.
const CALL_AGAIN: Micros = 500 * MILLI;

pub(super) struct World {
    net: Net,
    etcd: Etcd,
    limits: Limits,
    cost: Cost,
    /// The request that kills its workers.
    poison: Option<String>,
    routers: Vec<Router>,
    schedulers: Vec<Scheduler>,
    workers: Vec<WorkerProcess>,
    clients: Vec<Client>,
    faults: Vec<(Micros, Fault)>,
    outcome: Outcome,
    broken: Vec<String>,
}

// === impl World ===

impl World {
    pub(super) fn new(seed: u64, log: bool) -> Self {
        let mut random = Random::new(seed);
        let limits = limits(&mut random);
        let (routers, schedulers, workers) = (1 + random.below(2), 1 + random.below(2), 1 + random.below(4));
        let clients = 1 + random.below(24);
        let span = *random.pick(&[50 * MILLI, 500 * MILLI, 2 * SECOND]);
        let clients: Vec<_> = (0..clients).map(|number| Client::new(number, span, &mut random)).collect();
        let faults = fate::draw(SETTLED - 100 * MILLI, SETTLED + span + SECOND, &mut random);
        let overhead = Duration::from_millis(*random.pick(&[1, 10, 40]));
        let poison = random.chance(0.03).then(|| clients[0].generation.id.clone());
        let noise = *random.pick(&[0.0, 0.01, 0.05, 0.3]);
        let mut world = Self {
            net: Net::new(random, noise, log),
            etcd: Etcd::default(),
            limits,
            cost: Cost { overhead, ..Cost::cpu() },
            poison,
            routers: Vec::new(),
            schedulers: Vec::new(),
            workers: Vec::new(),
            clients,
            faults,
            outcome: Outcome::default(),
            broken: Vec::new(),
        };
        (0..routers).for_each(|_| world.start(Process::Router(0)));
        (0..schedulers).for_each(|_| world.start(Process::Scheduler(0)));
        (0..workers).for_each(|_| world.start(Process::Worker(0)));
        for (number, client) in world.clients.iter().enumerate() {
            world.net.after(client.arrival + SETTLED, Process::World, Event::Call(number));
            if let Some(leaves) = client.leaves {
                world.net.after(leaves + SETTLED, Process::World, Event::Leave(number));
            }
        }
        for (number, (at, _)) in world.faults.iter().enumerate() {
            world.net.after(*at, Process::World, Event::Fault(number));
        }
        world
    }

    /// Lets everything happen; the promises that were broken, and the story.
    pub(super) fn run(mut self) -> (Outcome, Vec<String>, Vec<String>) {
        while let Some((target, event)) = self.net.next() {
            self.outcome.events += 1;
            if self.outcome.events > MAX_EVENTS {
                self.broken.push("it never comes to an end".into());
                break;
            }
            if let Err(Violation(what)) = self.happen(target, event) {
                self.broken.push(format!("{target:?} at {:?}: {what}", self.net.time()));
            }
            self.broken.append(&mut self.net.broken);
            if !self.broken.is_empty() {
                break;
            }
        }
        if self.broken.is_empty() {
            self.look_back();
        }
        (self.outcome, self.broken, self.net.log.take().unwrap_or_default())
    }

    fn happen(&mut self, target: Process, event: Event) -> Result<(), Violation> {
        let Self { net, etcd, .. } = self;
        match (target, event) {
            (_, Event::Deliver(end)) => self.deliver(target, end)?,
            (Process::Router(n), Event::Broken(end)) => self.routers[n].broken(end, net),
            (Process::Scheduler(n), Event::Broken(end)) => self.schedulers[n].broken(end, net),
            (Process::Worker(n), Event::Broken(end)) => self.workers[n].broken(end, net)?,
            (Process::Scheduler(n), Event::Front) => self.schedulers[n].front(net),
            (Process::Scheduler(n), Event::Runner(id)) => self.schedulers[n].runner_wakes(id, net),
            (Process::Scheduler(n), Event::Deadline(id)) => self.schedulers[n].deadline(id, net),
            (Process::Scheduler(n), Event::Drained(id)) => self.schedulers[n].drained(id, net),
            (Process::Scheduler(n), Event::Connect(worker)) => self.schedulers[n].connect(worker, etcd, net),
            (Process::Scheduler(n), Event::Watch) => self.schedulers[n].follow(etcd, net),
            (Process::Router(n), Event::Watch) => self.routers[n].follow(etcd, net),
            (Process::Router(n), Event::LinkUp(scheduler)) => {
                if let Some(end) = self.routers[n].link_up(scheduler, net) {
                    self.schedulers[scheduler].link_up(end, net);
                }
            }
            (Process::Router(n), Event::Search(id)) => self.routers[n].find_place(id, net),
            (Process::Router(n), Event::SlowClient(id)) => self.routers[n].slow_client(id, net),
            (Process::Worker(n), Event::StepDone) => self.workers[n].done(net)?,
            (_, Event::Poisoned(process)) => {
                self.outcome.poisoned += u64::from(self.kill(process, SECOND, MILLI));
            }
            (_, Event::Register) => etcd.register(target, net),
            (_, Event::Expire(process)) => etcd.expire(process, net),
            (_, Event::Call(client)) => self.call(client),
            (_, Event::Readable(client)) => self.readable(client),
            (_, Event::Read(client)) => self.read(client),
            (_, Event::Leave(client)) => self.leave(client),
            (_, Event::Resume { client, router }) => self.resume(client, router),
            (_, Event::Fault(number)) => self.go_wrong(self.faults[number].1),
            (_, Event::Start(process)) => self.start(process),
            _ => {}
        }
        Ok(())
    }

    fn deliver(&mut self, target: Process, end: End) -> Result<(), Violation> {
        let Some(message) = self.net.receive(end) else { return Ok(()) };
        self.net.say(|| format!("{target:?} ← {}", brief(&message)));
        match target {
            Process::Router(n) => self.routers[n].deliver(end, message, &mut self.net),
            Process::Scheduler(n) => self.schedulers[n].deliver(end, message, &mut self.net),
            Process::Worker(n) => self.workers[n].deliver(end, message, &mut self.net)?,
            Process::World => {}
        }
        Ok(())
    }

    /// A new process of that kind.
    fn start(&mut self, kind: Process) {
        let process = match kind {
            Process::Router(_) => {
                let calm = self.faults.is_empty() && self.poison.is_none();
                let patience = calm.then_some(SECOND);
                self.routers.push(Router::new(self.routers.len(), patience));
                Process::Router(self.routers.len() - 1)
            }
            Process::Scheduler(_) => {
                self.schedulers.push(Scheduler::new(self.schedulers.len(), self.limits.clone()));
                Process::Scheduler(self.schedulers.len() - 1)
            }
            Process::Worker(_) | Process::World => {
                let limits = &self.limits;
                let shape = Shape {
                    slots: limits.slots as usize,
                    batch_tokens: limits.batch_tokens,
                    cost: self.cost.clone(),
                    poison: self.poison.clone(),
                };
                let memory = Memory::new(limits.block_tokens, limits.blocks.len());
                let machine = Worker::new(shape, Some(memory));
                self.workers.push(WorkerProcess::new(self.workers.len(), machine));
                Process::Worker(self.workers.len() - 1)
            }
        };
        self.net.say(|| format!("{process:?} starts"));
        self.net.after(0, process, Event::Register);
    }

    fn go_wrong(&mut self, fault: Fault) {
        self.net.say(|| format!("FAULT {fault:?}"));
        self.outcome.faults += 1;
        match fault {
            Fault::KillWorker { which, back, notice } => {
                let process = self.one(which, |p| matches!(p, Process::Worker(_)));
                process.map(|process| self.kill(process, back, notice));
            }
            Fault::KillScheduler { which, back, notice } => {
                let process = self.one(which, |p| matches!(p, Process::Scheduler(_)));
                process.map(|process| self.kill(process, back, notice));
            }
            Fault::KillRouter { which, back, notice } => {
                let process = self.one(which, |p| matches!(p, Process::Router(_)));
                process.map(|process| self.kill(process, back, notice));
            }
            Fault::Stop { which, back } => {
                let Some(process) = self.one(which, |p| !matches!(p, Process::Router(_))) else { return };
                self.kill(process, back, MILLI);
                // It gives its lease back.
                self.net.after(MILLI, Process::World, Event::Expire(process));
            }
            Fault::Hang { which, time } => {
                let Some(process) = self.one(which, |_| true) else { return };
                self.net.say(|| format!("{process:?} stands still"));
                self.net.freeze(process, time);
                self.etcd.cut_off(process, time, &mut self.net);
                // Steps have a deadline of their own; the other connections are kept alive by pings.
                if time > KEEP_ALIVE && !matches!(process, Process::Worker(_)) {
                    self.net.cut_all(process, KEEP_ALIVE);
                }
            }
            Fault::Cut { which, notice } => {
                let wires = self.net.live_wires();
                if let Some(&wire) = wires.get(which % wires.len().max(1)) {
                    self.net.say(|| format!("wire {wire} is cut"));
                    self.net.cut(wire, notice);
                }
            }
            Fault::Part { one, other, time, notice } => {
                let (Some(one), Some(other)) = (self.one(one, |_| true), self.one(other, |_| true)) else {
                    return;
                };
                self.net.say(|| format!("{one:?} and {other:?} are parted"));
                self.net.part(one, other, time, notice);
            }
            Fault::EtcdAway { time } => self.etcd.leave(time, &self.net),
            Fault::EtcdCutOff { which, time } => {
                let Some(process) = self.one(which, |_| true) else { return };
                self.etcd.cut_off(process, time, &mut self.net);
            }
        }
    }

    /// One of the living.
    fn one(&self, which: usize, wanted: impl Fn(Process) -> bool) -> Option<Process> {
        let routers = (0..self.routers.len()).map(Process::Router);
        let schedulers = (0..self.schedulers.len()).map(Process::Scheduler);
        let workers = (0..self.workers.len()).map(Process::Worker);
        let all = routers.chain(schedulers).chain(workers);
        let living: Vec<_> = all.filter(|&p| wanted(p) && !self.net.is_dead(p)).collect();
        living.get(which % living.len().max(1)).copied()
    }

    /// Kills a process; false if it was dead.
    fn kill(&mut self, process: Process, back: Micros, notice: Micros) -> bool {
        if self.net.is_dead(process) {
            return false;
        }
        self.net.say(|| format!("{process:?} dies"));
        self.net.kill(process, notice);
        self.net.after(LEASE, Process::World, Event::Expire(process));
        self.net.after(back, Process::World, Event::Start(process));
        if let Process::Router(router) = process {
            for client in 0..self.clients.len() {
                let wait = self.net.random.between(0, notice);
                self.net.after(wait, Process::World, Event::Resume { client, router });
            }
        }
        true
    }

    /// Looks at what is left when nothing happens any more.
    fn look_back(&mut self) {
        let wrong = self.faults.len() as u64;
        if wrong == 0 && self.outcome.poisoned > 3 {
            self.broken.push(format!("a request took {} workers with it", self.outcome.poisoned));
        }
        // Whoever was beside a poisonous request at two deaths runs alone: a fault just then looks like its own doing.
        let bounds = if wrong == 0 { 0 } else { wrong + self.outcome.poisoned };
        for (number, client) in self.clients.iter().enumerate() {
            match &client.state {
                State::Done => self.outcome.whole += 1,
                State::Left => self.outcome.left += 1,
                State::Failed(_) if self.poison.as_ref() == Some(&client.generation.id) => {
                    self.outcome.ended += 1
                }
                State::Failed(error) if allowed(error, bounds) => self.outcome.ended += 1,
                State::Failed(error) => self.broken.push(format!("client {number}: {error}")),
                state => self.broken.push(format!("client {number} waits for ever: {state:?}")),
            }
        }
        let net = &self.net;
        let routers = (0..).zip(&self.routers).filter(|(n, _)| !net.is_dead(Process::Router(*n)));
        self.broken.extend(routers.filter_map(|(_, router)| router.leaks()));
        for (n, scheduler) in self.schedulers.iter().enumerate() {
            if !net.is_dead(Process::Scheduler(n)) {
                self.broken.extend(scheduler.leaks());
                let (wasted, preempted) = scheduler.totals();
                self.outcome.wasted += wasted;
                self.outcome.preempted += preempted;
            }
            self.outcome.moved += scheduler.moves();
            self.outcome.taken_over += scheduler.taken_over;
        }
        let workers = (0..).zip(&self.workers).filter(|(n, _)| !net.is_dead(Process::Worker(*n)));
        self.broken.extend(workers.filter_map(|(_, worker)| worker.leaks()));
    }
}

// === impl World: clients ===

impl World {
    fn call(&mut self, number: usize) {
        if self.clients[number].state != State::Waits {
            return;
        }
        let Some(Process::Router(router)) =
            self.one(self.outcome.events as usize, |p| matches!(p, Process::Router(_)))
        else {
            return self.net.after(CALL_AGAIN, Process::World, Event::Call(number));
        };
        let generation = self.clients[number].generation.clone();
        match self.routers[router].call(number, &generation, &mut self.net) {
            Ok(call) => {
                self.net.say(|| format!("client {number} calls router {router}: request {call}"));
                self.clients[number].state = State::Reads { router, call };
            }
            Err(_) => self.net.after(CALL_AGAIN, Process::World, Event::Call(number)),
        }
    }

    fn readable(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if !client.reading {
            client.reading = true;
            let wait = client.pace + client.stall.take().unwrap_or(0);
            self.net.after(wait, Process::World, Event::Read(number));
        }
    }

    fn read(&mut self, number: usize) {
        let client = &mut self.clients[number];
        client.reading = false;
        let State::Reads { router, call: id } = client.state else { return };
        if self.net.is_dead(Process::Router(router)) {
            return; // it will learn of it
        }
        let Some(call) = self.routers[router].calls.get_mut(&id) else { return };
        if let Some(batch) = call.unread.pop_front() {
            if let Err(wrong) = client.read(batch) {
                self.broken.push(format!("client {number}: {wrong}"));
            }
            self.routers[router].resume(id, &mut self.net);
        } else if let Some(error) = stream_error(call) {
            let again = self.poison.as_ref() != Some(&client.generation.id);
            client.fail(error, again);
        }
        if self.clients[number].is_over() {
            self.routers[router].hang_up(id, &mut self.net);
        } else if self.clients[number].state == State::Waits {
            self.routers[router].hang_up(id, &mut self.net);
            self.net.after(CALL_AGAIN, Process::World, Event::Call(number));
        } else if self.routers[router].readable(id) {
            self.readable(number);
        }
    }

    fn leave(&mut self, number: usize) {
        if self.clients[number].is_over() {
            return;
        }
        let before = std::mem::replace(&mut self.clients[number].state, State::Left);
        if let State::Reads { router, call } = before
            && !self.net.is_dead(Process::Router(router))
        {
            self.routers[router].hang_up(call, &mut self.net);
        }
    }

    fn resume(&mut self, number: usize, router: usize) {
        let client = &mut self.clients[number];
        if matches!(client.state, State::Reads { router: at, .. } if at == router) {
            client.resumes();
            self.outcome.resumed += 1;
            self.net.after(CALL_AGAIN, Process::World, Event::Call(number));
        }
    }
}

/// A worker's limits: small, so that everything runs out.
fn limits(random: &mut Random) -> Limits {
    let block_tokens = *random.pick(&[1, 4, 16]);
    let groups = 1 + random.below(2);
    // At least one sequence of the largest size fits.
    let blocks = CONTEXT.div_ceil(block_tokens) + random.below(2 * CONTEXT / block_tokens);
    Limits {
        slots: random.between(1, 12) as u32,
        batch_tokens: *random.pick(&[4, 16, 64]),
        block_tokens,
        blocks: vec![blocks as u32; groups],
        context: CONTEXT,
        prefix_cache: random.chance(0.8),
        depth: 1 + random.below(2),
        drafts: random.below(9),
        always_guess: false,
        max_waiting: 64,
        max_waiting_tokens: 1 << 16,
    }
}

/// A message in a line.
fn brief(message: &Message) -> String {
    match message {
        Message::Submit(s) if s.last => format!("submission {}.{}", s.request, s.attempt),
        Message::Submit(s) => format!("part of submission {}.{}", s.request, s.attempt),
        Message::Output(output) => {
            let each = output.sequences.iter().map(|s| match &s.failure {
                Some(failure) => format!("{}.{}/{} {:?}", s.request, s.attempt, s.choice, failure.reason()),
                None => format!("{}.{}/{} {:?}", s.request, s.attempt, s.choice, s.tokens),
            });
            format!("outputs {}", each.collect::<Vec<_>>().join(", "))
        }
        Message::Plan(plan) => {
            let runs: Vec<_> =
                plan.run.iter().map(|run| format!("{}×{}+{}", run.slot, run.tokens, run.drafts)).collect();
            format!("plan {}: admits {}, runs {}", plan.step_id, plan.admit.len(), runs.join(" "))
        }
        Message::Result(result) => format!("result of step {}", result.step_id),
        Message::Hello(inventory) => {
            let blocks: Vec<_> = inventory.iter().map(|group| &group.blocks).collect();
            format!("hello, with blocks {blocks:?}")
        }
        other => format!("{other:?}"),
    }
}
