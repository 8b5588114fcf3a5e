use volley_proto::v1::{
    BlockAppend, BlockCopy, Kind, NewSequence, Sampling, ScoreRange, SlotRun, StepPlan,
    result_message::Message,
};

use super::driver::{Driver, Output, Request, next};
use crate::engine::Epoch;

/// A numbered request: prompt, sampling, length, chunking and arrival all follow from the number.
fn request(number: u32) -> Request {
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
                min_p: None,
                seed: number.into(),
                logprobs: number.is_multiple_of(2).then_some(3),
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
    }
}

fn alone(driver: &mut Driver, request: &Request) -> Output {
    // Whole prompt at once: another way of cutting than in company.
    let request = Request { chunk: usize::MAX, arrival: 0, ..request.clone() };
    driver.run(&[request]).remove(0)
}

#[test]
fn sixty_four_sequences_together_give_what_each_gives_alone() {
    for model in ["tiny-llama", "tiny-qwen2"] {
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
    for number in [1, 2, 5] {
        let mut request = request(number);
        (request.generate, request.sequence.score) = (20, None);
        let whole = alone(&mut driver, &request);
        let mut moved = request.clone();
        moved.sequence.tokens.extend(&whole.tokens[..8]);
        moved.generate = 12;
        assert_eq!(alone(&mut driver, &moved).tokens, whole.tokens[8..]);
    }
    driver.stop();
}

#[test]
fn a_copied_block_continues_as_the_original() {
    let driver = Driver::start("tiny-llama", 2, 64);
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
            run: vec![SlotRun { slot: 0, tokens: 10 }],
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
            run: vec![SlotRun { slot: 1, tokens: 1 }],
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
