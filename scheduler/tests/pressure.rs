//! More than a worker can hold: what is computed twice stays bounded, and who is turned away is told when to
//! come back.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

mod fake;

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use fake::FakeWorker;
use proptest::prelude::*;
use volley_proto::v1::Kind;
use volley_scheduler::core::{
    planner::{Limits, Planner, SHARE},
    sequence::{Output, Sequence, Spec},
    types::{LinkId, Millis, SequenceKey, TokenId},
};

const CONTEXT: usize = 400;

fn sequence(n: u64, priority: i32, prompt: usize, generates: usize) -> Sequence {
    let key = SequenceKey { link: LinkId(1), request: n, attempt: 0, choice: 0 };
    let spec = Spec { kind: Kind::Generate, max_tokens: generates, priority, ..Spec::default() };
    let tokens = (0..prompt as u32).map(|i| TokenId((i + n as u32) % fake::VOCABULARY)).collect();
    Sequence::new(key, n, Arc::new(spec), tokens, prompt)
}

fn limits() -> Limits {
    Limits {
        slots: 4,
        batch_tokens: 64,
        block_tokens: 4,
        blocks: vec![100],
        context: CONTEXT,
        depth: 2,
        prefix_cache: true,
        drafts: 0,
        always_guess: false,
        max_waiting: usize::MAX,
        max_waiting_tokens: usize::MAX,
    }
}

/// Tokens that a run computed for the first time and again, and those that nobody had earned.
fn pressed(limits: Limits, arrivals: &[(u32, i32, usize, usize)]) -> (u64, u64, u64) {
    let (mut planner, mut worker) = (Planner::new(limits.clone()), FakeWorker::new(4, limits.batch_tokens));
    let mut arrivals = (1..).zip(arrivals).peekable();
    let (mut pause, mut out, mut plans) = (0, Vec::new(), std::collections::VecDeque::new());
    for _ in 0..200_000 {
        while let Some((n, &(_, priority, prompt, generates))) = arrivals.next_if(|_| pause == 0) {
            planner.submit(vec![sequence(n, priority, prompt, generates)], &mut out);
            pause = arrivals.peek().map_or(0, |(_, next)| next.0);
        }
        pause = pause.saturating_sub(1);
        while let Some(plan) = planner.plan() {
            plans.push_back(plan);
        }
        match plans.pop_front() {
            Some(plan) => planner.complete(worker.step(plan), &mut out).unwrap(),
            None if arrivals.peek().is_none() => {
                let (load, totals) = (planner.load(), planner.totals());
                assert_eq!((load.running, load.waiting), (0, 0), "a deadlock");
                assert!(totals.recomputed_tokens <= totals.wasted_tokens, "it was metered");
                return (totals.first_tokens, totals.recomputed_tokens, totals.overdrawn_tokens);
            }
            None => {}
        }
    }
    panic!("not at an end: {:?}", planner.load());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_computed_twice_is_bounded_under_any_arrivals(
        slots in 2..16u32,
        blocks in 20..100u32,
        depth in 1..3usize,
        batch_tokens in 8..100usize,
        // Some come at once, some late; many are short when they begin and long when they end.
        arrivals in prop::collection::vec((0..40u32, -1..2i32, 1..80usize, 1..300usize), 1..60),
    ) {
        let limits = Limits { slots, blocks: vec![blocks], depth, batch_tokens, ..limits() };
        let (first, again, overdrawn) = pressed(limits, &arrivals);
        let cache = u64::from(blocks) * 4;
        prop_assert!(
            again <= first / SHARE + cache + overdrawn,
            "{again} again, {first} first, {overdrawn} overdrawn"
        );
        prop_assert!(overdrawn <= arrivals.len() as u64 * cache, "{overdrawn}");
    }
}

#[test]
fn many_that_outgrow_the_cache_together_do_not_thrash() {
    // 16 of them begin with 8 tokens and end with 200, where there is room for 400.
    let arrivals: Vec<_> = (0..64).map(|_| (0, 0, 8, 192)).collect();
    let (first, again, overdrawn) = pressed(Limits { slots: 16, ..limits() }, &arrivals);
    assert!(again > 0, "they are preempted");
    assert!(again <= first / SHARE + 400 && overdrawn == 0, "{again} of {first}, {overdrawn}");
}

#[test]
fn clients_that_come_back_when_they_were_told_find_a_place() {
    // A step takes 50 ms; a request 12 of them, and there are 4 slots: 6.7 of them end in a second.
    let mut planner = Planner::new(Limits { max_waiting: 10, depth: 1, blocks: vec![1000], ..limits() });
    let mut worker = FakeWorker::new(4, 64);
    let mut tries = vec![0u32; 100];
    // A steady load first, then all of the rest at once.
    let mut clients: BinaryHeap<_> =
        (0..100).map(|n| Reverse((if n < 50 { n * 160 } else { 8000 }, n))).collect();
    let mut ended = 0;
    for step in 1.. {
        let now = step * 50;
        planner.at(Millis(now));
        while let Some(&Reverse((_, n))) = clients.peek().filter(|client| client.0.0 <= now) {
            clients.pop();
            tries[n as usize] += 1;
            let mut out: Vec<Output> = Vec::new();
            planner.submit(vec![sequence(n, 0, 10, 12)], &mut out);
            if let Some(failure) = out.first().and_then(|output| output.message.failure.as_ref()) {
                // The header has whole seconds.
                clients.push(Reverse((now + failure.retry_after_ms.unwrap().next_multiple_of(1000), n)));
            }
        }
        let mut out = Vec::new();
        if let Some(plan) = planner.plan() {
            planner.complete(worker.step(plan), &mut out).unwrap();
        }
        ended += out.iter().filter(|output| output.ends()).count();
        if ended == 100 {
            // 50 requests are through in 7.5 s if there always is somebody to take a place that is free.
            assert!(now < 8000 + 8500, "{now} ms");
            break;
        }
    }
    assert!(tries.iter().all(|&tries| tries <= 4), "{tries:?}");
    let refused = tries.iter().filter(|&&tries| tries > 1).count();
    assert!((30..=45).contains(&refused), "{refused} were sent away at all");
}
