//! The step thread over a tensor-parallel group.

use std::sync::Arc;

use volley_kernels::{DType, Peers};
use volley_proto::v1::{SlotRun, StepPlan};
use volley_twin::{Schedule, Twin};

use super::{
    driver::{Driver, Request, first_step, next},
    exactness::{alone, continues_from_a_copy, request},
};
use crate::{Activations, engine::Epoch, model::Model, testing};

fn model() -> Model {
    testing::wide([DType::Q4_0, DType::Q8_0, DType::Q4_1])
}

fn driver(ranks: usize, activations: Activations) -> Driver {
    Driver::of((testing::cpus(ranks, activations), &model()), None, 16, 96, None)
}

#[test]
fn two_and_four_ranks_give_the_greedy_streams_of_one() {
    let greedy = |number: u32| {
        let mut request = request(number * 4);
        request.generate = 24;
        request
    };
    let requests: Vec<Request> = (0..8).map(greedy).collect();
    let tokens = |ranks| {
        let mut driver = driver(ranks, Activations::F32);
        let outputs = driver.run(&requests);
        driver.stop();
        outputs.into_iter().map(|output| output.tokens).collect::<Vec<_>>()
    };
    let one = tokens(1);
    assert!(one.iter().all(|tokens| tokens.len() == 24));
    assert_eq!((tokens(2), tokens(4)), (one.clone(), one));
}

#[test]
fn two_and_four_ranks_give_every_family_s_greedy_streams_of_one() {
    for (family, model) in testing::wide_families() {
        let requests: Vec<Request> =
            (0..4).map(|number| Request { generate: 16, ..request(number * 4) }).collect();
        let tokens = |ranks| {
            let ranks = testing::cpus(ranks, Activations::F32);
            let mut driver = Driver::of((ranks, &model), None, 16, 96, None);
            let outputs = driver.run(&requests);
            driver.stop();
            outputs.into_iter().map(|output| output.tokens).collect::<Vec<_>>()
        };
        let one = tokens(1);
        assert_eq!((tokens(2), tokens(4)), (one.clone(), one), "{family}");
    }
}

#[test]
fn sequences_of_a_group_together_give_what_each_gives_alone_and_after_a_move() {
    for ranks in [2, 4] {
        let requests: Vec<_> = (0..24).map(request).collect();
        let mut group = driver(ranks, Activations::Int8);
        let together = group.run(&requests);
        let mut another = driver(ranks, Activations::Int8);
        for (request, together) in requests.iter().zip(&together) {
            assert_eq!(&alone(&mut another, request), together, "{ranks} ranks");
        }
        let mut request = Request { generate: 20, ..request(5) };
        request.sequence.score = None;
        let whole = alone(&mut group, &request);
        request.sequence.tokens.extend(&whole.tokens[..8]);
        request.generate = 12;
        assert_eq!(alone(&mut another, &request).tokens, whole.tokens[8..]);
        group.stop();
        another.stop();
    }
}

#[test]
fn sequences_on_a_group_of_deterministic_gpus_together_give_what_each_gives_alone() {
    let start = || {
        let gpu = |peers: Peers| {
            let twin = Twin::new(Schedule::ALL[peers.rank() * 3]);
            testing::cuda(twin, true).in_group(peers)
        };
        Driver::of((testing::ranks(2, gpu), &model()), None, 6, 96, None)
    };
    let requests: Vec<_> = (0..6).map(|number| Request { generate: 8, ..request(number) }).collect();
    let (mut group, mut another) = (start(), start());
    let together = group.run(&requests);
    for (request, together) in requests.iter().zip(&together) {
        assert_eq!(&alone(&mut another, request), together);
    }
    group.stop();
    another.stop();
}

#[test]
fn every_rank_copies_its_part_of_a_block() {
    continues_from_a_copy(driver(4, Activations::Int8));
}

#[test]
fn a_draft_model_guesses_for_a_group_and_changes_no_byte() {
    let model = model();
    let draft = testing::cpus(1, Activations::Int8).remove(0);
    let ranks = testing::cpus(2, Activations::Int8);
    let mut group = Driver::of((ranks, &model), Some((draft, &model)), 16, 96, None);
    let requests: Vec<_> =
        (0..8).map(|number| Request { generate: 16, drafts: 4, ..request(number) }).collect();
    let whole: Vec<_> = requests.iter().map(|request| alone(&mut group, request)).collect();
    let guessed = group.run(&requests);
    assert_eq!(guessed, whole);
    // The draft model is the model itself, whole: nearly as good a guesser as its own ranks.
    assert!(guessed.iter().map(|output| output.drafted.1).sum::<u32>() > 20);
    group.stop();
}

#[test]
fn a_rank_that_fails_ends_the_step_thread_with_its_error() {
    for (broken, reducing) in [(0, false), (1, false), (3, false), (0, true), (2, true)] {
        let twins: Vec<_> = (0..4).map(|_| Arc::new(Twin::new(Schedule::ALL[0]))).collect();
        let gpus = match reducing {
            true => testing::reducing(twins.clone()),
            false => {
                testing::ranks(4, |peers| testing::cuda(twins[peers.rank()].clone(), false).in_group(peers))
            }
        };
        let group = Driver::of((gpus, &model()), None, 2, 96, None);
        let epoch = Epoch { claim: 1, connection: 1 };
        let (mut received, _ended) = group.claim(epoch);
        next(&mut received).unwrap();
        group.send(epoch, first_step());
        next(&mut received).unwrap();
        twins[broken].break_down();
        let run = vec![SlotRun { slot: 0, tokens: 1, drafts: 0 }];
        group.send(epoch, StepPlan { step_id: 2, run, ..Default::default() });
        assert!(received.blocking_recv().is_none(), "no result, and no more connection");
        let error = group.end().unwrap_err().to_string();
        let expected = match broken {
            0 => "the twin has broken down".to_owned(),
            rank => format!("rank {rank}: the twin has broken down"),
        };
        assert_eq!(error, expected);
    }
}
