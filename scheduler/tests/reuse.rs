//! What isn't computed twice, one scenario each.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

mod fake;

use std::sync::Arc;

use fake::FakeWorker;
use volley_proto::v1::{self, Kind};
use volley_scheduler::core::{
    planner::{Limits, Planner},
    sequence::{Output, Sequence, Spec},
    types::{LinkId, SequenceKey, TokenId},
};

fn limits() -> Limits {
    Limits {
        slots: 8,
        batch_tokens: 64,
        block_tokens: 4,
        blocks: vec![64],
        context: 256,
        depth: 1,
        prefix_cache: true,
        drafts: 0,
        always_guess: false,
        max_waiting: 8,
        max_waiting_tokens: 1000,
    }
}

fn spec(max_tokens: usize) -> Spec {
    Spec { kind: Kind::Generate, max_tokens, ..Spec::default() }
}

/// The `n`-th request, with one choice: the tokens 0, 1, 2, …
fn sequence(n: u64, prompt: u32, spec: Spec) -> Sequence {
    choice(n, 0, prompt, &Arc::new(spec))
}

fn choice(n: u64, choice: u32, prompt: u32, spec: &Arc<Spec>) -> Sequence {
    let key = SequenceKey { link: LinkId(1), request: n, attempt: 0, choice };
    let tokens = (0..prompt).map(|i| TokenId(i % fake::VOCABULARY)).collect();
    Sequence::new(key, n * 10 + u64::from(choice), spec.clone(), tokens, prompt as usize)
}

/// A planner and its worker.
struct Pair {
    planner: Planner,
    worker: FakeWorker,
    out: Vec<Output>,
}

impl Pair {
    fn new(limits: Limits) -> Self {
        let worker = FakeWorker::new(limits.block_tokens, limits.batch_tokens);
        Self { planner: Planner::new(limits), worker, out: Vec::new() }
    }

    fn submit(&mut self, sequence: Sequence) {
        self.planner.submit(vec![sequence], &mut self.out);
    }

    /// Runs a step; its plan.
    fn step(&mut self) -> v1::StepPlan {
        let plan = self.planner.plan().expect("there is something to run");
        self.planner.complete(self.worker.step(plan.clone()), &mut self.out).unwrap();
        plan
    }

    /// Runs everything to its end; the plans.
    fn drain(&mut self) -> Vec<v1::StepPlan> {
        let mut plans = Vec::new();
        while let Some(plan) = self.planner.plan() {
            self.planner.complete(self.worker.step(plan.clone()), &mut self.out).unwrap();
            plans.push(plan);
        }
        plans
    }

    /// What was reported as cached of a request's first choice.
    fn cached(&self, n: u64) -> u32 {
        let first = self.out.iter().find(|o| o.key.request == n && o.key.choice == 0);
        first.unwrap().message.cached_tokens.unwrap()
    }
}

fn rows(plans: &[v1::StepPlan]) -> u32 {
    plans.iter().flat_map(|plan| &plan.run).map(|run| run.tokens).sum()
}

#[test]
fn what_an_earlier_sequence_computed_is_not_computed_again() {
    let mut pair = Pair::new(limits());
    pair.submit(sequence(1, 18, spec(1)));
    assert_eq!(rows(&pair.drain()), 18);
    for (n, prompt, left) in [(2, 18, 2), (3, 17, 1), (4, 16, 4), (5, 30, 14), (6, 3, 3)] {
        // Whole blocks, and never the last token: what follows it is asked for.
        pair.submit(sequence(n, prompt, spec(1)));
        assert_eq!((rows(&pair.drain()), pair.cached(n)), (left, prompt - left), "{prompt} tokens");
    }
    assert_eq!(pair.planner.totals().cached_tokens, 16 + 16 + 12 + 16);
    assert_eq!(pair.planner.load().free_blocks, 64, "what is cached is free");
}

#[test]
fn a_second_turn_finds_the_first_ones_answer_too() {
    let mut pair = Pair::new(limits());
    let first = sequence(1, 10, spec(15));
    pair.submit(first.clone());
    pair.drain();
    let answer = pair.out.iter().flat_map(|output| output.message.tokens.clone()).map(TokenId);
    let tokens: Vec<_> = first.tokens.into_iter().chain(answer).chain([TokenId(5); 6]).collect();
    let known = tokens.len();
    let mut second = sequence(2, 1, spec(1));
    (second.tokens, second.prompt_tokens) = (tokens, known);
    pair.submit(second);
    assert_eq!((known, rows(&pair.drain())), (31, 7), "24 tokens of the first had run");
}

#[test]
fn what_must_be_computed_is() {
    let mut pair = Pair::new(limits());
    pair.submit(sequence(1, 18, spec(1)));
    pair.drain();
    let score = |from| Some(v1::ScoreRange { from, alternatives: 0 });
    let cases = [
        (Spec { kind: Kind::Embed, ..spec(0) }, 18),
        (Spec { score: score(0), ..spec(1) }, 18),
        (Spec { score: score(9), ..spec(1) }, 10), // position 9 is scored by the row of position 8
        (Spec { score: score(8), ..spec(1) }, 14),
        (Spec { max_cached: Some(0), ..spec(1) }, 18),
        (Spec { max_cached: Some(11), ..spec(1) }, 10),
        (Spec { tenant: "other".into(), ..spec(1) }, 18),
        (Spec { cache_salt: "other".into(), ..spec(1) }, 18),
        (Spec { adapter: "other".into(), ..spec(1) }, 18),
        (Spec { model_hash: "other".into(), ..spec(1) }, 18),
        (spec(1), 2),
    ];
    for (n, (spec, expected)) in (2..).zip(cases) {
        let case = format!("{spec:?}");
        pair.submit(sequence(n, 18, spec));
        assert_eq!(rows(&pair.drain()), expected, "{case}");
        assert_eq!(pair.cached(n), 18 - expected);
    }
    let mut off = Pair::new(Limits { prefix_cache: false, ..limits() });
    for n in 0..2 {
        off.submit(sequence(n, 18, spec(1)));
        assert_eq!((rows(&off.drain()), off.cached(n)), (18, 0));
    }
}

#[test]
fn two_equal_prompts_that_arrive_together_are_computed_once() {
    let mut pair = Pair::new(limits());
    for n in 1..4 {
        pair.submit(sequence(n, 100, spec(1)));
    }
    let plans = pair.drain();
    assert_eq!(rows(&plans), 100 + 4 + 4, "100 tokens once, and what follows the last whole block before 99");
    assert_eq!((pair.cached(1), pair.cached(2), pair.cached(3)), (0, 96, 96));
    let admitted = |plan: &v1::StepPlan| plan.admit.len();
    assert_eq!(plans.iter().map(admitted).collect::<Vec<_>>(), [1, 0, 2, 0]);
}

#[test]
fn nobody_waits_for_a_sequence_that_is_gone() {
    let mut pair = Pair::new(limits());
    let first = sequence(1, 100, spec(1));
    let key = first.key;
    pair.submit(first);
    pair.submit(sequence(2, 100, spec(1)));
    assert_eq!(pair.step().run.len(), 1, "the second waits");
    pair.planner.cancel(&key);
    assert_eq!(rows(&pair.drain()), 100 - 64, "and goes on from where the first was");
    assert_eq!(pair.cached(2), 64);
}

#[test]
fn who_is_ahead_waits_for_nobody_behind() {
    let mut pair = Pair::new(limits());
    pair.submit(sequence(1, 100, spec(1)));
    pair.step();
    pair.submit(sequence(2, 100, Spec { priority: 1, ..spec(1) }));
    let plan = pair.step();
    assert_eq!(plan.admit.len(), 1, "it runs at once");
    assert_eq!(plan.admit[0].computed, 64, "with what is there");
}

#[test]
fn choices_share_their_prompt_and_copy_its_last_block() {
    let mut pair = Pair::new(limits());
    let spec = Arc::new(spec(6));
    pair.planner.submit((0..4).map(|n| choice(1, n, 43, &spec)).collect(), &mut pair.out);
    let first = pair.step();
    assert_eq!((first.run.len(), pair.planner.load().free_blocks), (1, 64 - 11));
    let second = pair.step();
    let computed: Vec<_> = second.admit.iter().map(|admit| admit.computed).collect();
    assert_eq!((computed, second.copy.len()), (vec![42; 3], 3), "all but the last token");
    assert!(second.copy.iter().all(|copy| copy.from == second.copy[0].from));
    assert_eq!(pair.planner.load().free_blocks, 64 - 10 - 4, "ten blocks are everybody's");
    assert_eq!(rows(&[second]), 4);
    pair.drain();
    assert_eq!((pair.cached(1), pair.planner.load().free_blocks), (0, 64));
}

#[test]
fn a_preempted_sequence_goes_on_from_what_is_left_of_it() {
    // Its neighbour, which was there first, needs a few more blocks for a while.
    let mut pair = Pair::new(Limits { blocks: vec![13], ..limits() });
    pair.submit(sequence(1, 30, spec(18)));
    let mut other = sequence(2, 12, Spec { tenant: "other".into(), ..spec(12) });
    other.arrival = 1;
    pair.submit(other);
    let again: Vec<_> = pair.drain().iter().flat_map(|plan| plan.admit.clone()).map(|a| a.computed).collect();
    assert_eq!(pair.planner.totals().preemptions, 1);
    assert!(again[..2] == [0, 0] && again[2] > 0, "{again:?}");
}

#[test]
fn the_least_recently_used_goes_first_and_a_tail_before_its_head() {
    let mut pair = Pair::new(Limits { blocks: vec![10], ..limits() });
    let run = |pair: &mut Pair, n, prompt, tenant: &str| {
        pair.submit(sequence(n, prompt, Spec { tenant: tenant.into(), ..spec(1) }));
        pair.drain();
        pair.cached(n)
    };
    assert_eq!(run(&mut pair, 1, 17, "a"), 0); // Four findable blocks and a rest.
    assert_eq!(run(&mut pair, 2, 17, "b"), 0); // Four more: with the rest of before, nine.
    assert_eq!(run(&mut pair, 3, 17, "a"), 16, "all of it, and now b is the oldest");
    assert_eq!(run(&mut pair, 4, 16, "c"), 0); // Needs four: a blank one, an untouched one, two of b's.
    assert_eq!(pair.planner.totals().evictions, 2);
    assert_eq!(run(&mut pair, 5, 9, "b"), 8, "its head is still there");
    assert_eq!(run(&mut pair, 6, 17, "a"), 12, "of this the tail gave way to the end of the last");
}

#[test]
fn a_block_is_found_only_when_the_step_that_filled_it_is_back() {
    let mut pair = Pair::new(Limits { depth: 2, ..limits() });
    pair.submit(sequence(1, 100, spec(1)));
    let (first, second) = (pair.planner.plan().unwrap(), pair.planner.plan().unwrap());
    pair.submit(sequence(2, 100, spec(1)));
    pair.planner.complete(pair.worker.step(first), &mut pair.out).unwrap();
    assert!(pair.planner.plan().is_none(), "the rest is on its way");
    let mut failed = pair.worker.step(second);
    failed.slots[0] = v1::SlotResult { slot: 0, failure: Some("NaN".into()), ..Default::default() };
    pair.planner.complete(failed, &mut pair.out).unwrap();
    assert_eq!(pair.step().admit[0].computed, 64, "what failed was filled with nothing");
}

/// The scheduler dies, and another claims the worker.
fn take_over(pair: &mut Pair, limits: Limits) {
    pair.planner = Planner::new(limits).holding(&pair.worker.claim()).unwrap();
    pair.out.clear();
}

#[test]
fn the_next_scheduler_finds_what_the_last_one_knew_and_forgets_in_the_same_order() {
    for takeovers in [false, true] {
        let limits = Limits { blocks: vec![10], ..limits() };
        let mut pair = Pair::new(limits.clone());
        let run = |pair: &mut Pair, n, prompt, tenant: &str| {
            pair.submit(sequence(n, prompt, Spec { tenant: tenant.into(), ..spec(1) }));
            pair.drain();
            let cached = pair.cached(n);
            if takeovers {
                take_over(pair, limits.clone());
            }
            cached
        };
        assert_eq!(run(&mut pair, 1, 17, "a"), 0);
        assert_eq!(run(&mut pair, 2, 17, "b"), 0);
        assert_eq!(run(&mut pair, 3, 17, "a"), 16, "all of it, and now b is the oldest");
        assert_eq!(run(&mut pair, 4, 16, "c"), 0); // Takes the tail of b's.
        assert_eq!(run(&mut pair, 5, 9, "b"), 8, "its head is still there");
        assert_eq!(run(&mut pair, 6, 17, "a"), 12, "of this the tail gave way to the end of the last");
        assert_eq!(pair.planner.load().free_blocks, 10);
    }
}

#[test]
fn what_a_step_was_writing_is_not_taken_over_and_what_ran_before_it_is() {
    let mut pair = Pair::new(limits());
    pair.submit(sequence(1, 200, spec(1)));
    pair.step();
    let last = pair.planner.plan().unwrap();
    pair.worker.step(last); // its answer never comes
    take_over(&mut pair, limits());
    pair.submit(sequence(2, 200, spec(1)));
    assert_eq!(pair.step().admit[0].computed, 64);
}

#[test]
fn without_a_prefix_cache_nothing_is_told_or_taken_over_and_what_is_written_is_forgotten() {
    let (on, off) = (limits(), Limits { prefix_cache: false, ..limits() });
    let mut pair = Pair::new(off.clone());
    pair.submit(sequence(1, 33, spec(1)));
    assert!(pair.drain().iter().all(|plan| plan.full.is_empty()));
    take_over(&mut pair, on);
    pair.submit(sequence(2, 33, spec(1)));
    pair.drain();
    assert_eq!(pair.worker.inventory()[0].blocks.len(), 8);
    take_over(&mut pair, off);
    pair.submit(sequence(3, 21, Spec { tenant: "other".into(), ..spec(1) }));
    pair.drain();
    assert_eq!(pair.cached(3), 0);
    let left = pair.worker.inventory()[0].blocks.clone();
    assert_eq!(left, [7, 6], "what the others held was written again, for somebody who names nothing");
}

#[test]
fn placement_learns_of_what_was_taken_over_as_of_what_is_cached() {
    let mut pair = Pair::new(limits());
    pair.submit(sequence(1, 33, spec(1)));
    pair.drain();
    let known = pair.planner.cache_changes();
    take_over(&mut pair, limits());
    let mut taken = pair.planner.cache_changes();
    taken.sort_by_key(|change| known.iter().position(|known| known == change));
    assert_eq!((taken, known.len()), (known, 8));
    assert!(Planner::new(Limits { blocks: vec![4], ..limits() }).holding(&pair.worker.inventory()).is_err());
}
