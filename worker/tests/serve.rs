//! A worker over gRPC, as schedulers and routers see it.

use std::{collections::BTreeMap, path::PathBuf};

use tonic::Code;
use volley_proto::{
    PROTOCOL,
    v1::{
        BlockAppend, Claim, Epoch, FetchModelRequest, Kind, NewSequence, Sampling, SlotRun, StepPlan,
        StepResult, WorkerHello, plan_message,
    },
};
use volley_worker::{Activations, Config, Device, Worker};

use crate::common::Served;

mod common;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama")
}

fn config() -> Config {
    Config { kv_cache_bytes: Some(1 << 20), threads: Some(1), ..Config::new(folder(), "tiny") }
}

fn admission() -> StepPlan {
    StepPlan {
        step_id: 1,
        admit: vec![NewSequence {
            kind: Kind::Generate.into(),
            tokens: vec![4, 5, 6],
            prompt_tokens: 3,
            sampling: Some(Sampling { logprobs: Some(1), ..Default::default() }),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            ..Default::default()
        }],
        append: vec![BlockAppend { slot: 0, group: 0, blocks: vec![0] }],
        run: vec![SlotRun { slot: 0, tokens: 3, drafts: 0 }],
        ..Default::default()
    }
}

#[tokio::test]
async fn a_scheduler_claims_the_worker_and_runs_steps() {
    let served = Served::start(config());
    let (mut link, hello) = served.claimed(1).await;
    let card = hello.card.unwrap();
    assert_eq!(
        (card.name.as_str(), card.architecture.as_str(), card.weight_format.as_str()),
        ("tiny", "llama", "F32")
    );
    assert_eq!((card.context_length, card.vocab_size, card.bos_token), (512, 288, Some(0)));
    assert_eq!((card.stop_tokens, card.has_chat_template), (vec![2, 3], true));
    assert_eq!((card.weights_hash.len(), card.hash.len()), (64, 64));
    assert!(card.numerics_class.starts_with(&card.weights_hash) && card.created > 0);
    assert_eq!((hello.block_tokens, hello.groups.len(), hello.groups[0].layers), (16, 1, 2));
    assert!(hello.groups[0].blocks * 16 * u64::from(hello.groups[0].bytes_per_token) <= 1 << 20);

    let first = link.step(admission()).await.unwrap();
    assert_eq!((first.step_id, first.rows, first.slots.len()), (1, 3, 1));
    assert_eq!((first.slots[0].tokens.len(), first.slots[0].logprobs.len()), (1, 1));
    let run = vec![SlotRun { slot: 0, tokens: 1, drafts: 0 }];
    let second = link.step(StepPlan { step_id: 2, run, ..Default::default() }).await.unwrap();
    assert_eq!((second.slots[0].tokens.len(), second.epoch.unwrap().claim), (1, 1));
}

#[tokio::test]
async fn routers_fetch_the_files_of_the_card() {
    let served = Served::start(config());
    let (_link, hello) = served.claimed(1).await;
    let mut client = served.client().await;
    let hash = hello.card.unwrap().hash;
    let mut chunks = client.fetch_model(FetchModelRequest { hash }).await.unwrap().into_inner();
    let (mut files, mut name) = (BTreeMap::<String, Vec<u8>>::new(), String::new());
    while let Some(chunk) = chunks.message().await.unwrap() {
        if !chunk.name.is_empty() {
            name = chunk.name;
        }
        files.entry(name.clone()).or_default().extend(chunk.data);
    }
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json"]);
    assert_eq!(files["tokenizer.json"], std::fs::read(folder().join("tokenizer.json")).unwrap());

    let other = client.fetch_model(FetchModelRequest { hash: "other".into() }).await;
    assert_eq!(other.err().unwrap().code(), Code::NotFound);
}

#[tokio::test]
async fn a_protocol_error_ends_the_connection_and_not_the_worker() {
    let served = Served::start(config());
    let mut link = served.link().await;
    link.send(plan_message::Message::Plan(StepPlan::default())).await;
    assert_eq!(link.next().await.unwrap_err().code(), Code::InvalidArgument);

    let mut link = served.link().await;
    let epoch = Some(Epoch { claim: 1, connection: 1 });
    let claim = Claim { protocol: PROTOCOL + 1, scheduler_id: "s".into(), epoch };
    link.send(plan_message::Message::Claim(claim)).await;
    let error = link.next().await.unwrap_err();
    assert!(
        error.code() == Code::InvalidArgument && error.message().contains("this worker speaks"),
        "{error}"
    );

    let (mut link, _) = served.claimed(1).await;
    let plan = StepPlan { release: vec![9999], ..Default::default() };
    let error = link.step(plan).await.unwrap_err();
    assert!(error.code() == Code::InvalidArgument && error.message().contains("slot 9999"), "{error}");

    let (mut link, _) = served.claimed(2).await;
    assert_eq!(link.step(admission()).await.unwrap().rows, 3);
}

#[tokio::test]
async fn a_newer_claim_takes_the_worker_over() {
    let served = Served::start(config());
    let (mut old, _) = served.claimed(1).await;
    old.step(admission()).await.unwrap();
    let (mut new, _) = served.claimed(2).await;
    assert_eq!(old.next().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(new.step(admission()).await.unwrap().rows, 3, "the slot is free again");
}

#[tokio::test]
async fn a_scheduler_that_leaves_frees_the_slots() {
    let served = Served::start(config());
    let (mut link, _) = served.claimed(1).await;
    link.step(admission()).await.unwrap();
    drop(link);
    let (mut link, _) = served.claimed(2).await;
    assert_eq!(link.step(admission()).await.unwrap().rows, 3);
}

#[tokio::test]
async fn shutdown_ends_connections_and_the_step_thread() {
    let served = Served::start(config());
    let (mut link, _) = served.claimed(1).await;
    served.shutdown.cancel();
    assert_eq!(link.next().await.unwrap_err().code(), Code::Unavailable);
    drop(link);
    served.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn ranks_of_a_worker_answer_as_one_and_name_their_number_in_the_numerics_class() {
    let start = |tensor_parallel| {
        Served::start(Config { tensor_parallel, activations: Activations::F32, ..config() })
    };
    let (one, two) = (start(1), start(2));
    let ((mut one, alone), (mut two, group)) = (one.claimed(1).await, two.claimed(1).await);
    let class = |hello: &WorkerHello| hello.card.as_ref().unwrap().numerics_class.clone();
    assert!(class(&alone).ends_with("-tp1") && class(&group).ends_with("-tp2"));
    assert_eq!(class(&alone).strip_suffix("1"), class(&group).strip_suffix("2"));
    // The same KV cache, in parts.
    assert_eq!(alone.groups, group.groups);
    let drawn = |mut result: StepResult| result.slots.remove(0);
    let (one, two) =
        (drawn(one.step(admission()).await.unwrap()), drawn(two.step(admission()).await.unwrap()));
    assert_eq!(one.tokens, two.tokens);
    assert!((one.logprobs[0].logprob - two.logprobs[0].logprob).abs() < 1e-5);
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let load = |config| Worker::load(config, |_, _| ()).err().unwrap().to_string();
    let gpu = load(Config { device: Device::Cuda(77), ..config() });
    assert!(gpu.starts_with("device cuda:77: ") && gpu.ends_with("; --device cpu works anywhere"), "{gpu}");
    let none = load(Config { max_sequences: Some(0), ..config() });
    assert!(none.contains("max-sequences 0"), "{none}");
    let ranks = load(Config { tensor_parallel: 3, ..config() });
    assert!(
        ranks.contains("--tensor-parallel 3: the 4 heads over 2") && ranks.ends_with(": 1, 2"),
        "{ranks}"
    );
    let small = load(Config { kv_cache_bytes: Some(100), ..config() });
    assert!(small.starts_with("a KV cache of 100 bytes holds no block of 16 tokens"), "{small}");
    let huge = load(Config { kv_cache_bytes: Some(1 << 60), max_sequences: Some(u32::MAX), ..config() });
    assert!(huge.contains("does not fit"), "{huge}");
    let missing = load(Config { model: folder().join("nothing"), ..config() });
    assert!(missing.contains("nothing: No such file"), "{missing}");
}
