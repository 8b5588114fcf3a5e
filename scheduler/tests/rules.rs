//! Single rules of the planner, one scenario each.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

mod fake;

use std::{collections::BTreeMap, sync::Arc};

use fake::FakeWorker;
use volley_proto::v1::{self, Kind, failure::Reason};
use volley_scheduler::core::{
    planner::{Limits, Planner},
    sequence::{Output, Sequence, Spec},
    types::{LinkId, Millis, SequenceKey, TokenId},
};

fn limits() -> Limits {
    Limits {
        slots: 4,
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

/// The `n`-th to arrive.
fn sequence(n: u64, prompt: u32, spec: &Spec) -> Sequence {
    let key = SequenceKey { link: LinkId(1), request: n, attempt: 0, choice: 0 };
    let spec = Spec { request_id: n.to_string(), kind: Kind::Generate, ..spec.clone() };
    let tokens = (0..prompt).map(|i| TokenId((n as u32 * 7 + i) % fake::VOCABULARY)).collect();
    Sequence::new(key, n, Arc::new(spec), tokens, prompt as usize)
}

fn spec(max_tokens: usize) -> Spec {
    Spec { max_tokens, ..Spec::default() }
}

fn submit(planner: &mut Planner, sequence: Sequence) -> Vec<Output> {
    let mut out = Vec::new();
    planner.submit(vec![sequence], &mut out);
    out
}

/// Rows by request in the next step.
fn rows(plan: &v1::StepPlan) -> Vec<u32> {
    plan.run.iter().map(|run| run.tokens).collect()
}

fn reason(out: &[Output]) -> Reason {
    out[0].message.failure.as_ref().unwrap().reason()
}

/// Runs everything to its end; how often each request was admitted, and the outputs.
fn drain(planner: &mut Planner, worker: &mut FakeWorker) -> (BTreeMap<String, u32>, Vec<Output>) {
    let (mut admitted, mut out) = (BTreeMap::new(), Vec::new());
    while let Some(plan) = planner.plan() {
        for sequence in &plan.admit {
            *admitted.entry(sequence.request_id.clone()).or_default() += 1;
        }
        planner.complete(worker.step(plan), &mut out).unwrap();
    }
    (admitted, out)
}

#[test]
fn the_first_in_rank_is_never_preempted() {
    // Together they outgrow the cache, while the older is the cheaper to recompute.
    let limits = Limits { blocks: vec![12], ..limits() };
    let (mut planner, mut worker) = (Planner::new(limits), FakeWorker::new(4, 64));
    submit(&mut planner, sequence(1, 2, &spec(40)));
    submit(&mut planner, sequence(2, 8, &spec(40)));
    let (admitted, _) = drain(&mut planner, &mut worker);
    assert_eq!(admitted["1"], 1);
    assert!(admitted["2"] > 1, "the younger had to give way");
    assert_eq!(planner.totals().preemptions, u64::from(admitted["2"] - 1));
    assert!(planner.totals().wasted_tokens > 0, "and what it had computed was wasted");
}

#[test]
fn of_two_the_lower_priority_is_preempted() {
    let limits = Limits { blocks: vec![12], ..limits() };
    let (mut planner, mut worker) = (Planner::new(limits), FakeWorker::new(4, 64));
    submit(&mut planner, sequence(1, 8, &spec(40)));
    submit(&mut planner, sequence(2, 2, &Spec { priority: 1, ..spec(40) }));
    let (admitted, _) = drain(&mut planner, &mut worker);
    assert_eq!(admitted["2"], 1);
    assert!(admitted["1"] > 1, "priority goes before age");
}

#[test]
fn a_prompt_beside_decodes_gets_a_quarter_of_the_step() {
    let (mut planner, mut worker) = (Planner::new(limits()), FakeWorker::new(4, 64));
    let mut out = Vec::new();
    submit(&mut planner, sequence(1, 100, &spec(9)));
    let mut seen = Vec::new();
    for step in 0..5 {
        if step == 2 {
            submit(&mut planner, sequence(2, 36, &spec(9)));
        }
        let plan = planner.plan().unwrap();
        seen.push(rows(&plan));
        planner.complete(worker.step(plan), &mut out).unwrap();
    }
    assert_eq!(seen, [vec![64], vec![36], vec![1, 16], vec![1, 16], vec![1, 4]]);
}

#[test]
fn the_next_step_is_planned_before_the_last_is_back() {
    let (mut planner, mut worker) = (Planner::new(Limits { depth: 2, ..limits() }), FakeWorker::new(4, 64));
    let mut out = Vec::new();
    // It stops at whatever it draws first: the row in the second step is for nothing.
    let stop_tokens = (0..=fake::VOCABULARY).map(TokenId).collect();
    submit(&mut planner, sequence(1, 3, &Spec { stop_tokens, ..spec(9) }));
    let (first, second) = (planner.plan().unwrap(), planner.plan().unwrap());
    assert_eq!((rows(&first), rows(&second)), (vec![3], vec![1]));
    assert!(planner.plan().is_none(), "no more than two in flight");
    planner.complete(worker.step(first), &mut out).unwrap();
    assert!(out[0].ends());
    assert_eq!(planner.load().free_blocks, 63, "the second step still writes there");
    planner.complete(worker.step(second), &mut out).unwrap();
    assert_eq!(out.len(), 1, "nothing follows the end");
    assert_eq!((planner.load().free_blocks, planner.totals().wasted_tokens), (64, 1));
}

#[test]
fn nothing_is_wasted_on_a_sequence_whose_length_is_known() {
    let (mut planner, mut worker) = (Planner::new(Limits { depth: 2, ..limits() }), FakeWorker::new(4, 64));
    submit(&mut planner, sequence(1, 3, &spec(2)));
    let (first, second) = (planner.plan().unwrap(), planner.plan().unwrap());
    assert!(planner.plan().is_none());
    let mut out = Vec::new();
    planner.complete(worker.step(first), &mut out).unwrap();
    assert!(planner.plan().is_none(), "the second token is the last");
    planner.complete(worker.step(second), &mut out).unwrap();
    assert_eq!((out.len(), out[1].ends(), planner.totals().wasted_tokens), (2, true, 0));
}

#[test]
fn a_cancelled_sequence_frees_its_blocks_within_a_step() {
    let (mut planner, mut worker) = (Planner::new(limits()), FakeWorker::new(4, 64));
    let (first, second) = (sequence(1, 9, &spec(9)), sequence(2, 9, &spec(9)));
    let keys = [first.key, second.key];
    submit(&mut planner, first);
    submit(&mut planner, second);
    let plan = planner.plan().unwrap();
    planner.cancel(&keys[0]);
    assert_eq!(planner.load().free_blocks, 58, "it is in flight");
    let mut out = Vec::new();
    planner.complete(worker.step(plan), &mut out).unwrap();
    assert_eq!(planner.load().free_blocks, 61);
    assert!(out.iter().all(|output| output.key == keys[1]), "a cancelled sequence says nothing");
    planner.cancel(&keys[1]);
    assert_eq!((planner.load().free_blocks, planner.load().running), (64, 0));
}

#[test]
fn a_worker_that_goes_idle_is_told_to_release_its_slots() {
    let (mut planner, mut worker) = (Planner::new(Limits { depth: 2, ..limits() }), FakeWorker::new(4, 64));
    submit(&mut planner, sequence(1, 3, &spec(1)));
    let (admitted, out) = drain(&mut planner, &mut worker);
    assert_eq!((admitted.len(), out.len()), (1, 1));
    assert_eq!((worker.slots(), planner.in_flight()), (0, 0));
    assert!(planner.plan().is_none(), "it is told once");
}

#[test]
fn a_full_queue_refuses_and_says_when_to_return() {
    let mut planner = Planner::new(limits());
    for n in 0..12 {
        assert!(submit(&mut planner, sequence(n, 9, &spec(9))).is_empty(), "4 slots and 8 places");
    }
    let out = submit(&mut planner, sequence(12, 9, &spec(9)));
    assert_eq!(reason(&out), Reason::Overloaded);
    assert!(out[0].message.failure.as_ref().unwrap().retry_after_ms.is_some());
    let moved = Sequence { moved: true, ..sequence(13, 9, &spec(9)) };
    assert!(submit(&mut planner, moved).is_empty(), "what was admitted once isn't refused for load");
    let mut planner = Planner::new(Limits { max_waiting_tokens: 100, ..limits() });
    assert!(submit(&mut planner, sequence(1, 120, &spec(9))).is_empty(), "nobody waits before it");
    assert_eq!(reason(&submit(&mut planner, sequence(2, 9, &spec(9)))), Reason::Overloaded);
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let mut planner = Planner::new(Limits { blocks: vec![10], ..limits() });
    assert!(submit(&mut planner, sequence(1, 30, &spec(11))).is_empty(), "the last token is never cached");
    assert_eq!(reason(&submit(&mut planner, sequence(2, 30, &spec(12)))), Reason::TooLarge);
    assert_eq!(reason(&submit(&mut planner, sequence(3, 300, &spec(1)))), Reason::TooLarge);
}

#[test]
fn a_late_answer_is_no_answer() {
    let (mut planner, mut worker) = (Planner::new(limits()), FakeWorker::new(4, 64));
    let hurried = Spec { deadline: Some(Millis(50)), ..spec(9) };
    submit(&mut planner, sequence(1, 9, &hurried));
    submit(&mut planner, sequence(2, 9, &spec(2)));
    let plan = planner.plan().unwrap();
    submit(&mut planner, sequence(3, 9, &hurried));
    let mut out = Vec::new();
    planner.expire(Millis(50), &mut out);
    assert!(out.is_empty());
    planner.expire(Millis(51), &mut out);
    assert_eq!(out.iter().map(|o| o.key.request).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(reason(&out), Reason::Deadline);
    planner.complete(worker.step(plan), &mut out).unwrap();
    let (_, rest) = drain(&mut planner, &mut worker);
    assert!(rest.iter().all(|output| output.key.request == 2));
    assert_eq!(planner.load().free_blocks, 64);
}

#[test]
fn a_lost_worker_gives_its_sequences_back_with_what_they_have() {
    let (mut planner, mut worker) = (Planner::new(Limits { slots: 1, ..limits() }), FakeWorker::new(4, 64));
    submit(&mut planner, sequence(1, 9, &spec(9)));
    submit(&mut planner, sequence(2, 9, &spec(9)));
    let mut out = Vec::new();
    let plan = planner.plan().unwrap();
    planner.complete(worker.step(plan), &mut out).unwrap();
    planner.plan().unwrap();
    let lost = planner.lost();
    let facts: Vec<_> = lost.iter().map(|s| (s.key.request, s.generated(), s.deaths, s.moved)).collect();
    assert_eq!(facts, [(1, 1, 1, true), (2, 0, 0, true)], "only the one that ran was at the death");
}

#[test]
fn a_worker_that_answers_out_of_step_is_found_out() {
    let (mut planner, mut worker) = (Planner::new(limits()), FakeWorker::new(4, 64));
    submit(&mut planner, sequence(1, 9, &spec(9)));
    let result = worker.step(planner.plan().unwrap());
    let wrong = v1::StepResult { step_id: 7, ..result.clone() };
    assert!(planner.complete(wrong, &mut Vec::new()).is_err());
    assert!(planner.complete(result, &mut Vec::new()).is_ok());
}

#[test]
fn one_bad_sequence_leaves_the_others_alone() {
    let (mut planner, mut worker) = (Planner::new(limits()), FakeWorker::new(4, 64));
    submit(&mut planner, sequence(1, 9, &spec(9)));
    submit(&mut planner, sequence(2, 9, &spec(9)));
    let mut result = worker.step(planner.plan().unwrap());
    result.slots[0] =
        v1::SlotResult { slot: result.slots[0].slot, failure: Some("NaN".into()), ..Default::default() };
    let mut out = Vec::new();
    planner.complete(result, &mut out).unwrap();
    assert_eq!((out[0].key.request, reason(&out)), (1, Reason::Internal));
    let (_, rest) = drain(&mut planner, &mut worker);
    assert!(rest.iter().all(|output| output.key.request == 2) && rest.last().unwrap().ends());
}

#[test]
fn an_embedding_ends_with_its_prompt_and_is_told_once_however_often_it_is_preempted() {
    let limits = Limits { blocks: vec![12], batch_tokens: 7, ..limits() };
    let (mut planner, mut worker) = (Planner::new(limits), FakeWorker::new(4, 64));
    submit(&mut planner, sequence(1, 8, &spec(40)));
    let mut embed = sequence(2, 30, &spec(0));
    embed.spec = Arc::new(Spec { kind: Kind::Embed, ..Spec::clone(&embed.spec) });
    let tokens: Vec<_> = embed.tokens.iter().map(|token| token.0 as f32).collect();
    submit(&mut planner, embed);
    let (_, out) = drain(&mut planner, &mut worker);
    let told: Vec<_> = out.iter().filter(|output| output.key.request == 2).collect();
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0].message.embedding, told[0].ends()), (&tokens, true));
    assert!(told[0].message.tokens.is_empty());
}
