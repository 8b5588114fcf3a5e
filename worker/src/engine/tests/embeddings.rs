use volley_proto::v1::{Kind, NewSequence, SlotRun, StepPlan};

use super::{
    driver::{Driver, Request},
    guided,
    plans::{self, lay_out},
};
use crate::{config::Pooling, engine::Limits};

/// A numbered prompt to embed.
fn prompt(number: u32) -> Request {
    let tokens: Vec<u32> = (0..1 + number * 7 % 60).map(|i| (i * 31 + number * 17) % 288).collect();
    Request {
        sequence: NewSequence {
            kind: Kind::Embed.into(),
            prompt_tokens: tokens.len() as u32,
            tokens,
            ..Default::default()
        },
        generate: 0,
        chunk: 1 + (number * 11 % 40) as usize,
        arrival: (number * 3 % 20) as usize,
        drafts: 0,
    }
}

#[test]
fn an_embedding_depends_on_its_prompt_alone_however_it_is_cut_and_whatever_runs_beside_it() {
    for pooling in [Pooling::Mean, Pooling::Last] {
        let mut driver = Driver::embedding("tiny-qwen2", 24, 128, Some(pooling));
        let requests: Vec<_> = (0..48).map(prompt).collect();
        let together = driver.run(&requests);
        for (request, together) in requests.iter().zip(together) {
            let whole = Request { chunk: usize::MAX, arrival: 0, ..request.clone() };
            let alone = driver.run(&[whole]).remove(0);
            assert_eq!((alone.embedding.len(), alone.tokens.len()), (32, 0));
            assert_eq!(alone.embedding, together.embedding);
        }
        driver.stop();
    }
}

#[test]
fn a_mean_is_that_of_each_positions_own_state() {
    let request = Request { chunk: 7, ..prompt(5) };
    let mut last = Driver::embedding("tiny-llama", 64, 512, Some(Pooling::Last));
    let positions = 1..request.sequence.tokens.len() + 1;
    let prefixes: Vec<_> = positions
        .map(|length| {
            let mut prefix = request.clone();
            prefix.sequence.tokens.truncate(length);
            prefix.sequence.prompt_tokens = length as u32;
            prefix
        })
        .collect();
    let states = last.run(&prefixes);
    let mean =
        Driver::embedding("tiny-llama", 4, 64, Some(Pooling::Mean)).run(&[request]).remove(0).embedding;
    for (i, number) in mean.iter().enumerate() {
        let sum: f64 = states.iter().map(|state| f64::from(state.embedding[i])).sum();
        assert_eq!(*number, (sum / states.len() as f64) as f32);
    }
    last.stop();
}

#[test]
fn a_worker_that_cannot_embed_fails_that_sequence_only() {
    let embed = |computed| NewSequence { kind: Kind::Embed.into(), computed, ..plans::sequence(0, 5) };
    let failure = |pooling, computed| {
        let mut slots = guided::slots(Limits { pooling, ..plans::LIMITS });
        let run = vec![SlotRun { slot: 0, tokens: 1, drafts: 0 }];
        let plan = StepPlan { admit: vec![embed(computed)], run, ..Default::default() };
        let step = lay_out(&mut slots, plan).unwrap();
        slots.settle(step, vec![]).remove(0).failure.unwrap()
    };
    assert_eq!(failure(None, 0), "this worker computes no embeddings");
    assert!(failure(Some(Pooling::Mean), 4).contains("every position"));
}
