use volley_proto::v1::{
    BlockAppend, BlockCopy, Kind, NewSequence, Sampling, ScoreRange, SlotRun, StepPlan,
    result_message::Message,
};

use super::driver::{Driver, Output, Request, next};
use crate::{engine::Epoch, testing};

/// A numbered request: prompt, sampling, length, chunking and arrival all follow from the number.
pub(super) fn request(number: u32) -> Request {
    let prompt = 1 + number * 7 % 60;
    let tokens: Vec<u32> = (0..prompt).map(|i| (i * 31 + number * 17) % 288).collect();
    let score = number.is_multiple_of(3).then_some(ScoreRange { from: number % 2, alternatives: 2 });
    Request {
        sequence: NewSequence {
            kind: Kind::Generate.into(),
            prompt_tokens: prompt,
            tokens,
            sampling: Some(Sampling {
                temperature: if number.is_multiple_of(4) { 0.0 } else { 0.7 },
                top_p: number.is_multiple_of(5).then_some(0.9),
                top_k: number.is_multiple_of(7).then_some(20),
                seed: number.into(),
                logprobs: number.is_multiple_of(2).then_some(3),
                ..shaped(number)
            }),
            choice: number % 3,
            score,
            banned: vec![2, 3],
            min_tokens: number % 6,
            ..Default::default()
        },
        generate: 1 + (number * 5 % 30) as usize,
        chunk: 1 + (number * 11 % 40) as usize,
        arrival: (number * 3 % 20) as usize,
        drafts: 0,
    }
}

/// Penalties, bias and mirostat, in all combinations over the numbers.
fn shaped(number: u32) -> Sampling {
    let when = |divisor: u32, rest: u32| number % divisor == rest;
    let biased = when(3, 1);
    Sampling {
        frequency_penalty: if when(2, 1) { 0.7 } else { 0.0 },
        presence_penalty: if when(5, 2) { -0.5 } else { 0.0 },
        repetition_penalty: when(3, 2).then_some(1.3),
        bias_tokens: if biased { vec![17, 200] } else { vec![] },
        bias_values: if biased { vec![3.0, -100.0] } else { vec![] },
        typical_p: when(7, 3).then_some(0.8),
        mirostat_target: when(4, 3).then_some(4.0),
        mirostat_rate: when(8, 3).then_some(0.3),
        ..Sampling::default()
    }
}

pub(super) fn alone(driver: &mut Driver, request: &Request) -> Output {
    // Whole prompt at once: another way of cutting than in company.
    let request = Request { chunk: usize::MAX, arrival: 0, drafts: 0, ..request.clone() };
    driver.run(&[request]).remove(0)
}

#[test]
fn sixty_four_sequences_together_give_what_each_gives_alone() {
    for model in testing::FIXTURES {
        let requests: Vec<_> = (0..64).map(request).collect();
        let mut driver = Driver::start(model, 48, 128);
        let together = driver.run(&requests);
        for (request, together) in requests.iter().zip(&together) {
            assert_eq!(&alone(&mut driver, request), together);
            assert_eq!(together.tokens.len(), request.generate);
        }
        driver.stop();
    }
}

#[test]
fn scoring_what_was_generated_gives_the_log_probabilities_of_generating_it() {
    let mut driver = Driver::start("tiny-llama", 4, 64);
    let mut generating = request(4);
    generating.sequence.sampling.as_mut().unwrap().logprobs = Some(2);
    generating.generate = 20;
    let generated = alone(&mut driver, &generating);

    let mut scoring = generating.clone();
    let from = scoring.sequence.tokens.len() as u32;
    scoring.sequence.tokens.extend(&generated.tokens);
    scoring.sequence.prompt_tokens = scoring.sequence.tokens.len() as u32;
    scoring.sequence.kind = Kind::Score.into();
    scoring.sequence.score = Some(ScoreRange { from, alternatives: 2 });
    scoring.generate = 0;
    for chunk in [1, 3, 64] {
        let scored = driver.run(&[Request { chunk, ..scoring.clone() }]).remove(0);
        assert_eq!((&scored.scored, scored.tokens.len()), (&generated.logprobs, 0));
    }
    driver.stop();
}

#[test]
fn a_sequence_that_moves_continues_as_if_it_had_not() {
    let mut driver = Driver::start("tiny-llama", 4, 64);
    for number in 0..32 {
        let mut request = request(number);
        (request.generate, request.sequence.score) = (20, None);
        let whole = alone(&mut driver, &request);
        let mut moved = request.clone();
        moved.sequence.tokens.extend(&whole.tokens[..8]);
        moved.sequence.mirostat = whole.mirostat.get(7).copied();
        moved.generate = 12;
        let rest = alone(&mut driver, &moved);
        assert_eq!(rest.tokens, whole.tokens[8..], "request {number}");
        assert_eq!(rest.mirostat, whole.mirostat.get(8..).unwrap_or_default());
    }
    driver.stop();
}

/// Else the test above would say nothing about them.
#[test]
fn each_penalty_bias_and_mirostat_changes_a_text() {
    let mut driver = Driver::start("tiny-llama", 4, 64);
    let mut plain = request(16);
    let sampling = Sampling { temperature: 0.7, seed: 1, ..Sampling::default() };
    (plain.generate, plain.sequence.sampling) = (20, Some(sampling.clone()));
    let text = alone(&mut driver, &plain).tokens;
    let likely = text[10];
    for shaped in [
        Sampling { frequency_penalty: 2.0, ..sampling.clone() },
        Sampling { presence_penalty: 2.0, ..sampling.clone() },
        Sampling { repetition_penalty: Some(2.0), ..sampling.clone() },
        Sampling { bias_tokens: vec![likely], bias_values: vec![-100.0], ..sampling.clone() },
        Sampling { typical_p: Some(0.1), ..sampling.clone() },
        Sampling { mirostat_target: Some(0.5), ..sampling.clone() },
    ] {
        let mut request = plain.clone();
        request.sequence.sampling = Some(shaped.clone());
        assert_ne!(alone(&mut driver, &request).tokens, text, "{shaped:?}");
    }
    driver.stop();
}

#[test]
fn a_copied_block_continues_as_the_original() {
    continues_from_a_copy(Driver::start("tiny-llama", 2, 64));
}

pub(super) fn continues_from_a_copy(driver: Driver) {
    let epoch = Epoch { claim: 1, connection: 1 };
    let (mut received, _ended) = driver.claim(epoch);
    next(&mut received).unwrap();
    let known: Vec<u32> = (10..20).collect();
    let new = |slot, computed| NewSequence {
        slot,
        computed,
        kind: Kind::Generate.into(),
        tokens: known.clone(),
        prompt_tokens: 10,
        sampling: Some(Sampling { logprobs: Some(1), ..Default::default() }),
        ..Default::default()
    };
    let append = |slot, block| BlockAppend { slot, group: 0, blocks: vec![block] };
    driver.send(
        epoch,
        StepPlan {
            step_id: 1,
            admit: vec![new(0, 0)],
            append: vec![append(0, 3)],
            run: vec![SlotRun { slot: 0, tokens: 10, drafts: 0 }],
            ..Default::default()
        },
    );
    driver.send(
        epoch,
        StepPlan {
            step_id: 2,
            admit: vec![new(1, 9)],
            append: vec![append(1, 5)],
            copy: vec![BlockCopy { group: 0, from: 3, to: 5 }],
            run: vec![SlotRun { slot: 1, tokens: 1, drafts: 0 }],
            ..Default::default()
        },
    );
    let mut slot = || match next(&mut received) {
        Ok(Message::Result(mut result)) => result.slots.remove(0),
        other => panic!("{other:?}"),
    };
    let (original, copy) = (slot(), slot());
    assert_eq!((&original.tokens, &original.logprobs), (&copy.tokens, &copy.logprobs));
    driver.stop();
}
