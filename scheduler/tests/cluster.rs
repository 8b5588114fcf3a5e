//! The scheduler as its peers see it: real gRPC over the in-memory transport, fake workers.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

mod fake;

use fake::{
    Poison, STOP, alone,
    cluster::{BLOCKS, CONTEXT, Cluster},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use volley_membership::Membership;
use volley_proto::v1::{self, Kind, failure::Reason};

const FREELY: usize = 1 << 20;

fn submission(max_tokens: u32, choices: u32) -> v1::Submission {
    v1::Submission {
        kind: Kind::Generate.into(),
        choices: (0..choices).map(|index| v1::Choice { index, ..Default::default() }).collect(),
        sampling: Some(v1::Sampling { seed: u64::from(max_tokens), ..Default::default() }),
        max_tokens,
        ..Default::default()
    }
}

fn prompt(request: u64) -> Vec<u32> {
    (0..3 + request as u32 * 29).map(|i| (i * 7 + request as u32) % fake::VOCABULARY).collect()
}

#[tokio::test]
async fn requests_stream_through_the_link() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let mut router = cluster.router("s").await;
    let _worker = cluster.worker("w", FREELY).await;
    router.models(|cards| cards.iter().any(|card| card.hash == "hash")).await;
    assert!(scheduler.readiness.ready());
    let submissions: Vec<_> = (0..6)
        .map(|request| v1::Submission {
            stop_tokens: vec![STOP],
            score: (request % 2 == 0).then_some(v1::ScoreRange { from: 1, alternatives: 0 }),
            ..submission(20 * request as u32, 2)
        })
        .collect();
    for (request, submission) in (0..).zip(&submissions) {
        router.submit(request, &prompt(request), submission).await;
    }
    router.ends(12).await;
    for (request, submission) in (0..).zip(&submissions) {
        for choice in 0..2 {
            let whole = alone(&prompt(request), submission, choice, CONTEXT);
            assert_eq!(router.streams[&(request, choice)], whole);
        }
    }
}

#[tokio::test]
async fn a_cancel_frees_the_blocks_within_a_step() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let worker = cluster.worker("w", 3).await;
    scheduler.ready().await;
    let mut router = cluster.router("s").await;
    // With mirostat nothing is guessed: a token a step.
    let sampling = v1::Sampling { mirostat_target: Some(3.0), ..Default::default() };
    let unguessed = v1::Submission { sampling: Some(sampling), ..submission(4000, 1) };
    router.submit(1, &prompt(1), &unguessed).await;
    router.tokens((1, 0), 3).await;
    router.cancel(1).await;
    router.submit(2, &prompt(2), &submission(1, 1)).await;
    router.load(|load| (load.running, load.waiting) == (0, 1)).await;
    // Two steps were under way.
    worker.gate.add_permits(2);
    router.load(|load| (load.running, load.waiting) == (1, 0)).await;
    assert_eq!(worker.steps(), 5);
    worker.gate.add_permits(FREELY);
    router.ends(1).await;
    let load = router.load(|load| load.running == 0).await;
    assert_eq!((load.free_blocks, load.total_blocks), (BLOCKS, BLOCKS));
    assert_eq!(router.streams[&(1, 0)].tokens.len(), 3, "nothing comes after a cancel");
}

#[tokio::test]
async fn a_dropped_link_cancels_its_sequences() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let worker = cluster.worker("w", 5).await;
    scheduler.ready().await;
    let (mut staying, mut leaving) = (cluster.router("s").await, cluster.router("s").await);
    leaving.submit(1, &prompt(1), &submission(4000, 2)).await;
    leaving.tokens((1, 1), 2).await;
    staying.load(|load| load.running == 2).await;
    drop(leaving);
    worker.gate.add_permits(FREELY);
    let load = staying.load(|load| load.running == 0).await;
    assert_eq!(load.free_blocks, BLOCKS);
    assert!(worker.steps() < 4000, "they aren't run to their end");
}

#[tokio::test]
async fn a_stream_survives_the_death_of_its_worker() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let first = cluster.worker("a", 5).await;
    scheduler.ready().await;
    let mut router = cluster.router("s").await;
    let submission = submission(40, 2);
    router.submit(1, &prompt(1), &submission).await;
    router.tokens((1, 1), 2).await;
    let second = cluster.worker("b", FREELY).await;
    scheduler.readiness.workers().wait_for(|&workers| workers == 2).await.unwrap();
    first.die();
    router.ends(2).await;
    for choice in 0..2 {
        assert_eq!(router.streams[&(1, choice)], alone(&prompt(1), &submission, choice, CONTEXT));
    }
    assert!(second.steps() > 0);
}

#[tokio::test(start_paused = true)]
async fn what_waits_begins_at_a_worker_that_joins_and_what_runs_stays_with_all_its_choices() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let first = cluster.worker("a", 3).await;
    scheduler.ready().await;
    let mut router = cluster.router("s").await;
    // With mirostat nothing is guessed: a token a step, so none of them ends.
    let sampling = v1::Sampling { mirostat_target: Some(3.0), ..Default::default() };
    let submission =
        |choices| v1::Submission { sampling: Some(sampling.clone()), ..submission(200, choices) };
    // Of 8 slots the eighth request takes one, for the first of its choices; two requests wait behind.
    let choices = |request| if request == 8 { 2 } else { 1 };
    for request in 1..=10 {
        router.submit(request, &prompt(0), &submission(choices(request))).await;
    }
    router.load(|load| load.running + load.waiting == 11).await;
    first.gate.add_permits(6);
    router.load(|load| (load.running, load.waiting) == (8, 3)).await;
    let second = cluster.worker("b", FREELY).await;
    router.ends(2).await;
    let ended = router.streams.iter().filter(|(_, stream)| stream.finish != Default::default());
    assert_eq!(ended.map(|(key, _)| *key).collect::<Vec<_>>(), [(9, 0), (10, 0)]);
    assert_eq!(first.steps(), 9, "they did not wait for the first worker");
    let steps = second.steps();
    first.gate.add_permits(FREELY);
    router.ends(11).await;
    assert_eq!(second.steps(), steps, "both choices of the eighth ran where it began");
    for request in 1..=10 {
        for choice in 0..choices(request) {
            let whole = alone(&prompt(0), &submission(1), choice, CONTEXT);
            assert_eq!(router.streams[&(request, choice)], whole, "request {request}, choice {choice}");
        }
    }
}

#[tokio::test]
async fn a_worker_that_hangs_up_is_connected_again_and_its_sequences_go_back_meanwhile() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let worker = cluster.worker("w", 4).await;
    scheduler.ready().await;
    let mut router = cluster.router("s").await;
    let submission = submission(40, 1);
    router.submit(1, &prompt(1), &submission).await;
    router.tokens((1, 0), 2).await;
    worker.hang_up();
    worker.gate.add_permits(FREELY);
    router.ends(1).await;
    let handed_back = router.failures.remove(&(1, 0)).unwrap();
    assert_eq!((handed_back.reason(), handed_back.deaths), (Reason::NoWorker, 1));
    // The router waits until the worker is back, and brings what it has.
    scheduler.ready().await;
    let generated = router.streams[&(1, 0)].tokens.clone();
    let choices = vec![v1::Choice { index: 0, generated, ..v1::Choice::default() }];
    let rest = v1::Submission { choices, deaths: handed_back.deaths, ..submission.clone() };
    router.submit(1, &prompt(1), &rest).await;
    router.ends(1).await;
    assert_eq!(router.streams[&(1, 0)], alone(&prompt(1), &submission, 0, CONTEXT));
    let epochs = worker.epochs.lock().unwrap().clone();
    assert_eq!(epochs.len(), 2);
    assert!(epochs[0].claim == epochs[1].claim && epochs[0].connection < epochs[1].connection);
}

#[tokio::test]
async fn the_deaths_that_a_request_brings_count_until_it_is_past_their_place() {
    for (steps, reason, deaths) in [(1, Reason::GaveUp, 0), (20, Reason::NoWorker, 1)] {
        let cluster = Cluster::default();
        let scheduler = cluster.scheduler("s");
        let worker = cluster.worker("w", steps).await;
        scheduler.ready().await;
        let mut router = cluster.router("s").await;
        router.submit(1, &prompt(1), &v1::Submission { deaths: 2, ..submission(40, 1) }).await;
        router.tokens((1, 0), steps).await;
        worker.hang_up();
        router.ends(1).await;
        let failure = &router.failures[&(1, 0)];
        assert_eq!((failure.reason(), failure.deaths), (reason, deaths), "after {steps} steps");
    }
}

#[tokio::test]
async fn a_request_that_kills_its_workers_fails_and_its_neighbours_do_not() {
    let cluster =
        Cluster { poison: Some(Poison { request_id: "poison".into(), at: 40 }), ..Cluster::default() };
    let scheduler = cluster.scheduler("s");
    let mut workers = Vec::new();
    for n in 0..4 {
        workers.push(cluster.worker(&format!("w{n}"), FREELY).await);
    }
    scheduler.readiness.workers().wait_for(|&workers| workers == 4).await.unwrap();
    let mut router = cluster.router("s").await;
    for request in 1..9 {
        router.submit(request, &prompt(request), &submission(200, 1)).await;
    }
    let poison = v1::Submission { request_id: "poison".into(), ..submission(200, 1) };
    router.submit(9, &prompt(1), &poison).await;
    router.ends(9).await;
    assert_eq!(router.failures.keys().collect::<Vec<_>>(), [&(9, 0)]);
    assert_eq!(router.failures[&(9, 0)].reason(), Reason::GaveUp);
    for request in 1..9 {
        assert_eq!(router.streams[&(request, 0)], alone(&prompt(request), &submission(200, 1), 0, CONTEXT));
    }
    let died: usize = workers.iter().map(|worker| worker.deaths()).sum();
    assert_eq!(died, 3, "two, and the one that it ran alone on");
}

#[tokio::test]
async fn a_worker_that_does_not_answer_is_lost() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let silent = cluster.worker("a", 2).await;
    scheduler.ready().await;
    let mut router = cluster.router("s").await;
    router.submit(1, &prompt(1), &submission(40, 1)).await;
    router.tokens((1, 0), 2).await;
    let _other = cluster.worker("b", FREELY).await;
    router.ends(1).await;
    assert_eq!(router.streams[&(1, 0)], alone(&prompt(1), &submission(40, 1), 0, CONTEXT));
    assert_eq!(silent.steps(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_worker_a_request_goes_back_to_its_router_at_once() {
    let cluster = Cluster::default();
    let _scheduler = cluster.scheduler("s");
    let mut router = cluster.router("s").await;
    let before = tokio::time::Instant::now();
    router.submit(1, &prompt(1), &submission(4, 1)).await;
    router.ends(1).await;
    assert_eq!(router.failures[&(1, 0)].reason(), Reason::NoWorker);
    assert_eq!(before.elapsed(), std::time::Duration::ZERO, "no time has to pass for it");
}

#[tokio::test]
async fn what_is_refused_is_counted_by_its_reason() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _local = metrics::set_default_local_recorder(&recorder);
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let mut router = cluster.router("s").await;
    router.submit(1, &prompt(1), &submission(4, 1)).await;
    router.ends(1).await;
    let _worker = cluster.worker("w", FREELY).await;
    scheduler.ready().await;
    for request in 2..=3 {
        router.submit(request, &vec![1; CONTEXT + 1], &submission(4, 1)).await;
    }
    router.ends(3).await;
    let counted = recorder.handle().render();
    for line in [r#"{reason="no_worker"} 1"#, r#"{reason="too_large"} 2"#] {
        assert!(counted.contains(&format!("volley_scheduler_failures_total{line}")), "{line} in {counted}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_or_runs_for_longer_than_its_client_has_time_ends_within_a_second_of_that() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let worker = cluster.worker("w", 3).await; // then no step comes back
    scheduler.ready().await;
    let mut router = cluster.router("s").await;
    let before = tokio::time::Instant::now();
    let more_than_slots = 11;
    for request in 1..=more_than_slots {
        let hurried = v1::Submission { timeout_ms: Some(500), ..submission(4000, 1) };
        router.submit(request, &prompt(1), &hurried).await;
    }
    router.ends(more_than_slots as usize).await;
    let late = before.elapsed();
    assert!(router.failures.values().all(|failure| failure.reason() == Reason::Deadline));
    assert!((500..=1501).contains(&late.as_millis()), "{late:?} of virtual time");
    worker.gate.add_permits(FREELY);
    let load = router.load(|load| load.running + load.waiting == 0).await;
    assert_eq!(load.free_blocks, BLOCKS);
}

#[tokio::test]
async fn one_of_two_schedulers_has_a_worker_and_the_other_takes_over() {
    let cluster = Cluster::default();
    let mut schedulers = vec![cluster.scheduler("s1"), cluster.scheduler("s2")];
    let worker = cluster.worker("w", FREELY).await;
    let mut claims = cluster.membership.claims();
    let owner = claims.wait_for(|claims| claims.contains_key("w")).await.unwrap()["w"].clone();
    let owner = schedulers.iter().position(|s| s.id == owner.scheduler).unwrap();
    let owner = schedulers.swap_remove(owner);
    let other = schedulers.pop().unwrap();
    owner.ready().await;
    assert!(!other.readiness.ready());
    owner.shut_down().await;
    other.ready().await;
    let mut router = cluster.router(&other.id).await;
    router.submit(1, &prompt(1), &submission(10, 1)).await;
    router.ends(1).await;
    assert_eq!(router.streams[&(1, 0)], alone(&prompt(1), &submission(10, 1), 0, CONTEXT));
    let epochs = worker.epochs.lock().unwrap().clone();
    assert!(epochs.len() == 2 && epochs[0].claim < epochs[1].claim, "{epochs:?}");
}

/// Two workers of a first scheduler have a stream each when a second one joins. The first keeps one of them;
/// `finish` lets the other's stream come to its end.
async fn a_second_scheduler_joins(finish: bool) {
    let cluster = Cluster::default();
    let first = cluster.scheduler("s1");
    let workers = [cluster.worker("a", 3).await, cluster.worker("b", 3).await];
    first.readiness.workers().wait_for(|&workers| workers == 2).await.unwrap();
    let mut router = cluster.router("s1").await;
    for request in [1, 2] {
        router.submit(request, &prompt(request), &submission(40, 1)).await;
        router.tokens((request, 0), 2).await;
    }
    let second = cluster.scheduler("s2");
    first.readiness.workers().wait_for(|&workers| workers == 1).await.unwrap();
    assert!(!second.readiness.ready(), "its streams haven't ended, nor is their time over");
    router.submit(3, &prompt(3), &submission(4, 1)).await;
    workers[0].gate.add_permits(FREELY);
    router.ends(if finish { 1 } else { 3 }).await;
    workers[1].gate.add_permits(FREELY);
    router.ends(3).await;
    for (request, tokens) in [(1, 40), (2, 40), (3, 4)] {
        let whole = alone(&prompt(request), &submission(tokens, 1), 0, CONTEXT);
        assert_eq!(router.streams[&(request, 0)], whole, "request {request}");
    }
    second.ready().await;
    let claims = cluster.membership.claims().borrow().clone();
    assert_eq!((claims["a"].scheduler.as_str(), claims["b"].scheduler.as_str()), ("s1", "s2"));
    assert!(first.readiness.ready(), "it keeps its share");
    let mut router = cluster.router("s2").await;
    router.submit(1, &prompt(1), &submission(10, 1)).await;
    router.ends(1).await;
    assert_eq!(router.streams[&(1, 0)], alone(&prompt(1), &submission(10, 1), 0, CONTEXT));
}

#[tokio::test]
async fn a_surplus_worker_finishes_its_streams_and_goes_to_a_scheduler_that_joined() {
    a_second_scheduler_joins(true).await;
}

#[tokio::test(start_paused = true)]
async fn streams_that_take_too_long_for_their_surplus_worker_move() {
    a_second_scheduler_joins(false).await;
}

#[tokio::test]
async fn a_models_files_come_from_a_worker() {
    let cluster = Cluster::default();
    let scheduler = cluster.scheduler("s");
    let _worker = cluster.worker("w", FREELY).await;
    scheduler.ready().await;
    let mut client = cluster.client("s").await;
    let mut files = client.fetch_model(v1::FetchModelRequest { hash: "hash".into() }).await.unwrap();
    let chunk = files.get_mut().message().await.unwrap().unwrap();
    assert_eq!((chunk.name.as_str(), &chunk.data[..]), ("tokenizer.json", &b"hash"[..]));
    let unknown = client.fetch_model(v1::FetchModelRequest { hash: "other".into() }).await;
    assert_eq!(unknown.unwrap_err().code(), tonic::Code::NotFound);
}
