//! Requests that lose their scheduler, or its worker.

use super::*;

#[tokio::test]
async fn a_stream_survives_the_loss_of_its_scheduler() {
    let (mut world, _fake, mut first, model) = linked(config()).await;
    let mut request = generation(&["Hi"]);
    (request.stop, request.n) = (vec!["xyz".into()], 2);
    let (mut deltas, sent) = started(&world, &model, request, &mut first, "abx").await;
    first.step(vec![ended(sent.choice(1, "q"), FinishReason::Stop)]).await;
    drop(first);
    let mut other = world.scheduler("s2", fake::files()).await;
    let mut second = other.linked().await;
    let moved = second.submitted().await;
    assert_eq!((moved.request, moved.attempt, moved.prompt.as_slice()), (sent.request, 1, &sent.prompt[..]));
    // The finished choice stays; the other goes on from what was received.
    let choices: Vec<_> =
        moved.header.choices.iter().map(|choice| (choice.index, choice.generated.clone())).collect();
    assert_eq!(choices, [(0, vec![97, 98, 120])]);
    second.step(vec![SequenceOutput { attempt: 0, ..moved.text("old") }, moved.text("yzz")]).await;
    let all = collect(&mut deltas, 2).await;
    assert_eq!((all[0].0.as_str(), all[1].0.as_str()), ("abxyz", "q"));
    assert_eq!(all[0].1.unwrap().completion_tokens, 5);
}

#[tokio::test]
async fn a_request_moves_a_few_times_and_then_fails() {
    let (world, mut fake, mut link, model) = linked(EngineConfig { max_moves: 1, ..config() }).await;
    let waits = tokio::spawn({
        let (engine, model) = (world.engine.clone(), model.clone());
        async move { engine.start(model, generation(&["Hi"])).await.err() }
    });
    link.submitted().await;
    drop(link);
    let mut link = fake.linked().await;
    assert_eq!(link.submitted().await.attempt, 1);
    drop(link);
    assert!(matches!(waits.await.unwrap(), Some(StartError::Unavailable { .. })));
}

#[tokio::test]
async fn a_request_that_finds_no_other_scheduler_in_time_fails() {
    let config = EngineConfig { move_deadline: Duration::from_millis(20), ..config() };
    let (mut world, _fake, mut link, model) = linked(config).await;
    let (mut deltas, _) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    world.withdraw("s1");
    drop(link);
    assert_eq!(next(&mut deltas).await.text, "a");
    assert!(matches!(deltas.next().await, Some(Err(StreamError::Lost(_)))));
    let refused = world.engine.start(model, generation(&["Hi"])).await.err();
    assert!(matches!(refused, Some(StartError::Unavailable { .. })));
}

/// What a scheduler says when its last worker dies.
async fn lose_worker(link: &Connection, sent: &Submitted, deaths: u32) {
    link.serves(Vec::new()).await;
    let mut output = failed(sent, failure::Reason::NoWorker);
    output.failure.as_mut().unwrap().deaths = deaths;
    link.step(vec![output]).await;
}

#[tokio::test]
async fn what_a_scheduler_has_no_worker_for_goes_on_with_another_one() {
    let (mut world, _fake, mut first, model) = linked(EngineConfig { max_moves: 0, ..config() }).await;
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut first, "ab").await;
    let mut other = world.scheduler("s2", fake::files()).await;
    let mut second = other.linked().await;
    lose_worker(&first, &sent, 2).await;
    let moved = second.submitted().await;
    assert_eq!((moved.request, moved.attempt, moved.header.deaths), (sent.request, 1, 2));
    assert_eq!(moved.header.choices[0].generated, [97, 98]);
    second.step(vec![ended(moved.text("c"), FinishReason::Stop)]).await;
    assert_eq!(collect(&mut deltas, 1).await[0].0, "abc");
}

#[tokio::test]
async fn a_stream_waits_for_a_worker_to_come_back_and_that_is_no_move() {
    let (world, _fake, mut link, model) = linked(EngineConfig { max_moves: 0, ..config() }).await;
    let (mut deltas, mut sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    for text in ["b", "c"] {
        lose_worker(&link, &sent, 1).await;
        link.serves(vec![fake::card()]).await;
        sent = link.submitted().await;
        link.step(vec![sent.text(text)]).await;
    }
    link.step(vec![ended(sent.text("d"), FinishReason::Stop)]).await;
    assert_eq!(collect(&mut deltas, 1).await[0].0, "abcd");
}

#[tokio::test]
async fn a_stream_whose_last_worker_stays_dead_ends_with_an_error_in_time() {
    let config = EngineConfig { move_deadline: Duration::from_millis(20), ..config() };
    let (world, _fake, mut link, model) = linked(config).await;
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    lose_worker(&link, &sent, 1).await;
    assert_eq!(next(&mut deltas).await.text, "a");
    assert!(matches!(deltas.next().await, Some(Err(StreamError::Lost(_)))));
}

#[tokio::test]
async fn a_scheduler_that_lists_a_model_and_has_no_worker_for_it_is_believed_only_so_often() {
    let (world, _fake, mut link, model) = linked(EngineConfig { max_moves: 2, ..config() }).await;
    let (mut deltas, mut sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    assert_eq!(next(&mut deltas).await.text, "a");
    for _ in 0..2 {
        link.step(vec![failed(&sent, failure::Reason::NoWorker)]).await;
        sent = link.submitted().await;
    }
    link.step(vec![failed(&sent, failure::Reason::NoWorker)]).await;
    assert!(matches!(deltas.next().await, Some(Err(StreamError::Lost(_)))));
}

#[tokio::test]
async fn a_scheduler_that_left_the_members_serves_while_its_link_lives() {
    let (mut world, _fake, mut link, model) = linked(config()).await;
    world.withdraw("s1");
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    link.step(vec![ended(sent.text("b"), FinishReason::Stop)]).await;
    assert_eq!(collect(&mut deltas, 1).await[0].0, "ab");
}

#[tokio::test]
async fn the_samplers_state_moves_with_its_request() {
    let (world, mut fake, mut connection, model) = linked(config()).await;
    let (_deltas, submitted) = started(&world, &model, generation(&["hi"]), &mut connection, "a").await;
    let state = SequenceOutput { mirostat: Some(4.5), ..submitted.text("b") };
    connection.step(vec![state]).await;
    connection.step(vec![SequenceOutput { attempt: 9, mirostat: Some(9.0), ..submitted.text("x") }]).await;
    drop(connection);
    let moved = fake.linked().await.submitted().await;
    let choice = &moved.header.choices[0];
    assert_eq!((choice.generated.as_slice(), choice.mirostat), (&[97, 98][..], Some(4.5)));
}
