//! A request that kills its workers: it takes two of them and the one that it runs alone on, and nobody else
//! loses a token.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

mod fake;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use fake::{FakeWorker, Poison, Stream, alone};
use proptest::prelude::*;
use volley_proto::v1::{self, Kind, failure::Reason};
use volley_scheduler::core::{
    placement::{Action, Facts, Placement},
    planner::{Limits, Planner},
    sequence::{Sequence, Spec},
    types::{LinkId, SequenceKey, TokenId, WorkerId},
};

const CONTEXT: usize = 200;

struct Worker {
    planner: Planner,
    fake: FakeWorker,
    plans: VecDeque<v1::StepPlan>,
}

/// The core of a scheduler and its workers. One that dies is started again.
struct World {
    limits: Limits,
    placement: Placement,
    workers: BTreeMap<WorkerId, Worker>,
    joined: u64,
    poison: Option<Poison>,
    /// Sequences with a slot at each death.
    deaths: Vec<usize>,
    prompts: BTreeMap<SequenceKey, (Vec<u32>, v1::Submission)>,
    streams: BTreeMap<SequenceKey, Stream>,
    failures: BTreeMap<SequenceKey, Reason>,
}

impl World {
    fn new(limits: Limits, workers: usize, poison: Option<Poison>) -> Self {
        let mut world = Self {
            limits,
            placement: Placement::default(),
            workers: BTreeMap::new(),
            joined: 0,
            poison,
            deaths: Vec::new(),
            prompts: BTreeMap::new(),
            streams: BTreeMap::new(),
            failures: BTreeMap::new(),
        };
        (0..workers).for_each(|_| assert!(world.join().is_empty(), "nothing waits yet"));
        world
    }

    /// Gives back what placement has to say of it.
    fn join(&mut self) -> Vec<Action> {
        self.joined += 1;
        let id = WorkerId(self.joined);
        let kv_tokens = self.limits.blocks[0] as usize * self.limits.block_tokens;
        let facts = Facts { model_hash: "m".into(), kv_tokens, context: CONTEXT, ..Facts::default() };
        let mut actions = Vec::new();
        self.placement.worker_joined(id, facts, &mut actions);
        let mut fake = FakeWorker::new(self.limits.block_tokens, self.limits.batch_tokens);
        fake.poison.clone_from(&self.poison);
        let worker = Worker { planner: Planner::new(self.limits.clone()), fake, plans: VecDeque::new() };
        self.workers.insert(id, worker);
        actions
    }

    fn arrive(&mut self, n: u64, prompt: usize, max_tokens: u32) {
        let prompt: Vec<u32> = (0..prompt as u32).map(|i| (i * 7 + n as u32) % fake::VOCABULARY).collect();
        let key = SequenceKey { link: LinkId(1), request: n, attempt: 0, choice: 0 };
        let spec = Spec {
            kind: Kind::Generate,
            max_tokens: max_tokens as usize,
            model_hash: "m".into(),
            request_id: n.to_string(),
            ..Spec::default()
        };
        let tokens = prompt.iter().copied().map(TokenId).collect();
        let sequence = Sequence::new(key, n, Arc::new(spec), tokens, prompt.len());
        let submission = v1::Submission { kind: Kind::Generate.into(), max_tokens, ..Default::default() };
        self.prompts.insert(key, (prompt, submission));
        self.streams.insert(key, Stream::default());
        let mut actions = Vec::new();
        self.placement.submit(vec![sequence], &mut actions);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Run { worker, sequences } => {
                    let mut out = Vec::new();
                    self.workers.get_mut(&worker).unwrap().planner.submit(sequences, &mut out);
                    assert!(out.is_empty());
                }
                Action::Report(output) => {
                    self.failures.insert(output.key, output.message.failure.unwrap().reason());
                }
                Action::Recall { worker } => {
                    // One that has just died has nothing to give back.
                    let Some(recalled) = self.workers.get_mut(&worker) else { continue };
                    let waiting = recalled.planner.let_waiting_go();
                    let mut actions = Vec::new();
                    self.placement.returned(worker, waiting, &mut actions);
                    self.act(actions);
                }
                Action::Cancel { .. } => panic!("nothing is cancelled"),
            }
        }
    }

    /// A worker does the next step that it has, or dies of it.
    fn step(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        while let Some(plan) = worker.planner.plan() {
            worker.plans.push_back(plan);
        }
        let Some(plan) = worker.plans.pop_front() else { return };
        if worker.fake.dies_of(&plan) {
            return self.die(id);
        }
        let mut out = Vec::new();
        worker.planner.complete(worker.fake.step(plan), &mut out).unwrap();
        for output in out {
            assert!(output.message.failure.is_none());
            if output.ends() {
                self.placement.ended(&output.key);
            }
            self.streams.get_mut(&output.key).unwrap().extend(output.message);
        }
    }

    fn die(&mut self, id: WorkerId) {
        let worker = self.workers.remove(&id).unwrap();
        self.deaths.push(worker.planner.load().running);
        let lost = worker.planner.lost();
        let recalls = self.join();
        let mut actions = Vec::new();
        self.placement.worker_left(id, lost, &mut actions);
        self.act(actions);
        self.act(recalls);
    }

    fn ids(&self) -> Vec<WorkerId> {
        self.workers.keys().copied().collect()
    }

    fn drain(&mut self) {
        for _ in 0..10_000 {
            self.ids().into_iter().for_each(|id| self.step(id));
            let busy =
                |w: &Worker| w.planner.load().running + w.planner.load().waiting + w.planner.in_flight();
            if self.workers.values().all(|worker| busy(worker) == 0) {
                return;
            }
        }
        panic!("not at an end");
    }

    /// Everybody but `poison` has the stream it would have had alone.
    fn check(&self, poison: Option<u64>) {
        for (key, (prompt, submission)) in &self.prompts {
            let whole = alone(prompt, submission, 0, CONTEXT);
            if Some(key.request) == poison {
                assert_eq!(self.failures.get(key), Some(&Reason::GaveUp));
                assert!(self.streams[key].begins(&whole));
            } else {
                assert_eq!(self.failures.get(key), None);
                assert_eq!(self.streams[key], whole);
            }
        }
    }
}

fn limits() -> impl Strategy<Value = Limits> {
    (2..9u32, 8..80usize, 1..9usize, 1..3usize).prop_map(|(slots, batch_tokens, block_tokens, depth)| {
        Limits {
            slots,
            batch_tokens,
            block_tokens,
            blocks: vec![1000 / block_tokens as u32],
            context: CONTEXT,
            depth,
            prefix_cache: true,
            drafts: 0,
            always_guess: false,
            max_waiting: usize::MAX,
            max_waiting_tokens: usize::MAX,
        }
    })
}

fn requests() -> impl Strategy<Value = Vec<(usize, u32)>> {
    prop::collection::vec((1..90usize, 1..60u32), 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_that_kills_workers_takes_three_and_fails_alone(
        limits in limits(),
        workers in 1..4usize,
        requests in requests(),
        poison in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
    ) {
        let poison = poison.index(requests.len());
        let (prompt, generated) = requests[poison];
        // Any of the rows that it is going to run.
        let at = at.index(prompt + generated as usize - 1);
        let poison = Poison { request_id: poison.to_string(), at };
        let mut world = World::new(limits, workers, Some(poison.clone()));
        let mut requests = (0..).zip(requests);
        for next in order {
            let ids = world.ids();
            match next.index(ids.len() + 1).checked_sub(1) {
                Some(i) => world.step(ids[i]),
                None => if let Some((n, (prompt, generates))) = requests.next() {
                    world.arrive(n, prompt, generates);
                },
            }
        }
        for (n, (prompt, generates)) in requests {
            world.arrive(n, prompt, generates);
        }
        world.drain();
        world.check(poison.request_id.parse().ok());
        prop_assert_eq!(world.deaths.len(), 3);
    }

    #[test]
    fn nobody_is_blamed_for_workers_that_die_by_themselves(
        limits in limits(),
        workers in 1..4usize,
        requests in requests(),
        // Far more deaths than any sequence would get away with if they counted, with time to go on between.
        deaths in prop::collection::vec((300..600usize, any::<prop::sample::Index>()), 0..20),
    ) {
        let mut world = World::new(limits, workers, None);
        for (n, (prompt, generates)) in (0..).zip(requests) {
            world.arrive(n, prompt, generates);
        }
        for (steps, who) in deaths {
            for _ in 0..steps {
                world.ids().into_iter().for_each(|id| world.step(id));
            }
            world.die(who.get(&world.ids()).to_owned());
        }
        world.drain();
        world.check(None);
    }
}

#[test]
fn what_was_present_at_two_deaths_runs_alone_until_it_is_past_the_place_while_others_keep_theirs() {
    let limits = Limits {
        slots: 4,
        batch_tokens: 64,
        block_tokens: 4,
        blocks: vec![64],
        context: 256,
        depth: 2,
        prefix_cache: true,
        drafts: 0,
        always_guess: false,
        max_waiting: 8,
        max_waiting_tokens: 1000,
    };
    let mut world = World::new(limits, 1, None);
    world.arrive(1, 10, 30);
    world.arrive(2, 20, 30);
    let id = world.ids()[0];
    (0..3).for_each(|_| world.step(id));
    let worker = world.workers.get_mut(&id).unwrap();
    let key = SequenceKey { link: LinkId(1), request: 3, attempt: 0, choice: 0 };
    let spec = Spec { kind: Kind::Generate, max_tokens: 9, request_id: "3".into(), ..Spec::default() };
    let mut suspect = Sequence::new(key, 3, Arc::new(spec), vec![TokenId(5); 6], 6);
    (suspect.deaths, suspect.suspect_until) = (2, 8);
    worker.planner.submit(vec![suspect], &mut Vec::new());
    let mut rows = Vec::new();
    for _ in 0..8 {
        while let Some(plan) = worker.planner.plan() {
            rows.push(plan.run.iter().map(|run| run.tokens).collect::<Vec<_>>());
            worker.plans.push_back(plan);
        }
        let plan = worker.plans.pop_front().unwrap();
        worker.planner.complete(worker.fake.step(plan), &mut Vec::new()).unwrap();
    }
    // What is in flight comes back first; then its six tokens and two more, and one ahead; then all three.
    assert_eq!(rows[..5], [vec![6], vec![1], vec![1], vec![1], vec![1, 1, 1]]);
}
