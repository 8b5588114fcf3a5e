//! Prompts that are echoed, and their log-probabilities.

use super::*;

#[tokio::test]
async fn an_echo_waits_for_its_scores_and_every_choice_gets_them() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let mut request = generation(&["Hey"]);
    (request.echo, request.logprobs, request.n) = (u32::MAX, Some(1), 2);
    let score = |logprob| Logprobs { logprob, ..Logprobs::default() };
    let serve = async {
        let sent = link.submitted().await;
        let range = sent.header.score.unwrap();
        assert_eq!((range.from, range.alternatives, sent.header.kind()), (1, 1, Kind::Generate));
        link.step(vec![SequenceOutput { scored: vec![score(-1.0)], ..sent.text("") }]).await;
        let early = ended(sent.choice(1, "b"), FinishReason::Length);
        let rest =
            SequenceOutput { scored: vec![score(-2.0)], logprobs: vec![score(-3.0)], ..sent.text("a") };
        link.step(vec![early, ended(rest, FinishReason::Length)]).await;
    };
    let client = async {
        let mut deltas = world.engine.start(model.clone(), request).await.unwrap();
        let mut choices = vec![(String::new(), Vec::new()); 2];
        while let Some(batch) = deltas.next().await {
            for delta in batch.unwrap() {
                let (text, logprobs) = &mut choices[delta.choice as usize];
                text.push_str(&delta.text);
                logprobs.extend(delta.tokens.iter().map(|token| token.logprob));
            }
        }
        choices
    };
    let ((), choices) = tokio::join!(serve, client);
    assert_eq!(choices[0], ("Heya".to_owned(), vec![None, Some(-1.0), Some(-2.0), Some(-3.0)]));
    assert_eq!(choices[1], ("Heyb".to_owned(), vec![None, Some(-1.0), Some(-2.0), None]));
}

#[tokio::test]
async fn a_prompt_is_scored_without_generating() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let mut request = generation(&["Hey"]);
    (request.echo, request.logprobs, request.max_tokens) = (u32::MAX, Some(0), 0);
    let serve = async {
        let sent = link.submitted().await;
        assert_eq!(sent.header.kind(), Kind::Score);
        let scored = vec![Logprobs::default(); 2];
        link.step(vec![SequenceOutput { scored, ..ended(sent.text(""), FinishReason::Length) }]).await;
    };
    let client = async { collect(&mut world.engine.start(model, request).await.unwrap(), 1).await };
    let ((), all) = tokio::join!(serve, client);
    assert_eq!(all[0].0, "Hey");
    assert_eq!(all[0].1.unwrap().completion_tokens, 0);
}

#[tokio::test]
async fn the_end_of_a_prompt_is_echoed_with_its_own_scores() {
    let (world, _fake, mut connection, model) = linked(config()).await;
    let mut request = generation(&["hello"]);
    (request.echo, request.logprobs) = (2, Some(0));
    let start = world.engine.start(model.clone(), request);
    let answer = async {
        let submitted = connection.submitted().await;
        assert_eq!(submitted.header.score.unwrap().from, 3);
        let scored = [-1.0, -2.0].map(|logprob| Logprobs { logprob, ..Logprobs::default() });
        let score = Logprobs { logprob: -3.0, ..Logprobs::default() };
        let output = SequenceOutput { scored: scored.into(), logprobs: vec![score], ..submitted.text("!") };
        connection.step(vec![ended(output, FinishReason::Length)]).await;
    };
    let (deltas, ()) = tokio::join!(start, answer);
    let delta = next(&mut deltas.unwrap()).await;
    assert_eq!(delta.text, "lo!");
    let tokens: Vec<_> = delta.tokens.iter().map(|token| (token.echoed, token.logprob)).collect();
    assert_eq!(tokens, [(true, Some(-1.0)), (true, Some(-2.0)), (false, Some(-3.0))]);
}
