//! One worker, and two tenants on it: one asks now and then, the other keeps more requests under way than there are
//! slots. How much later do the first one's tokens come, than if it were alone?

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use volley_proto::v1::{self, Sampling};
use volley_scheduler::core::{
    planner::Planner,
    sequence::{Sequence, Spec},
    types::{LinkId, SequenceKey, TokenId},
};

use super::{Histogram, Setup};
use crate::{
    random::{Random, mix},
    worker::{Shape, Stepped, Violation, Worker},
};

type Micros = u64;

/// One way between scheduler and worker.
const WIRE: Micros = 150;
/// Between the quiet tenant's requests, on average.
const GAP: Duration = Duration::from_secs(2);
const QUIET: &str = "quiet";
const FLOOD: &str = "flood";

/// What the quiet tenant saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// From a request's arrival to its first token.
    pub first: Histogram,
    /// Steps that had not ended when it arrived and did before the token came, the token's own included.
    pub steps: u64,
    /// The time of an average step.
    pub step: Duration,
    /// Tokens of the other tenant, a second.
    pub flood: f64,
}

/// What a request of the quiet tenant waits for.
struct Asked {
    at: Micros,
    steps: u64,
}

struct World<'a> {
    setup: &'a Setup,
    now: Micros,
    planner: Planner,
    machine: Worker,
    random: Random,
    /// Plans on their way to the worker, and when they arrive.
    plans: VecDeque<(Micros, v1::StepPlan)>,
    /// Answers on their way back.
    results: VecDeque<(Micros, v1::StepResult)>,
    requests: u64,
    /// The quiet tenant's, until their first tokens.
    quiet: BTreeMap<u64, Option<Asked>>,
    seen: Seen,
    steps: u64,
    busy: Micros,
    flood_tokens: u64,
}

/// Runs `requests` of the quiet tenant, beside `flood` requests of the other that are under way at any time.
pub fn flood(setup: &Setup, requests: usize, flood: usize) -> Result<Seen, Violation> {
    let limits = &setup.limits;
    let shape = Shape {
        slots: limits.slots as usize,
        batch_tokens: limits.batch_tokens,
        cost: setup.cost.clone(),
        poison: None,
    };
    let mut world = World {
        setup,
        now: 0,
        planner: Planner::new(limits.clone()),
        machine: Worker::new(shape, None),
        random: Random::new(setup.seed),
        plans: VecDeque::new(),
        results: VecDeque::new(),
        requests: 0,
        quiet: BTreeMap::new(),
        seen: Seen::default(),
        steps: 0,
        busy: 0,
        flood_tokens: 0,
    };
    (0..flood).for_each(|_| world.submit(FLOOD));
    world.run(requests)?;
    world.seen.flood = world.flood_tokens as f64 / Duration::from_micros(world.now).as_secs_f64();
    world.seen.step = Duration::from_micros(world.busy / world.steps.max(1));
    Ok(world.seen)
}

// === impl World ===

impl World<'_> {
    fn submit(&mut self, tenant: &str) {
        self.requests += 1;
        let (number, mut out) = (self.requests, Vec::new());
        let (prompt, output) = match tenant {
            QUIET => (self.random.between(50, 150), 32),
            _ => (self.random.between(64, 512), self.random.between(16, 128)),
        };
        let key = SequenceKey { link: LinkId(1), request: number, attempt: 0, choice: 0 };
        let spec = Spec {
            kind: v1::Kind::Generate,
            sampling: Sampling { seed: mix(self.setup.seed ^ number), ..Sampling::default() },
            max_tokens: output as usize,
            tenant: tenant.into(),
            ..Spec::default()
        };
        let tokens = (0..prompt).map(|at| TokenId((mix(number << 20 | at) >> 47) as u32)).collect();
        let sequence = Sequence::new(key, number, Arc::new(spec), tokens, prompt as usize);
        if tenant == QUIET {
            self.quiet.insert(number, Some(Asked { at: self.now, steps: self.steps }));
        }
        self.planner.submit(vec![sequence], &mut out);
    }

    fn plan(&mut self) {
        while let Some(plan) = self.planner.plan() {
            self.plans.push_back((self.now + WIRE, plan));
        }
    }

    /// Steps one after another; the quiet tenant's requests come while they run.
    fn run(&mut self, requests: usize) -> Result<(), Violation> {
        let (mut left, mut arrival, mut free) = (requests, self.gap(), 0);
        self.plan();
        while left > 0 || self.quiet.values().any(Option::is_some) {
            let arrives = (left > 0).then_some(arrival);
            let hears = self.results.front().map(|(at, _)| *at);
            let starts = self.plans.front().map(|(at, _)| free.max(*at));
            let Some(next) = [arrives, hears, starts].into_iter().flatten().min() else {
                return Err(Violation("nothing happens any more".into()));
            };
            self.now = next;
            if arrives == Some(next) {
                left -= 1;
                arrival = next + self.gap();
                self.submit(QUIET);
            } else if hears == Some(next) {
                self.hear()?;
            } else if let Some((_, plan)) = self.plans.pop_front() {
                let Stepped { result, took, .. } = self.machine.step(plan)?;
                free = next + took.as_micros() as Micros;
                self.results.push_back((free + WIRE, result));
            }
            self.plan();
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<(), Violation> {
        let (Some((_, result)), mut out) = (self.results.pop_front(), Vec::new()) else { return Ok(()) };
        self.busy += result.compute_us;
        self.steps += 1;
        self.planner.complete(result, &mut out).map_err(|error| Violation(error.to_string()))?;
        for output in out {
            if let Some(failure) = &output.message.failure {
                return Err(Violation(format!("a request fails: {failure:?}")));
            }
            match self.quiet.get_mut(&output.key.request) {
                Some(asked) => {
                    if let Some(asked) = asked.take() {
                        self.seen.first.add(self.now - asked.at);
                        self.seen.steps = self.seen.steps.max(self.steps - asked.steps);
                    }
                }
                None => {
                    self.flood_tokens += output.message.tokens.len() as u64;
                    if output.ends() {
                        self.submit(FLOOD);
                    }
                }
            }
        }
        Ok(())
    }

    fn gap(&mut self) -> Micros {
        self.random.exponential(GAP.as_secs_f64() * 1e6) as Micros
    }
}
