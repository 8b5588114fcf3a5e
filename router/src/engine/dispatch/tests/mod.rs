mod deadlines;
mod echo;
mod fake;
mod moves;
mod slow;

use futures::StreamExt;
use volley_proto::v1::{
    Failure, FinishReason, Kind, Logprobs, SequenceOutput, failure, router_message::Message as Up,
};

use self::fake::{Connection, Fake, Submitted, World};
use super::*;
use crate::{
    fixture,
    generation::{Finish, Prompt, Reason, Sampling, Task},
};

const END: u32 = fixture::WORDS + 1;

fn config() -> EngineConfig {
    EngineConfig { router_id: "router-1".into(), ..EngineConfig::default() }
}

/// One scheduler, linked, and the model it serves.
async fn linked(config: EngineConfig) -> (World, Fake, Connection, Arc<Model>) {
    let mut world = World::new(config);
    let mut fake = world.scheduler("s1", fake::files()).await;
    let connection = fake.linked().await;
    let model = served(&world).await;
    (world, fake, connection, model)
}

/// Waits until the model is there.
async fn served(world: &World) -> Arc<Model> {
    let mut changed = world.engine.shared.cluster.changed();
    loop {
        changed.mark_unchanged();
        match world.engine.model("tiny").await {
            Ok(model) => return model,
            Err(ModelError::NotReady { .. }) => changed.changed().await.unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn generation(prompts: &[&str]) -> Generation {
    Generation {
        id: "cmpl-1".into(),
        task: Task::Generate,
        prompts: prompts
            .iter()
            .map(|text| Prompt { tokens: text.bytes().map(u32::from).collect() })
            .collect(),
        n: 1,
        max_tokens: 100,
        stop: Vec::new(),
        include_stop: true,
        ignore_eos: false,
        min_tokens: 0,
        echo: 0,
        logprobs: None,
        grammar: None,
        prediction: Vec::new(),
        shown: Vec::new(),
        sampling: Sampling { seed: 7, ..Sampling::default() },
        tenant: "t".into(),
        priority: 0,
        session: None,
        cache_salt: String::new(),
        max_cached_tokens: None,
        traceparent: "00-trace".into(),
        deadline: None,
    }
}

fn ended(mut output: SequenceOutput, reason: FinishReason) -> SequenceOutput {
    if reason == FinishReason::Stop {
        output.tokens.push(END);
    }
    SequenceOutput { finish: reason.into(), ..output }
}

fn failed(submitted: &Submitted, reason: failure::Reason) -> SequenceOutput {
    let failure =
        Failure { reason: reason.into(), message: "no".into(), retry_after_ms: Some(2500), deaths: 0 };
    SequenceOutput { failure: Some(failure), ..submitted.text("") }
}

/// Starts a generation; the scheduler's side meanwhile answers the submission with `first`.
async fn started(
    world: &World,
    model: &Arc<Model>,
    generation: Generation,
    connection: &mut Connection,
    first: &str,
) -> (Deltas, Submitted) {
    let start = world.engine.start(model.clone(), generation);
    let answer = async {
        let submitted = connection.submitted().await;
        connection.step(vec![submitted.text(first)]).await;
        submitted
    };
    let (deltas, submitted) = tokio::join!(start, answer);
    (deltas.unwrap(), submitted)
}

async fn next(deltas: &mut Deltas) -> Delta {
    let mut batch = deltas.next().await.unwrap().unwrap();
    assert_eq!(batch.len(), 1);
    batch.remove(0)
}

/// The joined text of each choice, and its finish.
async fn collect(deltas: &mut Deltas, choices: usize) -> Vec<(String, Option<Finish>)> {
    let mut all = vec![(String::new(), None); choices];
    while let Some(batch) = deltas.next().await {
        for delta in batch.unwrap() {
            let (text, finish) = &mut all[delta.choice as usize];
            assert!(finish.is_none());
            text.push_str(&delta.text);
            *finish = delta.finish;
        }
    }
    all
}

#[tokio::test]
async fn a_stream_carries_each_step_and_then_the_finish() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    assert_eq!(sent.prompt, [72, 105]);
    assert_eq!((sent.header.model_hash.as_str(), sent.header.tenant.as_str()), (&*model.card.hash, "t"));
    assert_eq!(
        (sent.header.stop_tokens.as_slice(), sent.header.traceparent.as_str()),
        (&[END][..], "00-trace")
    );
    assert_eq!(next(&mut deltas).await.text, "a");
    link.step(vec![SequenceOutput { cached_tokens: Some(1), ..sent.text("b") }]).await;
    assert_eq!(next(&mut deltas).await.text, "b");
    link.step(vec![ended(sent.text("c"), FinishReason::Length)]).await;
    let last = next(&mut deltas).await;
    let finish = Finish { reason: Reason::Length, completion_tokens: 3, cached_tokens: 1, stop: None };
    assert_eq!((last.text.as_str(), last.finish), ("c", Some(finish)));
    assert!(deltas.next().await.is_none());
    assert!(world.engine.shared.table.all().is_empty());
}

#[tokio::test]
async fn an_embedding_comes_whole_with_the_end_of_its_prompt() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let embed = Generation { task: Task::Embed, max_tokens: 0, ..generation(&["Hi"]) };
    let start = world.engine.start(model.clone(), embed);
    let answer = async {
        let sent = link.submitted().await;
        assert_eq!((sent.header.kind(), sent.header.choices.len()), (Kind::Embed, 1));
        let output = SequenceOutput { embedding: vec![0.5, -2.0], ..sent.text("") };
        link.step(vec![ended(output, FinishReason::Length)]).await;
    };
    let (deltas, ()) = tokio::join!(start, answer);
    let mut deltas = deltas.unwrap();
    let delta = next(&mut deltas).await;
    assert_eq!((delta.embedding.as_slice(), delta.text.as_str()), (&[0.5, -2.0][..], ""));
    assert!(delta.finish.is_some() && deltas.next().await.is_none());
    assert!(world.engine.shared.table.all().is_empty());
}

#[tokio::test]
async fn dropping_the_stream_cancels_at_the_scheduler() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let (deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    drop(deltas);
    let cancel = link.cancelled().await;
    assert_eq!((cancel.request, cancel.choice), (sent.request, None));
    assert!(world.engine.shared.table.all().is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_cancels_too() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let sent = tokio::select! {
        _ = world.engine.start(model.clone(), generation(&["Hi"])) => panic!("started without an output"),
        sent = link.submitted() => sent,
    };
    assert_eq!(link.cancelled().await.request, sent.request);
}

#[tokio::test]
async fn a_stop_string_ends_the_stream_and_cancels_its_sequence_at_once() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let mut request = generation(&["Hi"]);
    (request.stop, request.n) = (vec!["end".into()], 2);
    let (mut deltas, sent) = started(&world, &model, request, &mut link, "an e").await;
    link.step(vec![sent.text("nd!"), sent.choice(1, "en")]).await;
    let cancel = link.cancelled().await;
    assert_eq!((cancel.request, cancel.choice), (sent.request, Some(0)));
    link.step(vec![sent.text("late"), ended(sent.choice(1, "."), FinishReason::Length)]).await;
    let all = collect(&mut deltas, 2).await;
    assert_eq!((all[0].0.as_str(), all[1].0.as_str()), ("an end", "en."));
    let finish = all[0].1.unwrap();
    assert_eq!((finish.reason, finish.completion_tokens), (Reason::Stop, 6));
    assert_eq!(all[1].1.unwrap().reason, Reason::Length);
}

#[tokio::test]
async fn every_prompt_is_a_request_with_its_own_choices() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let mut request = generation(&["A", "B"]);
    request.n = 2;
    let serve = async {
        let (a, b) = (link.submitted().await, link.submitted().await);
        assert_eq!((a.prompt.as_slice(), b.prompt.as_slice()), (&[65][..], &[66][..]));
        let indices: Vec<u32> = b.header.choices.iter().map(|choice| choice.index).collect();
        assert_eq!(indices, [0, 1]);
        let outputs = [b.choice(1, "b1"), a.choice(0, "a0"), b.choice(0, "b0"), a.choice(1, "a1")];
        link.step(outputs.map(|output| ended(output, FinishReason::Length)).to_vec()).await;
    };
    let client = async { collect(&mut world.engine.start(model, request).await.unwrap(), 4).await };
    let ((), all) = tokio::join!(serve, client);
    assert_eq!(all.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["a0", "a1", "b0", "b1"]);
}

#[tokio::test]
async fn a_refusal_says_why_and_when_to_come_back() {
    let (world, _fake, mut link, model) = linked(config()).await;
    for (reason, error) in [
        (
            failure::Reason::Overloaded,
            StartError::Overloaded { message: "no".into(), retry_after: Duration::from_millis(2500) },
        ),
        (failure::Reason::TooLarge, StartError::TooLarge("no".into())),
        (failure::Reason::Deadline, StartError::Deadline),
        (failure::Reason::Internal, StartError::Internal("no".into())),
    ] {
        let refuse = async {
            let sent = link.submitted().await;
            link.step(vec![failed(&sent, reason)]).await;
            link.cancelled().await;
        };
        let (started, ()) = tokio::join!(world.engine.start(model.clone(), generation(&["Hi"])), refuse);
        assert_eq!(started.err(), Some(error));
    }
}

#[tokio::test]
async fn a_failure_after_the_first_token_ends_the_stream_with_an_error() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    link.step(vec![failed(&sent, failure::Reason::Internal)]).await;
    assert_eq!(next(&mut deltas).await.text, "a");
    assert_eq!(deltas.next().await, Some(Err(StreamError::Internal("no".into()))));
    assert_eq!(deltas.next().await, None);
}

#[tokio::test]
async fn every_token_of_a_step_has_its_own_delta() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    link.step(vec![ended(sent.text("bcd"), FinishReason::Length)]).await;
    assert_eq!(next(&mut deltas).await.text, "a");
    let batch = deltas.next().await.unwrap().unwrap();
    assert_eq!(batch.iter().map(|delta| &*delta.text).collect::<Vec<_>>(), ["b", "c", "d"]);
    assert_eq!(batch.iter().map(|delta| delta.finish.is_some()).collect::<Vec<_>>(), [false, false, true]);
}

#[tokio::test]
async fn a_cancel_overtakes_a_long_prompt_and_the_rest_of_it_is_not_sent() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let mut request = generation(&[]);
    request.prompts = vec![Prompt { tokens: vec![120; 10_000_000] }];
    let mut sent = 0;
    tokio::select! {
        _ = world.engine.start(model.clone(), request) => panic!("started without an output"),
        first = link.next() => sent += chunk(first).unwrap(),
    }
    while let Some(tokens) = chunk(link.next().await) {
        sent += tokens;
    }
    assert!(sent < 9_000_000, "{sent} tokens were sent");
    // The link goes on with the next request.
    let (mut deltas, sent) = started(&world, &model, generation(&["Hi"]), &mut link, "a").await;
    link.step(vec![ended(sent.text(""), FinishReason::Stop)]).await;
    assert_eq!(collect(&mut deltas, 1).await[0].0, "a");
}

/// The tokens of a chunk of a prompt; `None` for a cancel.
fn chunk(message: Up) -> Option<usize> {
    match message {
        Up::Submit(submit) => Some(submit.prompt.len()),
        Up::Cancel(_) => None,
        Up::Hello(_) => panic!("a second hello"),
    }
}

#[tokio::test]
async fn a_long_prompt_goes_in_chunks() {
    let (world, _fake, mut link, model) = linked(config()).await;
    let mut request = generation(&[]);
    request.prompts = vec![Prompt { tokens: (0..40_000).map(|i| i % 256).collect() }];
    let prompt = request.prompts[0].tokens.clone();
    let (_deltas, sent) = started(&world, &model, request, &mut link, "a").await;
    assert_eq!((sent.chunks, sent.prompt), (3, prompt));
}

#[tokio::test]
async fn nothing_to_generate_needs_no_scheduler() {
    let (world, _fake, _link, model) = linked(config()).await;
    let mut request = generation(&["A", "B"]);
    (request.echo, request.max_tokens) = (u32::MAX, 0);
    let all = collect(&mut world.engine.start(model, request).await.unwrap(), 2).await;
    assert_eq!((all[0].0.as_str(), all[1].0.as_str()), ("A", "B"));
    assert_eq!(all[0].1.unwrap().reason, Reason::Length);
}

#[tokio::test]
async fn the_less_loaded_scheduler_of_two_gets_the_request() {
    let (mut world, _fake, busy, model) = linked(config()).await;
    let cluster = world.engine.shared.cluster.clone();
    let first = cluster.pick(&model.card.hash, &[]).unwrap();
    busy.load(50).await;
    let mut other = world.scheduler("s2", fake::files()).await;
    let mut idle = other.linked().await;
    while first.load().0 == 0 || cluster.pick(&model.card.hash, std::slice::from_ref(&first)).is_none() {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        let (deltas, _) = started(&world, &model, generation(&["Hi"]), &mut idle, "a").await;
        drop(deltas);
        idle.cancelled().await;
    }
}

#[tokio::test]
async fn a_models_files_are_fetched_once_and_checked() {
    let (world, fake, _link, model) = linked(config()).await;
    let again = world.engine.model("tiny").await.unwrap();
    assert!(Arc::ptr_eq(&model, &again));
    assert_eq!(fake.fetches.load(Ordering::SeqCst), 1);
    assert_eq!(world.engine.models().iter().map(|card| card.name.as_str()).collect::<Vec<_>>(), ["tiny"]);
    assert_eq!(world.engine.model("large").await.err(), Some(ModelError::NotFound));
}

#[tokio::test]
async fn a_model_with_the_wrong_files_is_not_used() {
    let mut world = World::new(config());
    let mut files = fake::files();
    files.insert("chat_template.jinja".into(), b"tampered".to_vec());
    let mut fake = world.scheduler("s1", files).await;
    let _link = fake.linked().await;
    let mut changed = world.engine.shared.cluster.changed();
    while world.engine.models().is_empty() {
        changed.changed().await.unwrap();
    }
    let Err(ModelError::Invalid(reason)) = world.engine.model("tiny").await else { panic!("it was used") };
    assert!(reason.contains("have the hash"), "{reason}");
}

#[tokio::test]
async fn a_model_that_was_served_is_away_and_not_unknown() {
    let mut world = World::new(config());
    assert!(matches!(world.engine.model("tiny").await, Err(ModelError::NotReady { .. })));
    let mut fake = world.scheduler("s1", fake::files()).await;
    let link = fake.linked().await;
    served(&world).await;
    let mut changed = world.engine.shared.cluster.changed();
    world.withdraw("s1");
    drop(link);
    changed.changed().await.unwrap();
    assert!(world.engine.models().is_empty());
    assert!(matches!(world.engine.model("tiny").await, Err(ModelError::NotReady { .. })));
}

#[tokio::test]
async fn what_a_submission_carries() {
    let (world, _fake, mut connection, model) = linked(config()).await;
    let mut request = generation(&["hi"]);
    request.sampling = Sampling {
        frequency_penalty: 0.5,
        presence_penalty: -0.5,
        repetition_penalty: 1.5,
        typical_p: 0.5,
        mirostat: Some(crate::generation::Mirostat { target: 3.0, rate: 0.25 }),
        bias: [(7, 2.5), (9, -100.0)].into(),
        ..Sampling::default()
    };
    (request.min_tokens, request.priority, request.session) = (3, 1, Some(5));
    (request.cache_salt, request.max_cached_tokens) = ("salt".into(), Some(0));
    let (_deltas, submitted) = started(&world, &model, request, &mut connection, "a").await;
    let header = submitted.header;
    assert_eq!((header.min_tokens, header.priority, header.session), (3, 1, Some(5)));
    assert_eq!((header.cache_salt.as_str(), header.max_cached_tokens), ("salt", Some(0)));
    let expected = volley_proto::v1::Sampling {
        temperature: 1.0,
        frequency_penalty: 0.5,
        presence_penalty: -0.5,
        repetition_penalty: Some(1.5),
        bias_tokens: vec![7, 9],
        bias_values: vec![2.5, -100.0],
        typical_p: Some(0.5),
        mirostat_target: Some(3.0),
        mirostat_rate: Some(0.25),
        ..Default::default()
    };
    assert_eq!(header.sampling, Some(expected));
}
