//! The planner's promises, under any arrival pattern: every request gets the stream it would get alone, every
//! request ends, and nothing is leaked. The worker is a fake that checks each plan.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

mod fake;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use fake::{FakeWorker, STOP, Stream, alone};
use proptest::prelude::*;
use volley_proto::v1::{self, Kind, failure::Reason};
use volley_scheduler::core::{
    planner::{Limits, Planner},
    sequence::{Output, Sequence, Spec},
    types::{LinkId, SequenceKey, TokenId},
};

const CONTEXT: usize = 48;

#[derive(Clone, Debug)]
struct Request {
    prompt: Vec<u32>,
    submission: v1::Submission,
    choices: u32,
    /// Tokens that the router already has.
    received: usize,
}

#[derive(Clone, Debug)]
enum Event {
    Arrive(Box<Request>),
    Cancel(usize),
    Plan,
    Work,
    Answer,
    Lose,
    /// The scheduler dies. The worker has run some of what was on its way to it; then another claims it.
    TakeOver(usize),
}

/// A planner with its worker and the wire between them.
struct World {
    limits: Limits,
    planner: Planner,
    worker: FakeWorker,
    plans: VecDeque<v1::StepPlan>,
    results: VecDeque<v1::StepResult>,
    requests: Vec<Request>,
    streams: BTreeMap<SequenceKey, Stream>,
    failures: BTreeMap<SequenceKey, Reason>,
    cancelled: Vec<usize>,
    arrivals: u64,
    steps: usize,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self {
            planner: Planner::new(limits.clone()),
            worker: FakeWorker::new(limits.block_tokens, limits.batch_tokens),
            limits,
            plans: VecDeque::new(),
            results: VecDeque::new(),
            requests: Vec::new(),
            streams: BTreeMap::new(),
            failures: BTreeMap::new(),
            cancelled: Vec::new(),
            arrivals: 0,
            steps: 0,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(request) => self.arrive(*request),
            Event::Cancel(nth) => {
                if self.requests.is_empty() {
                    return;
                }
                let nth = nth % self.requests.len();
                self.cancelled.push(nth);
                for choice in 0..self.requests[nth].choices {
                    self.planner.cancel(&key(nth, choice));
                }
            }
            Event::Plan => {
                if let Some(plan) = self.planner.plan() {
                    assert!(self.planner.in_flight() <= self.limits.depth);
                    self.plans.push_back(plan);
                    self.steps += 1;
                }
            }
            Event::Work => {
                let result = self.plans.pop_front().map(|plan| self.worker.step(plan));
                self.results.extend(result);
            }
            Event::Answer => {
                if let Some(result) = self.results.pop_front() {
                    let mut out = Vec::new();
                    self.planner.complete(result, &mut out).unwrap();
                    self.take_in(out);
                }
            }
            Event::Lose => {
                let lost = std::mem::replace(&mut self.planner, Planner::new(self.limits.clone())).lost();
                self.worker = FakeWorker::new(self.limits.block_tokens, self.limits.batch_tokens);
                self.plans.clear();
                self.results.clear();
                let mut out = Vec::new();
                self.planner.submit(lost, &mut out);
                self.take_in(out);
            }
            Event::TakeOver(ran) => {
                self.plans.drain(..ran.min(self.plans.len())).for_each(|plan| _ = self.worker.step(plan));
                self.plans.clear();
                self.results.clear();
                let next = Planner::new(self.limits.clone()).holding(&self.worker.claim()).unwrap();
                let left = std::mem::replace(&mut self.planner, next).let_go();
                let mut out = Vec::new();
                self.planner.submit(left, &mut out);
                self.take_in(out);
            }
        }
        let load = self.planner.load();
        assert!(load.running <= self.limits.slots as usize && load.free_blocks <= load.total_blocks);
    }

    fn arrive(&mut self, request: Request) {
        let nth = self.requests.len();
        let s = &request.submission;
        let spec = Arc::new(Spec {
            kind: s.kind(),
            sampling: s.sampling.clone().unwrap(),
            max_tokens: s.max_tokens as usize,
            min_tokens: s.min_tokens as usize,
            stop_tokens: s.stop_tokens.iter().copied().map(TokenId).collect(),
            score: s.score,
            priority: s.priority,
            tenant: s.tenant.clone(),
            grammar: s.grammar.clone(),
            max_cached: s.max_cached_tokens.map(|max| max as usize),
            ..Spec::default()
        });
        let sequences = (0..request.choices).map(|choice| {
            let whole = alone(&request.prompt, s, choice, CONTEXT);
            // A moved request never has its last token: its finish would have come with it.
            let received = request.received.min(whole.tokens.len().saturating_sub(1));
            let stream = Stream {
                tokens: whole.tokens[..received].to_vec(),
                logprobs: whole.logprobs[..received.min(whole.logprobs.len())].to_vec(),
                states: whole.states[..received.min(whole.states.len())].to_vec(),
                ..Default::default()
            };
            let tokens = request.prompt.iter().chain(&stream.tokens).copied().map(TokenId).collect();
            let state = stream.states.last().copied();
            self.streams.insert(key(nth, choice), stream);
            self.arrivals += 1;
            let (key, prompt) = (key(nth, choice), request.prompt.len());
            let mut sequence = Sequence::new(key, self.arrivals, spec.clone(), tokens, prompt);
            sequence.mirostat = state;
            sequence
        });
        let sequences: Vec<_> = sequences.collect();
        self.requests.push(request);
        let mut out = Vec::new();
        self.planner.submit(sequences, &mut out);
        self.take_in(out);
    }

    fn take_in(&mut self, out: Vec<Output>) {
        for output in out {
            match output.message.failure {
                Some(failure) => drop(self.failures.insert(output.key, failure.reason())),
                None => self.streams.get_mut(&output.key).unwrap().extend(output.message),
            }
        }
    }

    /// Lets everything come to its end, within a bound: whoever is first in rank runs at least in every
    /// other round.
    fn drain(&mut self) {
        let rows = |r: &Request| r.choices as usize * (r.prompt.len() + r.submission.max_tokens as usize);
        let bound = 8 + 3 * self.requests.iter().map(rows).sum::<usize>();
        for _ in 0..bound {
            for _ in 0..self.limits.depth {
                self.happen(Event::Plan);
            }
            self.happen(Event::Work);
            self.happen(Event::Answer);
            let load = self.planner.load();
            if load.running + load.waiting + self.planner.in_flight() + self.worker.slots() == 0 {
                return;
            }
        }
        panic!("not at an end after {bound} rounds: {:?}", self.planner.load());
    }

    fn check(&self) {
        let load = self.planner.load();
        assert_eq!((load.waiting_tokens, load.free_blocks), (0, load.total_blocks), "all blocks are free");
        for (nth, request) in self.requests.iter().enumerate() {
            for choice in 0..request.choices {
                let key = key(nth, choice);
                let (stream, whole) =
                    (&self.streams[&key], alone(&request.prompt, &request.submission, choice, CONTEXT));
                let fits = whole_kv(request) <= self.limits.block_tokens * load.total_blocks;
                match self.failures.get(&key) {
                    Some(reason) => assert_eq!((reason, fits), (&Reason::TooLarge, false)),
                    None if self.cancelled.contains(&nth) => assert!(stream.begins(&whole)),
                    None => assert_eq!(stream, &whole),
                }
            }
        }
    }
}

fn whole_kv(request: &Request) -> usize {
    let prompt = request.prompt.len();
    (CONTEXT.min(prompt + request.submission.max_tokens as usize) - 1).max(prompt)
}

fn key(request: usize, choice: u32) -> SequenceKey {
    SequenceKey { link: LinkId(1), request: request as u64, attempt: 0, choice }
}

fn request() -> impl Strategy<Value = Request> {
    // Most begin alike.
    let own = prop::collection::vec(0..fake::VOCABULARY, 1..12);
    let prompt = (0..14u32, own).prop_map(|(common, own)| (0..common).chain(own).collect::<Vec<_>>());
    let lengths = (0..30u32, 0..6u32, 1..3u32, 0..6usize);
    let flags = (any::<bool>(), prop::option::of(0..8u32), any::<bool>(), -1..2i32, any::<u64>());
    let flags = (flags, prop::option::weighted(0.3, Just(3.0)), any::<bool>(), "[ab]");
    (prompt, lengths, flags).prop_map(|(prompt, lengths, flags)| {
        let (max_tokens, min_tokens, choices, received) = lengths;
        let ((stops, score, logprobs, priority, seed), mirostat_target, guided, tenant) = flags;
        let logprobs = logprobs.then_some(0);
        let sampling = v1::Sampling { seed, logprobs, mirostat_target, ..Default::default() };
        let submission = v1::Submission {
            kind: Kind::Generate.into(),
            sampling: Some(sampling),
            max_tokens,
            min_tokens,
            grammar: guided.then(String::new),
            max_cached_tokens: (seed % 8 == 1).then_some(seed as u32 / 8 % 16),
            stop_tokens: if stops { vec![STOP, STOP + 9, STOP + 31] } else { vec![] },
            score: score.map(|from| v1::ScoreRange { from, alternatives: 0 }),
            priority,
            tenant,
            ..Default::default()
        };
        // Scores of a moved request would come again from the start: the router narrows the range.
        let received = if submission.score.is_some() { 0 } else { received };
        Request { prompt, submission, choices, received }
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => request().prop_map(|request| Event::Arrive(Box::new(request))),
        1 => any::<usize>().prop_map(Event::Cancel),
        8 => Just(Event::Plan),
        8 => Just(Event::Work),
        8 => Just(Event::Answer),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let cache = prop::bool::weighted(0.9);
    (1..7u32, 1..40usize, 1..9usize, 1..24u32, 1..3usize, 1..3usize, cache, 0..9usize).prop_map(
        |(slots, batch_tokens, block_tokens, blocks, groups, depth, prefix_cache, drafts)| Limits {
            slots,
            batch_tokens,
            block_tokens,
            // The second group has more blocks than the first: the first one is the bound.
            blocks: (0..groups as u32).map(|group| blocks + group).collect(),
            context: CONTEXT,
            depth,
            prefix_cache,
            drafts,
            always_guess: false,
            max_waiting: usize::MAX,
            max_waiting_tokens: usize::MAX,
        },
    )
}

fn run(limits: Limits, events: Vec<Event>) {
    let mut world = World::new(limits);
    for event in events {
        world.happen(event);
    }
    world.drain();
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None, // the shrunk case is printed; make it a test if it is worth keeping
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_request_gets_the_stream_it_would_get_alone(
        limits in limits(),
        events in prop::collection::vec(event(), 1..120),
    ) {
        run(limits, events);
    }

    #[test]
    fn streams_survive_the_loss_of_their_worker(
        limits in limits(),
        events in prop::collection::vec(prop_oneof![20 => event(), 1 => Just(Event::Lose)], 1..120),
    ) {
        run(limits, events);
    }

    /// The worker reads its whole context back from the cache for each token.
    #[test]
    fn what_is_found_after_a_takeover_holds_the_right_tokens(
        limits in limits(),
        events in prop::collection::vec(
            prop_oneof![12 => event(), 1 => (0..3usize).prop_map(Event::TakeOver)],
            1..120,
        ),
    ) {
        run(limits, events);
    }
}
