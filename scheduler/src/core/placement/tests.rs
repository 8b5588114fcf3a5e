use std::sync::Arc;

use super::*;
use crate::core::{sequence::Spec, types::TokenId};

const A: WorkerId = WorkerId(1);
const B: WorkerId = WorkerId(2);

fn join(placement: &mut Placement, id: WorkerId, class: &str) {
    let facts = Facts {
        model_hash: "m".into(),
        numerics_class: class.into(),
        kv_tokens: 100,
        block_tokens: 4,
        context: 1000,
    };
    placement.worker_joined(id, facts, &mut Vec::new());
}

/// A sequence that wants `tokens` tokens of KV cache.
fn sequence(request: u64, choice: u32, tokens: usize) -> Sequence {
    let key = SequenceKey { link: LinkId(1), request, attempt: 0, choice };
    let spec = Spec { model_hash: "m".into(), max_tokens: 2, ..Spec::default() };
    let arrival = request * 10 + u64::from(choice);
    Sequence::new(key, arrival, Arc::new(spec), vec![TokenId(1); tokens - 1], tokens - 1)
}

fn submit(placement: &mut Placement, request: Vec<Sequence>) -> Vec<Action> {
    let mut out = Vec::new();
    placement.submit(request, &mut out);
    out
}

/// Where sequences go: the worker, and the requests in order.
fn runs(actions: &[Action]) -> Vec<(WorkerId, Vec<u64>)> {
    let run = |action: &Action| match action {
        Action::Run { worker, sequences } => {
            Some((*worker, sequences.iter().map(|s| s.key.request).collect()))
        }
        _ => None,
    };
    actions.iter().filter_map(run).collect()
}

fn reasons(actions: &[Action]) -> Vec<Reason> {
    let reason = |action: &Action| match action {
        Action::Report(output) => output.message.failure.as_ref().map(|failure| failure.reason()),
        _ => None,
    };
    actions.iter().filter_map(reason).collect()
}

#[test]
fn what_waits_is_shared_with_a_worker_that_joins() {
    let mut placement = Placement::default();
    join(&mut placement, A, "");
    let requests: Vec<_> = (1..=4).map(|n| sequence(n, 0, 20)).collect();
    for request in &requests {
        assert_eq!(runs(&submit(&mut placement, vec![request.clone()])).len(), 1);
    }
    let facts = placement.workers[&A].facts.clone();
    let mut out = Vec::new();
    placement.worker_joined(B, facts, &mut out);
    assert!(matches!(&out[..], [Action::Recall { worker: A }]), "{out:?}");

    // 1 runs; 2 was cancelled on its way back.
    let mut out = Vec::new();
    placement.cancel(LinkId(1), 2, None, &mut out);
    out.clear();
    placement.returned(A, requests[1..].to_vec(), &mut out);
    assert_eq!(runs(&out), [(B, vec![3]), (A, vec![4])]);
    assert_eq!((placement.live(), placement.workers[&A].sequences), (3, 2));

    // A choice of what runs at A stays there.
    let choices = vec![sequence(5, 0, 20), sequence(5, 1, 20)];
    let [(at, _)] = runs(&submit(&mut placement, choices.clone()))[..] else { panic!() };
    let mut out = Vec::new();
    placement.returned(at, vec![choices[1].clone()], &mut out);
    assert_eq!(runs(&out), [(at, vec![5])]);
    assert_eq!(placement.live(), 5);

    // What has gone on to B meanwhile isn't A's to give back.
    let mut out = Vec::new();
    placement.returned(A, vec![requests[2].clone()], &mut out);
    assert!(out.is_empty(), "{out:?}");
}

#[test]
fn a_request_goes_where_the_least_is_left_to_do() {
    let mut placement = Placement::default();
    join(&mut placement, A, "");
    join(&mut placement, B, "");
    assert_eq!(runs(&submit(&mut placement, vec![sequence(1, 0, 30)])), [(A, vec![1])]);
    assert_eq!(
        runs(&submit(&mut placement, vec![sequence(2, 0, 20), sequence(2, 1, 20)])),
        [(B, vec![2, 2])],
        "choices stay together"
    );
    assert_eq!(runs(&submit(&mut placement, vec![sequence(3, 0, 20)])), [(A, vec![3])]);
    placement.ended(&sequence(2, 0, 20).key);
    assert_eq!(runs(&submit(&mut placement, vec![sequence(4, 0, 10)])), [(B, vec![4])]);
}

#[test]
fn what_is_computed_already_is_no_work() {
    let mut placement = Placement::default();
    join(&mut placement, A, "");
    join(&mut placement, B, "");
    submit(&mut placement, vec![sequence(1, 0, 80)]);
    submit(&mut placement, vec![sequence(2, 0, 20)]);
    placement.begun(&sequence(1, 0, 80).key);
    assert_eq!(
        runs(&submit(&mut placement, vec![sequence(3, 0, 10)])),
        [(A, vec![3])],
        "B has 19 rows before it"
    );
    placement.begun(&sequence(2, 0, 20).key);
    placement.begun(&sequence(2, 0, 20).key);
    assert_eq!(runs(&submit(&mut placement, vec![sequence(4, 0, 10)])), [(B, vec![4])]);
    (1..5).for_each(|request| placement.ended(&sequence(request, 0, 10).key));
    assert!(placement.workers.values().all(|w| (w.outstanding, w.to_compute, w.sequences) == (0, 0, 0)));
}

#[test]
fn what_finds_no_worker_goes_back_to_its_router_at_once() {
    let mut placement = Placement::default();
    assert_eq!(reasons(&submit(&mut placement, vec![sequence(1, 0, 10)])), [Reason::NoWorker]);
    join(&mut placement, A, "");
    submit(&mut placement, vec![sequence(2, 0, 10), sequence(2, 1, 10)]);
    let ran = Sequence { deaths: 2, ..sequence(2, 1, 10) };
    let mut out = Vec::new();
    placement.worker_left(A, vec![sequence(2, 0, 10), ran], &mut out);
    assert_eq!(reasons(&out), [Reason::NoWorker; 2]);
    for action in &out {
        let Action::Report(output) = action else { panic!("{action:?}") };
        assert_eq!(output.message.failure.as_ref().unwrap().deaths, 2, "the deaths go with the request");
    }
    assert_eq!((placement.live(), placement.moves()), (0, 0));
}

#[test]
fn sequences_of_a_lost_worker_move_within_their_class_if_they_can() {
    let mut placement = Placement::default();
    let c = WorkerId(3);
    for (id, class) in [(A, "avx512"), (B, "avx2"), (c, "avx512")] {
        join(&mut placement, id, class);
    }
    let mut out = submit(&mut placement, vec![sequence(1, 0, 10)]);
    out.extend(submit(&mut placement, vec![sequence(2, 0, 50)]));
    out.extend(submit(&mut placement, vec![sequence(3, 0, 90)]));
    let Some(Action::Run { worker: A, sequences }) = out.first().cloned() else { panic!("{out:?}") };
    let mut lost = sequences;
    lost[0].tokens.push(TokenId(5));
    lost[0].deaths = 1;
    out.clear();
    placement.worker_left(A, lost, &mut out);
    assert_eq!(runs(&out), [(c, vec![1])], "although the other one has less to do");
    assert_eq!(placement.moves(), 1);
}

#[test]
fn a_request_whose_worker_died_of_it_fails() {
    let mut placement = Placement::default();
    join(&mut placement, A, "");
    join(&mut placement, B, "");
    let guilty = Sequence { deaths: GUILTY, ..sequence(1, 1, 10) };
    submit(&mut placement, vec![sequence(1, 0, 10), sequence(1, 1, 10)]);
    let mut out = Vec::new();
    placement.worker_left(A, vec![sequence(1, 0, 10), guilty], &mut out);
    assert_eq!(reasons(&out), [Reason::GaveUp; 2], "another choice of it would take one more worker");
    assert_eq!(placement.live(), 0);
}

#[test]
fn a_cancel_reaches_every_place() {
    let mut placement = Placement::default();
    join(&mut placement, A, "");
    submit(&mut placement, vec![sequence(1, 0, 10), sequence(1, 1, 10)]);
    submit(&mut placement, vec![sequence(2, 0, 10)]);
    let mut out = Vec::new();
    placement.cancel(LinkId(1), 1, Some(1), &mut out);
    let [Action::Cancel { worker: A, keys }] = &out[..] else { panic!("{out:?}") };
    assert_eq!(keys, &[sequence(1, 1, 10).key]);
    out.clear();
    placement.worker_left(A, vec![sequence(1, 1, 10)], &mut out);
    assert!(out.is_empty(), "what was cancelled doesn't move");
    placement.link_lost(LinkId(1), &mut out);
    assert_eq!(placement.live(), 0);
    let again = Sequence { ..sequence(3, 0, 10) };
    join(&mut placement, B, "");
    submit(&mut placement, vec![again]);
    let mut newer = sequence(3, 0, 10);
    newer.key.attempt = 1;
    out = submit(&mut placement, vec![newer]);
    assert!(matches!(&out[..], [Action::Cancel { .. }, Action::Run { .. }]), "an older attempt is over");
}

/// Tells that a worker has the first `blocks` blocks of `sequence`'s prompts.
fn has(placement: &mut Placement, id: WorkerId, blocks: usize) {
    let hashes = sequence(0, 0, 90).hashes(4).to_vec();
    let added: Vec<_> = hashes[..blocks].iter().map(|hash| Change::Added(*hash)).collect();
    placement.cache_changed(id, &added);
}

#[test]
fn a_request_goes_where_its_beginning_is_cached_unless_that_worker_is_full() {
    let mut placement = Placement::default();
    join(&mut placement, A, "");
    join(&mut placement, B, "");
    has(&mut placement, B, 7);
    let to = |placement: &mut Placement, sequence: Sequence| runs(&submit(placement, vec![sequence]))[0].0;
    let workers: Vec<_> = (1..5).map(|request| to(&mut placement, sequence(request, 0, 30))).collect();
    assert_eq!(workers, [B, B, B, A], "there is room for three");
    (1..5).for_each(|request| placement.ended(&sequence(request, 0, 30).key));
    // Where nothing draws them, two go to both.
    let spread = |placement: &mut Placement, spec: Spec| {
        let two = [5, 6].map(|request| Sequence { spec: Arc::new(spec.clone()), ..sequence(request, 0, 30) });
        let workers = two.clone().map(|sequence| to(placement, sequence));
        two.iter().for_each(|sequence| placement.ended(&sequence.key));
        workers[0] != workers[1]
    };
    let spec = Spec::clone(&sequence(5, 0, 30).spec);
    let other = Spec { tenant: "other".into(), ..spec.clone() };
    assert!(spread(&mut placement, other), "another tenant's isn't there");
    let uncached = Spec { max_cached: Some(0), ..spec.clone() };
    assert!(spread(&mut placement, uncached), "it doesn't want any");
    placement.cache_changed(B, &[Change::Removed(sequence(0, 0, 90).hashes(4)[0])]);
    assert!(spread(&mut placement, spec.clone()), "nothing is found without the head");
    has(&mut placement, B, 7);
    assert_eq!(to(&mut placement, sequence(8, 0, 30)), B);
    placement.worker_left(B, vec![], &mut Vec::new());
    join(&mut placement, B, "");
    placement.ended(&sequence(8, 0, 30).key);
    assert!(spread(&mut placement, spec), "it came back with nothing");
}

#[test]
fn a_session_stays_where_it_was_unless_that_worker_is_full() {
    let mut placement = Placement::default();
    join(&mut placement, A, "");
    join(&mut placement, B, "");
    let mut to = |session, request, tokens| {
        let mut sequence = sequence(request, 0, tokens);
        sequence.spec = Arc::new(Spec { session: Some(session), ..Spec::clone(&sequence.spec) });
        runs(&submit(&mut placement, vec![sequence]))[0].0
    };
    assert_eq!((to(7, 1, 10), to(8, 2, 10)), (A, B));
    let workers: Vec<_> = (3..6).map(|request| to(8, request, 40)).collect();
    assert_eq!(workers, [B, B, A], "10 and twice 40 leave no room for another");
    assert_eq!(to(8, 7, 10), A, "where it went last");
}

#[test]
fn what_many_begin_with_comes_to_more_workers() {
    let mut placement = Placement::default();
    join(&mut placement, A, "");
    join(&mut placement, B, "");
    has(&mut placement, A, 5);
    let mut workers = Vec::new();
    for request in 0..20 {
        // One runs on A all the time, and makes whoever comes there wait a little.
        let sequence = sequence(request, 0, 25);
        let actions = submit(&mut placement, vec![sequence.clone()]);
        workers.push(runs(&actions)[0].0);
        placement.begun(&sequence.key);
        if let Some(before) = request.checked_sub(1) {
            placement.ended(&self::sequence(before, 0, 25).key);
        }
    }
    let elsewhere = workers.iter().filter(|&&worker| worker == B).count();
    assert_eq!(elsewhere, 5, "20 blocks' rows for each copy that nobody keeps: {workers:?}");
}
