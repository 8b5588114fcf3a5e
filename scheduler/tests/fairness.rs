//! Who goes first: the shares of tenants, and that nobody starves.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

mod fake;

use std::{collections::HashMap, sync::Arc};

use proptest::prelude::*;
use volley_proto::v1::Kind;
use volley_scheduler::core::{
    fairness::{GENERATED_COST, PATIENCE, PROMPT_COST, Queue, Weights},
    planner::{Limits, Planner},
    sequence::{Sequence, Spec},
    types::{LinkId, SequenceKey, TokenId},
};

const TENANTS: usize = 4;
const SLOTS: usize = 3;
const MAX_PROMPT: usize = 40;
const MAX_GENERATED: usize = 20;

fn name(tenant: usize) -> String {
    format!("tenant {tenant}")
}

fn sequence(n: u64, tenant: usize, priority: i32, prompt: usize, generates: usize) -> Sequence {
    let key = SequenceKey { link: LinkId(1), request: n, attempt: 0, choice: 0 };
    let spec = Spec {
        kind: Kind::Generate,
        max_tokens: generates,
        tenant: name(tenant),
        priority,
        request_id: n.to_string(),
        ..Spec::default()
    };
    Sequence::new(key, n, Arc::new(spec), vec![TokenId(n as u32 % fake::VOCABULARY); prompt], prompt)
}

/// A worker with a queue before it, where every sequence generates as much as it may.
struct Share {
    queue: Queue,
    weights: [u32; TENANTS],
    running: Vec<(usize, Sequence, usize)>,
    arrivals: u64,
    waiting: [usize; TENANTS],
    /// What tenants have been given, for their weight.
    given: [f64; TENANTS],
    /// The same, when both of a pair began to wait.
    since: HashMap<(usize, usize), (f64, f64)>,
}

impl Share {
    fn new(weights: [u32; TENANTS]) -> Self {
        let named = weights.iter().enumerate().map(|(tenant, &weight)| (name(tenant), weight));
        Self {
            queue: Queue::new(Weights::new(named.collect())),
            weights,
            running: Vec::new(),
            arrivals: 0,
            waiting: [0; TENANTS],
            given: [0.0; TENANTS],
            since: HashMap::new(),
        }
    }

    fn give(&mut self, tenant: usize, spec: &Spec, tokens: usize, cost: u64) {
        self.queue.charge(spec, tokens, cost);
        self.given[tenant] += (tokens as u64 * cost) as f64 / f64::from(self.weights[tenant]);
    }

    fn arrive(&mut self, tenant: usize, prompt: usize, generates: usize) {
        self.arrivals += 1;
        self.waiting[tenant] += 1;
        self.queue.line_up(sequence(self.arrivals, tenant, 0, prompt, generates));
    }

    fn step(&mut self) {
        while self.running.len() < SLOTS {
            let Some(sequence) = self.queue.take() else { break };
            let tenant = (0..TENANTS).find(|&t| name(t) == sequence.spec.tenant).unwrap();
            self.waiting[tenant] -= 1;
            self.give(tenant, &sequence.spec.clone(), sequence.tokens.len(), PROMPT_COST);
            self.running.push((tenant, sequence, 0));
        }
        for i in 0..self.running.len() {
            self.running[i].2 += 1;
            let (tenant, spec) = (self.running[i].0, self.running[i].1.spec.clone());
            self.give(tenant, &spec, 1, GENERATED_COST);
        }
        self.running.retain(|(_, sequence, generated)| *generated < sequence.spec.max_tokens.max(1));
    }

    /// The most that two tenants' shares may differ by while both wait.
    fn check(&mut self) {
        let running = SLOTS * MAX_GENERATED * GENERATED_COST as usize;
        let bound = 2.0 * (MAX_PROMPT * PROMPT_COST as usize + running) as f64;
        for a in 0..TENANTS {
            for b in a + 1..TENANTS {
                if self.waiting[a] == 0 || self.waiting[b] == 0 {
                    self.since.remove(&(a, b));
                    continue;
                }
                let now = (self.given[a], self.given[b]);
                let since = *self.since.entry((a, b)).or_insert(now);
                let apart = (now.0 - since.0) - (now.1 - since.1);
                assert!(apart.abs() <= bound, "tenants {a} and {b} are {apart} apart, more than {bound}");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Arrive(usize, usize, usize),
    Step,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    // Tenants ask for very different things.
    let arrive = (0..TENANTS, 1..=MAX_PROMPT / TENANTS, 1..=MAX_GENERATED / TENANTS)
        .prop_map(|(tenant, p, g)| Event::Arrive(tenant, p * (tenant + 1), g * (TENANTS - tenant)));
    prop::collection::vec(prop_oneof![2 => arrive, 5 => Just(Event::Step)], 1..1500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn while_two_tenants_wait_they_are_given_the_same_within_a_bound(
        weights in [1..4u32, 1..4u32, 1..4u32, 1..4u32],
        events in events(),
    ) {
        let mut share = Share::new(weights);
        for event in events {
            match event {
                Event::Arrive(tenant, prompt, generates) => share.arrive(tenant, prompt, generates),
                Event::Step => share.step(),
            }
            share.check();
        }
    }

    #[test]
    fn everybody_has_a_turn_however_many_come_at_higher_priorities_and_from_other_tenants(
        low in prop::collection::vec((0..TENANTS, -2..=0i32, 1..=MAX_PROMPT), 1..30),
        high in prop::collection::vec((0..TENANTS, -1..3i32, 1..=MAX_PROMPT), 1..50),
    ) {
        let mut queue = Queue::default();
        for (n, &(tenant, priority, prompt)) in (1..).zip(&low) {
            queue.line_up(sequence(n, tenant, priority, prompt, 1));
        }
        let mut high = (1_000_000..).zip(high.iter().cycle());
        let mut left = low.len();
        // Of each class and tenant, what comes later may go first for as long as it takes to have had as much.
        let bound = (PATIENCE as usize + 1) * low.len() * TENANTS * MAX_PROMPT;
        for _ in 0..bound {
            let (n, &(tenant, priority, prompt)) = high.next().unwrap();
            queue.line_up(sequence(n, tenant, priority, prompt, 1));
            let taken = queue.take().unwrap();
            queue.charge(&taken.spec, taken.tokens.len(), PROMPT_COST);
            left -= usize::from(taken.arrival < 1_000_000);
            if left == 0 {
                return Ok(());
            }
        }
        prop_assert_eq!(left, 0, "left after {} admissions", bound);
    }
}

fn limits() -> Limits {
    Limits {
        slots: 2,
        batch_tokens: 64,
        block_tokens: 4,
        blocks: vec![1000],
        context: 2000,
        depth: 1,
        prefix_cache: true,
        drafts: 0,
        always_guess: false,
        max_waiting: 1000,
        max_waiting_tokens: 1 << 20,
    }
}

/// The order in which requests get a place.
fn turns(mut planner: Planner, steps: usize) -> Vec<u64> {
    let mut worker = fake::FakeWorker::new(4, 64);
    let mut admitted = Vec::new();
    for _ in 0..steps {
        let Some(plan) = planner.plan() else { break };
        let new = plan.admit.iter().map(|sequence| sequence.request_id.parse::<u64>().unwrap());
        let new: Vec<_> = new.filter(|n| !admitted.contains(n)).collect();
        admitted.extend(new);
        planner.complete(worker.step(plan), &mut Vec::new()).unwrap();
    }
    admitted
}

#[test]
fn a_tenant_that_floods_the_queue_waits_behind_itself() {
    let mut planner = Planner::new(limits());
    for n in 1..100 {
        planner.submit(vec![sequence(n, 0, 0, 10, 4)], &mut Vec::new());
    }
    planner.submit(vec![sequence(100, 1, 0, 10, 4)], &mut Vec::new());
    planner.submit(vec![sequence(101, 1, 0, 10, 4)], &mut Vec::new());
    let admitted = turns(planner, 12);
    let at = |n| admitted.iter().position(|&admitted| admitted == n).unwrap();
    assert!(at(100) <= 2 && at(101) <= 4, "{admitted:?}");
}

#[test]
fn a_tenant_of_twice_the_weight_is_given_twice_as_much() {
    let weights = Weights::new([(name(1), 2)].into());
    let mut planner = Planner::new(limits()).weighing(weights);
    for n in 1..200 {
        planner.submit(vec![sequence(n, n as usize % 2, 0, 10, 4)], &mut Vec::new());
    }
    // A worker that joins has what waits shared out anew: here it comes back.
    for sequence in planner.let_waiting_go() {
        planner.submit(vec![sequence], &mut Vec::new());
    }
    let admitted = turns(planner, 120);
    let heavy = admitted.iter().filter(|&n| n % 2 == 1).count() as f64;
    let share = heavy / admitted.len() as f64;
    assert!((0.6..0.72).contains(&share), "{share} of {}", admitted.len());
}

#[test]
fn a_long_prompt_leaves_half_of_each_step_to_shorter_ones_behind_it() {
    let (mut planner, mut worker) = (Planner::new(limits()), fake::FakeWorker::new(4, 64));
    planner.submit(vec![sequence(1, 0, 0, 400, 4)], &mut Vec::new());
    let mut rows = Vec::new();
    for step in 0..3 {
        if step == 1 {
            planner.submit(vec![sequence(2, 0, 0, 30, 4)], &mut Vec::new());
        }
        let plan = planner.plan().unwrap();
        let mut step: Vec<_> = plan.run.iter().map(|run| run.tokens).collect();
        step.sort_unstable();
        rows.push(step);
        planner.complete(worker.step(plan), &mut Vec::new()).unwrap();
    }
    assert_eq!(rows, [vec![64], vec![30, 34], vec![1, 16]], "and what they leave over is its own");
}

/// A tenant has all places, and keeps them until others come. What waits may be recalled meanwhile, and come back.
fn a_place_is_given_up(recalled: bool) {
    let mut planner = Planner::new(Limits { slots: 4, ..limits() });
    let mut worker = fake::FakeWorker::new(4, 64);
    for n in 1..20 {
        planner.submit(vec![sequence(n, 0, 0, 10, 500)], &mut Vec::new());
    }
    let mut admitted = Vec::new();
    for step in 0..60 {
        if step == 20 {
            planner.submit(vec![sequence(100, 1, 0, 10, 500)], &mut Vec::new());
        }
        if step == 25 && recalled {
            for sequence in planner.let_waiting_go() {
                planner.submit(vec![sequence], &mut Vec::new());
            }
        }
        if step == 30 {
            planner.submit(vec![sequence(101, 1, 0, 10, 500)], &mut Vec::new());
            planner.submit(vec![sequence(102, 1, 0, 10, 500)], &mut Vec::new());
        }
        let plan = planner.plan().unwrap();
        admitted.extend(plan.admit.iter().map(|new| (step, new.request_id.clone())));
        planner.complete(worker.step(plan), &mut Vec::new()).unwrap();
    }
    let late: Vec<_> = admitted[4..].iter().map(|(step, id)| (*step, id.as_str())).collect();
    assert_eq!(late, [(21, "100"), (31, "101")], "and no more than half of them");
    assert_eq!(planner.totals().preemptions, 2);
}

#[test]
fn a_tenant_with_all_places_gives_one_up_once_for_a_newcomer() {
    a_place_is_given_up(false);
}

#[test]
fn what_gave_way_lines_up_again_when_it_comes_back_from_a_recall() {
    a_place_is_given_up(true);
}

#[test]
fn a_higher_priority_takes_a_place_from_a_lower_one() {
    let (mut planner, mut worker) = (Planner::new(limits()), fake::FakeWorker::new(4, 64));
    planner.submit(vec![sequence(1, 0, 0, 10, 500)], &mut Vec::new());
    planner.submit(vec![sequence(2, 0, -1, 10, 500)], &mut Vec::new());
    for _ in 0..5 {
        let plan = planner.plan().unwrap();
        planner.complete(worker.step(plan), &mut Vec::new()).unwrap();
    }
    planner.submit(vec![sequence(3, 0, 1, 10, 5)], &mut Vec::new());
    assert_eq!(planner.plan().unwrap().admit[0].request_id, "3");
}

#[test]
fn long_prompts_go_at_a_pace_that_streams_beside_them_hardly_notice() {
    let mut planner = Planner::new(Limits { slots: 4, batch_tokens: 256, ..limits() });
    let mut worker = fake::FakeWorker::new(4, 256);
    // A step takes 10 ms and 1 ms a row.
    let mut step = |planner: &mut Planner| {
        let plan = planner.plan().unwrap();
        let rows: Vec<_> = plan.run.iter().map(|run| run.tokens).collect();
        let mut result = worker.step(plan);
        result.compute_us = 10_000 + 1000 * u64::from(result.rows);
        planner.complete(result, &mut Vec::new()).unwrap();
        rows
    };
    planner.submit(vec![sequence(1, 0, 0, 10, 900)], &mut Vec::new());
    (0..20).for_each(|_| drop(step(&mut planner)));
    planner.submit(vec![sequence(2, 0, 0, 1900, 5)], &mut Vec::new());
    let alone: Vec<_> = (0..50).map(|_| step(&mut planner)).collect();
    assert!(alone[10..].iter().all(|rows| rows[0] == 1 && (4..=6).contains(&rows[1])), "{alone:?}");
    planner.submit(vec![sequence(3, 0, 0, 40, 5)], &mut Vec::new());
    assert_eq!(step(&mut planner)[1], 40, "short ones aren't held up");
}
