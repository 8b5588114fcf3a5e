//! Clients that read more slowly than their sequences run.

use super::*;

#[tokio::test]
async fn a_slow_client_pauses_its_sequence_and_gets_every_token_later() {
    let (world, _fake, mut link, model) = linked(EngineConfig { client_buffer: 2, ..config() }).await;
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    for text in ["b", "c", "d", "lost"] {
        link.step(vec![sent.text(text)]).await;
    }
    assert_eq!(link.cancelled().await.request, sent.request);
    let mut text = String::new();
    while text.len() < 4 {
        text += &next(&mut deltas).await.text;
    }
    assert_eq!(text, "abcd");
    let resumed = link.submitted().await;
    assert_eq!((resumed.attempt, resumed.header.choices[0].generated.len()), (1, 4));
    link.step(vec![ended(resumed.text("e"), FinishReason::Stop)]).await;
    assert_eq!(collect(&mut deltas, 1).await[0].0, "e");
}

#[tokio::test]
async fn a_paused_sequence_goes_on_when_its_client_has_read_half_of_what_was_kept() {
    let (world, _fake, mut link, model) = linked(EngineConfig { client_buffer: 4, ..config() }).await;
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    for text in ["b", "c", "d", "e", "f"] {
        link.step(vec![sent.text(text)]).await;
    }
    assert_eq!(link.cancelled().await.request, sent.request);
    for text in ["a", "b"] {
        assert_eq!(next(&mut deltas).await.text, text);
    }
    // One of four is too little: the next that is heard of is another request.
    let (_deltas, other) = started(&world, &model, generation(&["Ho"]), &mut link, "x").await;
    assert_ne!(other.request, sent.request);
    assert_eq!(next(&mut deltas).await.text, "c");
    let resumed = link.submitted().await;
    assert_eq!((resumed.request, resumed.attempt), (sent.request, 1));
}

#[tokio::test]
async fn a_client_that_stays_slow_is_dropped() {
    let config = EngineConfig { client_buffer: 1, slow_client: Duration::from_millis(10), ..config() };
    let (world, _fake, mut link, model) = linked(config).await;
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    link.step(vec![sent.text("b")]).await;
    link.step(vec![sent.text("c")]).await;
    link.cancelled().await;
    // Nobody reads until the request is given up.
    while !world.engine.shared.table.all().is_empty() {
        tokio::task::yield_now().await;
    }
    let mut last = None;
    while let Some(batch) = deltas.next().await {
        last = Some(batch);
    }
    assert_eq!(last, Some(Err(StreamError::SlowClient)));
}
