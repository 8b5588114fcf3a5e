//! SmolLM2-135M-Instruct held against transformers (float32, weights dequantized), at every position of the
//! reference's prompts and texts. Skipped, with a line that says so, where VOLLEY_TEST_MODEL names no file.

#![allow(clippy::unwrap_used)] // in what the tests call, too

use std::path::PathBuf;

use serde::Deserialize;
use volley_proto::v1::{
    BlockAppend, Kind, Logprobs, NewSequence, Sampling, ScoreRange, SlotResult, SlotRun, StepPlan,
};
use volley_worker::{Activations, Config};

use crate::common::{Link, Served};

mod common;

#[derive(Deserialize)]
struct Reference {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    prompt_ids: Vec<u32>,
    gen_ids: Vec<u32>,
    /// Of each generated token: the first choice's lead over the second.
    margins: Vec<f32>,
    /// The likeliest token and its lead, from the prompt's second position on.
    prompt_top: Vec<(u32, f32)>,
    /// Of the tokens of prompt and text, from the second on.
    logprobs: Vec<f32>,
}

/// One position: what the reference says, and what the worker says.
struct Position {
    top: u32,
    margin: f32,
    logprob: f32,
    ours: Logprobs,
}

fn model(activations: Activations) -> Option<Config> {
    let Some(path) = std::env::var_os("VOLLEY_TEST_MODEL") else {
        println!("skipped: VOLLEY_TEST_MODEL names no SmolLM2-135M-Instruct.Q4_1.gguf");
        return None;
    };
    let config = Config::new(PathBuf::from(path), "smollm2-135m-instruct");
    Some(Config { activations, kv_cache_bytes: Some(256 << 20), ..config })
}

fn reference() -> Vec<Item> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reference/smollm2-135m-instruct.json");
    serde_json::from_slice::<Reference>(&std::fs::read(path).unwrap()).unwrap().items
}

/// Admits sequences to slots 0, 1, … with blocks for so many tokens each, and runs all that is known of them.
async fn start(link: &mut Link, sequences: Vec<NewSequence>, tokens: &[usize]) -> Vec<SlotResult> {
    let mut plan = StepPlan { step_id: 1, ..Default::default() };
    let mut free = 0..;
    for (slot, (sequence, tokens)) in (0..).zip(sequences.into_iter().zip(tokens)) {
        plan.run.push(SlotRun { slot, tokens: sequence.tokens.len() as u32, drafts: 0 });
        plan.admit.push(NewSequence { slot, ..sequence });
        let blocks = free.by_ref().take(tokens.div_ceil(16)).collect();
        plan.append.push(BlockAppend { slot, group: 0, blocks });
    }
    link.step(plan).await.unwrap().slots
}

/// Scores prompt and text of every item.
async fn score(config: Config) -> Vec<Position> {
    let served = Served::start(Config { max_batch_tokens: Some(1024), ..config });
    let (mut link, _) = served.claimed(1).await;
    let items = reference();
    let sequence = |item: &Item| {
        let tokens = [&item.prompt_ids[..], &item.gen_ids].concat();
        let prompt_tokens = tokens.len() as u32;
        let score = Some(ScoreRange { from: 1, alternatives: 1 });
        NewSequence { kind: Kind::Score.into(), prompt_tokens, tokens, score, ..Default::default() }
    };
    let sequences: Vec<_> = items.iter().map(sequence).collect();
    let lengths: Vec<_> = sequences.iter().map(|sequence| sequence.tokens.len()).collect();
    let results = start(&mut link, sequences, &lengths).await;

    let mut positions = Vec::new();
    for (item, SlotResult { scored, .. }) in items.into_iter().zip(results) {
        assert_eq!(item.logprobs.len(), scored.len());
        let text = item.gen_ids.into_iter().zip(item.margins);
        let tops = item.prompt_top.into_iter().chain(text);
        for (((top, margin), logprob), ours) in tops.zip(item.logprobs).zip(scored) {
            positions.push(Position { top, margin, logprob, ours });
        }
    }
    positions
}

/// Sorted |Δ| of the log-probabilities.
fn differences(positions: &[Position]) -> Vec<f32> {
    let mut differences: Vec<_> = positions.iter().map(|p| (p.ours.logprob - p.logprob).abs()).collect();
    differences.sort_by(f32::total_cmp);
    differences
}

#[tokio::test]
async fn eight_bit_activations_stay_close_to_the_reference() {
    let Some(config) = model(Activations::Int8) else { return };
    let positions = score(config).await;
    let agrees = |p: &Position| p.ours.top_tokens[0] == p.top;
    let agreed = positions.iter().filter(|p| agrees(p)).count() as f32 / positions.len() as f32;
    let widest = positions.iter().filter(|p| !agrees(p)).map(|p| p.margin).fold(0.0, f32::max);
    let differences = differences(&positions);
    let (median, largest) = (differences[differences.len() / 2], differences[differences.len() - 1]);
    println!(
        "top token {agreed:.3}, widest margin lost {widest:.3}, |Δ| median {median:.4}, largest {largest:.3}"
    );
    assert!(agreed >= 0.9 && widest < 0.65 && median <= 0.1);
}

#[tokio::test]
async fn float_activations_give_the_reference() {
    let Some(config) = model(Activations::F32) else { return };
    let differences = differences(&score(config.clone()).await);
    let (median, largest) = (differences[differences.len() / 2], differences[differences.len() - 1]);
    println!("|Δ| median {median:.6}, largest {largest:.6}");
    assert!(median <= 1e-4 && largest <= 1e-3);

    let items = reference();
    let texts = generate(config, &items, Sampling::default()).await;
    for (text, item) in texts.into_iter().zip(items) {
        assert_eq!(text, item.gen_ids);
    }
}

#[tokio::test]
async fn texts_do_not_depend_on_what_runs_beside_them() {
    let Some(config) = model(Activations::Int8) else { return };
    let sampling = Sampling { temperature: 0.8, seed: 7, ..Sampling::default() };
    let items = reference();
    let together = generate(config.clone(), &items, sampling.clone()).await;
    for (item, text) in items.chunks(1).zip(together) {
        assert_eq!(generate(config.clone(), item, sampling.clone()).await, [text]);
    }
}

/// A text as long as the reference's for each item's prompt, all together.
async fn generate(config: Config, items: &[Item], sampling: Sampling) -> Vec<Vec<u32>> {
    let served = Served::start(config);
    let (mut link, _) = served.claimed(1).await;
    let sequence = |item: &Item| NewSequence {
        kind: Kind::Generate.into(),
        prompt_tokens: item.prompt_ids.len() as u32,
        tokens: item.prompt_ids.clone(),
        sampling: Some(sampling.clone()),
        ..Default::default()
    };
    let lengths: Vec<_> = items.iter().map(|item| item.prompt_ids.len() + item.gen_ids.len()).collect();
    let results = start(&mut link, items.iter().map(sequence).collect(), &lengths).await;
    let mut texts: Vec<_> = results.into_iter().map(|result| result.tokens).collect();
    for step_id in 2..=items[0].gen_ids.len() as u64 {
        let run = (0..items.len() as u32).map(|slot| SlotRun { slot, tokens: 1, drafts: 0 }).collect();
        let result = link.step(StepPlan { step_id, run, ..Default::default() }).await.unwrap();
        texts.iter_mut().zip(result.slots).for_each(|(text, slot)| text.extend(slot.tokens));
    }
    texts
}
