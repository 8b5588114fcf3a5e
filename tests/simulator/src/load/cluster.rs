//! Many workers under load: one scheduler's placement, a planner for each, and what their steps cost.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    time::Duration,
};

use volley_proto::v1::{self, Sampling};
use volley_scheduler::core::{
    placement::Facts,
    planner::{Limits, Planner},
    sequence::{Output, Sequence, Spec},
    types::{LinkId, Millis, SequenceKey},
};

use super::{
    Setup,
    figures::{Figures, Steady},
    policy::{Chooser, Policy},
    traffic::{Ask, Traffic},
};
use crate::{
    random::{Random, mix},
    worker::{Shape, Stepped, Violation, Worker},
};

/// One way between scheduler and worker.
const WIRE: Micros = 150;

type Micros = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The next request arrives.
    Arrive,
    /// A conversation goes on.
    Turn(usize),
    /// A worker's step is done.
    Done(usize),
    /// The scheduler hears of it.
    Heard(usize),
}

struct Node {
    planner: Planner,
    machine: Worker,
    /// Plans, and when they arrive.
    plans: VecDeque<(Micros, v1::StepPlan)>,
    /// Answers under way.
    results: VecDeque<v1::StepResult>,
    /// What runs.
    running: Option<v1::StepResult>,
}

/// A request under way.
struct Live {
    worker: usize,
    tenant: usize,
    arrival: Micros,
    last: Option<Micros>,
    /// What the next turn needs.
    turn: Option<(Ask, Vec<u32>)>,
}

pub(super) struct Cluster {
    now: Micros,
    queue: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    numbers: u64,
    nodes: Vec<Node>,
    chooser: Chooser,
    traffic: Traffic,
    /// By number of request.
    live: Vec<Option<Live>>,
    /// Turns to come.
    turns: Vec<Option<Ask>>,
    wanted: usize,
    figures: Figures,
    /// Up to the last arrival.
    steady: Option<Steady>,
    seed: u64,
}

// === impl Cluster ===

impl Cluster {
    pub(super) fn new(setup: &Setup, policy: Policy) -> Self {
        let limits = &setup.limits;
        let shape = Shape {
            slots: limits.slots as usize,
            batch_tokens: limits.batch_tokens,
            cost: setup.cost.clone(),
            poison: None,
        };
        let node = |_| Node {
            planner: Planner::new(limits.clone()),
            machine: Worker::new(shape.clone(), None),
            plans: VecDeque::new(),
            results: VecDeque::new(),
            running: None,
        };
        let random = Random::new(setup.seed);
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            numbers: 0,
            nodes: (0..setup.workers).map(node).collect(),
            chooser: Chooser::new(policy, setup.workers, &facts(limits)),
            traffic: Traffic::new(setup.kinds.clone(), setup.rate(), random),
            live: Vec::with_capacity(setup.requests),
            turns: Vec::new(),
            wanted: setup.requests,
            figures: Figures::new(),
            steady: None,
            seed: setup.seed,
        }
    }

    /// Until every request is answered.
    pub(super) fn run(mut self) -> Result<Figures, Violation> {
        self.after(0, Event::Arrive);
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            self.now = at;
            match event {
                Event::Arrive => self.arrive()?,
                Event::Turn(number) => {
                    if let Some(ask) = self.turns[number].take() {
                        self.submit(ask)?;
                    }
                }
                Event::Done(worker) => {
                    let node = &mut self.nodes[worker];
                    node.results.extend(node.running.take());
                    self.after(WIRE, Event::Heard(worker));
                    self.start(worker)?;
                }
                Event::Heard(worker) => self.hear(worker)?,
            }
        }
        for node in &self.nodes {
            let (totals, load) = (node.planner.totals(), node.planner.load());
            self.figures.wasted += totals.wasted_tokens;
            self.figures.preempted += totals.preemptions;
            if load.running + load.waiting > 0 || load.free_blocks != load.total_blocks {
                return Err(Violation(format!("something is left at the end: {load:?}")));
            }
        }
        let steady = self.steady.unwrap_or_default();
        Ok(Figures { steady, ..self.figures })
    }

    fn after(&mut self, wait: Micros, event: Event) {
        self.numbers += 1;
        self.queue.push(Reverse((self.now + wait, self.numbers, event)));
    }

    fn arrive(&mut self) -> Result<(), Violation> {
        if self.live.len() >= self.wanted {
            return Ok(());
        }
        let ask = self.traffic.ask();
        let wait = self.traffic.wait(Duration::from_micros(self.now));
        self.after(wait.as_micros() as Micros, Event::Arrive);
        self.submit(ask)
    }

    fn submit(&mut self, ask: Ask) -> Result<(), Violation> {
        let number = self.live.len();
        if number >= self.wanted {
            return Ok(());
        }
        if number + 1 == self.wanted {
            let Figures { answered, tokens, steps, .. } = self.figures;
            self.steady = Some(Steady { time: Duration::from_micros(self.now), answered, tokens, steps });
        }
        let key = SequenceKey { link: LinkId(1), request: number as u64, attempt: 0, choice: 0 };
        let tenant = format!("tenant-{}", ask.tenant);
        let spec = Spec {
            kind: v1::Kind::Generate,
            sampling: Sampling { seed: mix(self.seed ^ number as u64), ..Sampling::default() },
            max_tokens: ask.output,
            session: ask.turns.map(|(conversation, _)| conversation),
            cache_salt: tenant.clone(),
            tenant,
            ..Spec::default()
        };
        let prompt_tokens = ask.prompt.len();
        let sequence = Sequence::new(key, number as u64, Arc::new(spec), ask.prompt.clone(), prompt_tokens);
        let Some((worker, sequences)) = self.chooser.choose(sequence) else {
            return Err(Violation("a request found no worker".into()));
        };
        let turn = ask.turns.is_some().then(|| (ask.clone(), Vec::new()));
        self.live.push(Some(Live { worker, tenant: ask.tenant, arrival: self.now, last: None, turn }));
        let mut out = Vec::new();
        self.nodes[worker].planner.at(Millis(self.now / 1000));
        self.nodes[worker].planner.submit(sequences, &mut out);
        self.figures.prompt_tokens += prompt_tokens as u64;
        for refusal in out {
            self.figures.refused += 1;
            self.figures.prompt_tokens -= prompt_tokens as u64;
            self.chooser.ended(worker, &refusal.key);
            self.live[number] = None;
        }
        self.plan(worker)
    }

    /// Sends what can run.
    fn plan(&mut self, worker: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[worker];
        while let Some(plan) = node.planner.plan() {
            node.plans.push_back((self.now + WIRE, plan));
        }
        self.chooser.cache_changed(worker, &node.planner.cache_changes());
        self.start(worker)
    }

    /// Starts the next step, if the worker is idle.
    fn start(&mut self, worker: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[worker];
        if node.running.is_some() {
            return Ok(());
        }
        let Some((arrives, plan)) = node.plans.pop_front() else { return Ok(()) };
        let Stepped { result, took, .. } = node.machine.step(plan)?;
        node.running = Some(result);
        self.figures.steps += 1;
        let wait = arrives.saturating_sub(self.now) + took.as_micros() as Micros;
        self.after(wait, Event::Done(worker));
        Ok(())
    }

    fn hear(&mut self, worker: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[worker];
        let Some(result) = node.results.pop_front() else { return Ok(()) };
        let mut out = Vec::new();
        node.planner.at(Millis(self.now / 1000));
        node.planner.complete(result, &mut out).map_err(|error| Violation(error.to_string()))?;
        for output in out {
            self.take(output)?;
        }
        self.plan(worker)
    }

    fn take(&mut self, output: Output) -> Result<(), Violation> {
        let number = output.key.request as usize;
        let Some(live) = &mut self.live[number] else {
            return Err(Violation(format!("request {number} goes on after its end")));
        };
        if let Some(failure) = &output.message.failure {
            return Err(Violation(format!("request {number} fails: {failure:?}")));
        }
        if output.begins {
            self.chooser.begun(&output.key);
        }
        self.figures.cached_tokens += u64::from(output.message.cached_tokens.unwrap_or(0));
        for _ in &output.message.tokens {
            match live.last.replace(self.now) {
                None => self.figures.first[live.tenant].add(self.now - live.arrival),
                Some(last) => self.figures.next.add(self.now - last),
            }
        }
        self.figures.tokens += output.message.tokens.len() as u64;
        if let Some((_, said)) = &mut live.turn {
            said.extend(&output.message.tokens);
        }
        if !output.ends() {
            return Ok(());
        }
        self.chooser.ended(live.worker, &output.key);
        self.figures.answered += 1;
        let next = live.turn.take().and_then(|(ask, said)| self.traffic.turn(&ask, &said));
        self.live[number] = None;
        if let Some((wait, ask)) = next {
            self.turns.push(Some(ask));
            self.after(wait.as_micros() as Micros, Event::Turn(self.turns.len() - 1));
        }
        Ok(())
    }
}

fn facts(limits: &Limits) -> Facts {
    let kv_tokens = limits.blocks.iter().min().map_or(0, |&blocks| blocks as usize) * limits.block_tokens;
    Facts { kv_tokens, context: limits.context, block_tokens: limits.block_tokens, ..Facts::default() }
}
