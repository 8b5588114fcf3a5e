//! Guided sequences: what they may draw, and that nobody waits for them.

use std::sync::{Arc, Mutex, mpsc};

use volley_grammar::{Compiler, Error, Grammar, Vocabulary};
use volley_kernels::Drawn;
use volley_proto::v1::{BlockAppend, Kind, NewSequence, Sampling, SlotRun, StepPlan};

use super::{
    driver::{Driver, Output, Request},
    plans::lay_out,
};
use crate::{
    engine::{Guides, Limits, Slots},
    testing,
};

/// Slots without a vocabulary.
pub(super) fn slots(limits: Limits) -> Slots {
    let none = || Err(Error::Broken("no vocabulary".to_owned()));
    Slots::new(limits, Guides::start(Compiler::new(none, 100, &[2])).unwrap())
}

const LIMITS: Limits = Limits { sequences: 2, rows: 32, blocks: 8, context: 64, vocab: 288, pooling: None };

/// Slots whose grammars are compiled once the sender is dropped.
fn gated() -> (Slots, mpsc::Sender<()>) {
    let (gate, gated) = mpsc::channel::<()>();
    let gated = Mutex::new(gated);
    let file = testing::fixture("tiny-llama").model.text.tokenizer();
    let vocabulary = move || {
        let _ = gated.lock().unwrap().recv(); // until it is dropped
        Vocabulary::from_json(&file).map(Arc::new)
    };
    (Slots::new(LIMITS, Guides::start(Compiler::new(vocabulary, 288, &[2])).unwrap()), gate)
}

fn sequence(slot: u32, grammar: Option<Grammar>) -> NewSequence {
    NewSequence {
        slot,
        kind: Kind::Generate.into(),
        tokens: vec![5, 6, 7],
        prompt_tokens: 3,
        sampling: Some(Sampling::default()),
        grammar: grammar.map(|grammar| grammar.text().to_owned()),
        ..Default::default()
    }
}

fn admission(guided: Grammar) -> StepPlan {
    StepPlan {
        admit: vec![sequence(0, Some(guided)), sequence(1, None)],
        append: (0..2).map(|slot| BlockAppend { slot, group: 0, blocks: vec![slot] }).collect(),
        run: (0..2).map(|slot| SlotRun { slot, tokens: 3, drafts: 0 }).collect(),
        ..Default::default()
    }
}

fn runs(slots: &[u32]) -> StepPlan {
    let run = slots.iter().map(|&slot| SlotRun { slot, tokens: 1, drafts: 0 }).collect();
    StepPlan { run, ..Default::default() }
}

fn drawn(token: u32) -> Drawn {
    Drawn { token, logprobs: None, mirostat: None }
}

fn allowed(mask: &[u32]) -> Vec<u32> {
    (0..mask.len() as u32 * 32).filter(|token| mask[*token as usize / 32] >> (token % 32) & 1 == 1).collect()
}

#[test]
fn a_grammar_that_is_being_compiled_delays_its_own_sequence_only() {
    let (mut slots, gate) = gated();
    let mut plan = admission(Grammar::regex("ab").unwrap());
    for token in 10..13 {
        let mut step = lay_out(&mut slots, plan).unwrap();
        slots.guide(&mut step, std::time::Duration::ZERO);
        assert_eq!((step.draws.len(), step.draws[0].allowed.as_ref()), (1, None));
        let results = slots.settle(step, vec![drawn(token)]);
        assert!(results[0].deferred && results[0].tokens.is_empty() && results[0].failure.is_none());
        assert_eq!((results[1].deferred, &results[1].tokens[..]), (false, &[token][..]));
        plan = runs(&[0, 1]);
    }
    drop(gate);
    // With nothing else to run, the step waits for the compiler a while.
    let mut masks = Vec::new();
    while masks.len() < 2 {
        let mut step = lay_out(&mut slots, runs(&[0])).unwrap();
        // The last row, as often as it takes; then the token drawn.
        assert_eq!(step.batch.sequences[0].position, 2 + masks.len());
        slots.guide(&mut step, std::time::Duration::from_secs(60));
        let mask = step.draws.first().map(|draw| allowed(draw.allowed.as_ref().unwrap()));
        let token = mask.as_ref().and_then(|mask| mask.first().copied());
        let results = slots.settle(step, token.map(drawn).into_iter().collect());
        assert_eq!(results[0].deferred, mask.is_none());
        masks.extend(mask);
    }
    assert!(masks.iter().all(|mask| mask.len() == 1) && masks[0] != masks[1], "first a, then b: {masks:?}");
}

#[test]
fn a_grammar_that_cannot_be_compiled_fails_its_own_sequence_alone() {
    let (mut slots, gate) = gated();
    drop(gate);
    let mut plan = admission(Grammar::from_wire("start: (".to_owned()));
    let mut failure = None;
    while failure.is_none() {
        let mut step = lay_out(&mut slots, plan).unwrap();
        slots.guide(&mut step, std::time::Duration::ZERO);
        let results = slots.settle(step, vec![drawn(9)]);
        assert!(results.iter().skip(1).all(|other| other.tokens == [9] && other.failure.is_none()));
        failure = results[0].failure.clone();
        plan = runs(&[0]);
    }
    assert!(failure.unwrap().starts_with("the grammar: "));
    let mut step = lay_out(&mut slots, runs(&[0, 1])).unwrap();
    assert_eq!(step.batch.sequences.len(), 1, "it never runs again");
    slots.guide(&mut step, std::time::Duration::ZERO);
    let results = slots.settle(step, vec![drawn(9)]);
    assert_eq!((results[0].failure.is_some(), &results[1].tokens[..]), (true, &[9][..]));
    lay_out(&mut slots, StepPlan { release: vec![0], ..Default::default() }).unwrap();
}

/// A request for numbers in groups, such as `123-456-78`.
fn numbers(seed: u64) -> Request {
    let grammar = Grammar::regex("[0-9]{3}-[0-9]{3}(-[0-9]{2}){0,2}").unwrap();
    Request {
        sequence: NewSequence {
            sampling: Some(Sampling { temperature: 1.0, seed, logprobs: Some(1), ..Default::default() }),
            choice: seed as u32 % 3,
            banned: vec![2, 3],
            min_tokens: 40, // longer than the grammar allows
            ..sequence(0, Some(grammar))
        },
        generate: 12,
        chunk: 3,
        arrival: seed as usize % 7,
        drafts: 0,
    }
}

fn text(output: &Output) -> String {
    let file = testing::fixture("tiny-llama").model.text.tokenizer();
    let vocabulary = Vocabulary::from_json(&file).unwrap();
    let ends = |token: &&u32| ![2, 3].contains(*token);
    let bytes: Vec<u8> =
        output.tokens.iter().take_while(ends).flat_map(|token| vocabulary.text(*token).to_vec()).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn guided_sequences_together_say_what_each_says_alone_and_obey() {
    let mut driver = Driver::start("tiny-llama", 16, 64);
    let requests: Vec<_> = (0..16).map(numbers).collect();
    let together = driver.run(&requests);
    for (request, together) in requests.iter().zip(&together) {
        let alone = driver.run(&[Request { arrival: 0, chunk: usize::MAX, ..request.clone() }]).remove(0);
        assert_eq!(&alone, together);
        let text = text(together);
        let groups: Vec<&str> = text.split('-').collect();
        let digits = |group: &&str| group.bytes().all(|byte| byte.is_ascii_digit());
        assert!(groups.iter().all(digits), "{text}");
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        // Cut by length, the last group may be short.
        assert!([3, 3, 2, 2].starts_with(&lengths[..lengths.len() - 1]), "{text}");
    }
    let texts: std::collections::HashSet<String> = together.iter().map(text).collect();
    assert!(texts.len() > 1, "the grammar leaves a choice");
    driver.stop();
}

#[test]
fn a_guided_sequence_that_moves_continues_as_if_it_had_not() {
    let mut driver = Driver::start("tiny-llama", 4, 64);
    for seed in 0..4 {
        let request = numbers(seed);
        let whole = driver.run(std::slice::from_ref(&request)).remove(0);
        for at in [1, 4, 9] {
            let mut moved = request.clone();
            moved.sequence.tokens.extend(&whole.tokens[..at]);
            (moved.generate, moved.chunk) = (12 - at, 64);
            let rest = driver.run(&[moved]).remove(0);
            assert_eq!(rest.tokens, whole.tokens[at..]);
            assert_eq!(rest.logprobs, whole.logprobs[at..]);
        }
    }
    driver.stop();
}
