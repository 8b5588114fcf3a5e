//! One scheduler at a time: who owns the step thread, and how an owner loses it.

use tokio_util::sync::CancellationToken;
use tonic::Code;
use volley_proto::v1::{StepPlan, result_message::Message};

use super::driver::{Driver, Received, first_step, next};
use crate::engine::{Epoch, Job, WAITING_RESULTS};

/// Nothing comes any more, and the connection was told.
fn assert_ended(mut received: Received, ended: &CancellationToken) {
    assert!(received.blocking_recv().is_none());
    futures::executor::block_on(ended.cancelled());
}

#[test]
fn a_new_claim_ends_the_older_connection_after_what_is_in_flight_and_empties_the_slots() {
    let driver = Driver::start("tiny-llama", 2, 64);
    let (old, new) = (Epoch { claim: 1, connection: 9 }, Epoch { claim: 2, connection: 1 });
    let (mut first, first_ended) = driver.claim(old);
    driver.send(old, first_step());
    let (mut second, second_ended) = driver.claim(new);
    driver.send(old, StepPlan { step_id: 2, release: vec![0], ..Default::default() });
    driver.send(new, first_step()); // the very slot that the old one had

    assert!(matches!(next(&mut first), Ok(Message::Hello(_))));
    assert!(matches!(next(&mut first), Ok(Message::Result(result)) if result.step_id == 1));
    assert_eq!(next(&mut first).unwrap_err().code(), Code::Aborted);
    assert_ended(first, &first_ended);

    assert!(matches!(next(&mut second), Ok(Message::Hello(_))));
    match next(&mut second) {
        Ok(Message::Result(result)) => assert_eq!(result.epoch, Some(new.into())),
        other => panic!("{other:?}"),
    }
    for stale in [old, new] {
        let (mut received, ended) = driver.claim(stale);
        assert_eq!(next(&mut received).unwrap_err().code(), Code::FailedPrecondition);
        assert_ended(received, &ended);
    }
    assert!(!second_ended.is_cancelled());
    driver.stop();
}

/// Returns when all that was sent has been done: an answer to a claim comes after it.
fn catch_up(driver: &Driver) {
    let (mut received, _ended) = driver.claim(Epoch { claim: 0, connection: 0 });
    assert_eq!(next(&mut received).unwrap_err().code(), Code::FailedPrecondition);
}

#[test]
fn a_scheduler_that_leaves_or_reads_nothing_loses_the_worker() {
    let driver = Driver::start("tiny-llama", 2, 64);
    let epoch = |connection| Epoch { claim: 1, connection };
    let (_leaving, left) = driver.claim(epoch(1));
    catch_up(&driver);
    assert!(!left.is_cancelled());
    driver.jobs.blocking_send(Job::End { epoch: epoch(1) }).unwrap();
    catch_up(&driver);
    assert!(left.is_cancelled());

    let (_unread, cut_off) = driver.claim(epoch(2));
    for step_id in 1..WAITING_RESULTS as u64 {
        driver.send(epoch(2), StepPlan { step_id, ..Default::default() });
    }
    catch_up(&driver);
    assert!(!cut_off.is_cancelled(), "the hello and these results have room");
    driver.send(epoch(2), StepPlan { step_id: WAITING_RESULTS as u64, ..Default::default() });
    catch_up(&driver);
    assert!(cut_off.is_cancelled());
    driver.stop();
}

#[test]
fn a_broken_plan_ends_its_connection_and_the_next_one_starts_afresh() {
    let driver = Driver::start("tiny-llama", 2, 64);
    for plans in [
        vec![StepPlan { step_id: 1, release: vec![0], ..Default::default() }],
        vec![StepPlan { step_id: 1, ..Default::default() }, StepPlan { step_id: 3, ..Default::default() }],
    ] {
        let epoch = Epoch { claim: 0, connection: plans.len() as u64 };
        let (mut received, ended) = driver.claim(epoch);
        for plan in plans {
            driver.send(epoch, plan);
        }
        let error = std::iter::from_fn(|| Some(next(&mut received))).find_map(Result::err).unwrap();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert_ended(received, &ended);
        driver.send(epoch, StepPlan { step_id: 4, ..Default::default() }); // dropped
    }
    let epoch = Epoch { claim: 1, connection: 1 };
    let (mut received, _ended) = driver.claim(epoch);
    driver.send(epoch, StepPlan { step_id: 9, ..Default::default() });
    assert!(matches!(next(&mut received), Ok(Message::Hello(_))));
    assert!(matches!(next(&mut received), Ok(Message::Result(result)) if result.step_id == 9));
    driver.stop();
}
