//! Requests whose time is over.

use super::*;

fn within(time: Duration) -> Generation {
    Generation { deadline: Some(now() + time), ..generation(&["Hi"]) }
}

#[tokio::test]
async fn what_comes_too_late_is_not_even_submitted() {
    let (world, _fake, mut link, model) = linked(config()).await;
    assert_eq!(
        world.engine.start(model.clone(), within(Duration::ZERO)).await.err(),
        Some(StartError::Deadline)
    );
    let (_deltas, sent) = started(&world, &model, generation(&["Bye"]), &mut link, "a").await;
    assert_eq!((sent.prompt.as_slice(), sent.header.timeout_ms), (&[66, 121, 101][..], None));
}

#[tokio::test]
async fn a_scheduler_is_told_how_much_time_is_left_and_says_when_it_is_over() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let hour = Duration::from_secs(3600);
    let (mut deltas, sent) = started(&world, &model, within(hour), &mut link, "a").await;
    let left = sent.header.timeout_ms.unwrap();
    assert!(left <= 3_600_000 && left > 0);
    link.step(vec![failed(&sent, failure::Reason::Deadline)]).await;
    assert_eq!(next(&mut deltas).await.text, "a");
    assert_eq!(deltas.next().await, Some(Err(StreamError::Deadline)));
    link.cancelled().await;
}

#[tokio::test]
async fn what_waits_for_a_worker_waits_no_longer_than_its_client() {
    let day = Duration::from_secs(86_400);
    let (mut world, _fake, mut link, model) = linked(EngineConfig { move_deadline: day, ..config() }).await;
    let (mut deltas, _) = started(&world, &model, within(day / 24), &mut link, "a").await;
    world.withdraw("s1");
    drop(link);
    assert_eq!(next(&mut deltas).await.text, "a");
    time::pause(); // from here on, time passes as soon as nobody has anything to do
    assert_eq!(deltas.next().await, Some(Err(StreamError::Deadline)));
}
