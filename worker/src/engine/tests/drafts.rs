//! Drafts change how many steps a stream takes, never the stream.

use volley_proto::v1::Sampling;

use super::{
    driver::{Count, Driver, Output, Request},
    exactness::{alone, request},
};

/// A numbered request that may guess, and what it gets without.
fn guessing(driver: &mut Driver, number: u32) -> (Request, Output) {
    let mut guessing = request(number);
    guessing.generate = 60 + number as usize % 7;
    guessing.drafts = 1 + number as usize % 8;
    if number.is_multiple_of(2) {
        // Warm enough for some tokens to be drawn that are no guess, cold enough for some that are.
        guessing.sequence.sampling.as_mut().unwrap().temperature = 0.3;
    }
    let whole = alone(driver, &guessing);
    (guessing, whole)
}

/// The answer, with a token replaced, one put in and one left out.
fn nearly(answer: &[u32]) -> Vec<u32> {
    let mut answer = answer.to_vec();
    answer[5] ^= 1;
    answer.insert(11, 9);
    answer.remove(17);
    answer
}

/// Runs requests together, and counts what was guessed and what of it was right.
fn together(driver: &mut Driver, requests: &[(Request, Output)]) -> Count {
    let (requests, whole): (Vec<_>, Vec<_>) = requests.iter().cloned().unzip();
    let outputs = driver.run(&requests);
    for (number, (output, whole)) in outputs.iter().zip(&whole).enumerate() {
        assert_eq!(output, whole, "request {number}");
    }
    outputs.iter().fold(Count(0, 0), |all, one| Count(all.0 + one.drafted.0, all.1 + one.drafted.1))
}

#[test]
fn streams_with_guesses_from_their_own_text_are_those_without() {
    for model in ["tiny-llama", "tiny-qwen2"] {
        let mut driver = Driver::start(model, 48, 256);
        let requests: Vec<_> = (0..64).map(|number| guessing(&mut driver, number)).collect();
        let Count(guessed, right) = together(&mut driver, &requests);
        assert!(right > 30 && guessed > right + 30, "{model}: {right} of {guessed} guesses were right");
        driver.stop();
    }
}

#[test]
fn streams_with_a_prediction_are_those_without() {
    let mut driver = Driver::start("tiny-llama", 48, 256);
    let mut requests: Vec<_> = (0..64).map(|number| guessing(&mut driver, number)).collect();
    for (request, whole) in &mut requests {
        request.sequence.prediction = nearly(&whole.tokens);
        request.sequence.prediction.push(1 << 20); // outside the vocabulary
    }
    let Count(guessed, right) = together(&mut driver, &requests);
    assert!(right > 800 && guessed > right + 20, "{right} of {guessed} guesses were right");
    driver.stop();
}

#[test]
fn a_right_prediction_takes_a_step_for_all_its_tokens() {
    let mut driver = Driver::start("tiny-llama", 1, 64);
    let (mut request, whole) = guessing(&mut driver, 16);
    (request.drafts, request.sequence.prediction) = (8, whole.tokens.clone());
    let output = driver.run(&[request]).remove(0);
    assert_eq!(output, whole);
    // The first token comes from the prompt's last row, with eight guesses after it.
    let steps = whole.tokens.len().div_ceil(9) as u32;
    assert_eq!((output.drafted.0, output.drafted.1), (62 - steps, 62 - steps));
    driver.stop();
}

#[test]
fn guided_sequences_and_mirostat_are_not_guessed() {
    let mut driver = Driver::start("tiny-llama", 2, 64);
    let mut request = request(16);
    (request.generate, request.drafts) = (12, 8);
    request.sequence.sampling =
        Some(Sampling { mirostat_target: Some(4.0), temperature: 1.0, ..Sampling::default() });
    let whole = alone(&mut driver, &request);
    request.sequence.prediction = whole.tokens.clone();
    let output = driver.run(&[request]).remove(0);
    assert_eq!((&output, output.drafted.0), (&whole, 0));
    driver.stop();
}

#[test]
fn streams_with_a_draft_model_are_those_without() {
    let right = |target: &str, draft: &str| {
        let mut driver = Driver::drafting(target, draft, 48, 256);
        let requests: Vec<_> = (0..64).map(|number| guessing(&mut driver, number)).collect();
        let Count(guessed, right) = together(&mut driver, &requests);
        driver.stop();
        assert!(guessed > 2000, "{guessed} guesses");
        f64::from(right) / f64::from(guessed)
    };
    // One that thinks alike draws alike, warm or cold, with penalties and biases. (Some guesses are still from
    // the text.)
    let (alike, other) = (right("tiny-llama", "tiny-llama"), right("tiny-llama", "tiny-qwen2"));
    assert!(alike > 0.9 && other < 0.5, "{alike} of its own were right, {other} of another's");
}
