//! Guesses change how many steps a stream takes, and nothing else that is counted.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

mod fake;

use std::{collections::VecDeque, sync::Arc};

use fake::{FakeWorker, Stream, alone};
use volley_proto::v1::{self, Kind};
use volley_scheduler::core::{
    planner::{Limits, Planner},
    sequence::{Sequence, Spec},
    types::{LinkId, SequenceKey, TokenId},
};

const CONTEXT: usize = 400;
const DRAFTS: usize = 8;

fn limits(drafts: usize) -> Limits {
    Limits {
        slots: 4,
        batch_tokens: 64,
        block_tokens: 4,
        blocks: vec![400],
        context: CONTEXT,
        depth: 2,
        drafts,
        always_guess: true,
        prefix_cache: true,
        max_waiting: 100,
        max_waiting_tokens: 10_000,
    }
}

/// What became of sequences that ran to their end, one step ahead.
struct Ran {
    planner: Planner,
    streams: Vec<Stream>,
    /// What the outputs tell of guesses.
    drafted: v1::Drafted,
    steps: usize,
    /// Tokens that the worker drew.
    drawn: usize,
}

fn run(drafts: usize, sampling: &v1::Sampling, max_tokens: usize, sequences: u32) -> Ran {
    let (mut planner, mut worker) = (Planner::new(limits(drafts)), FakeWorker::new(4, 64));
    let mut out = Vec::new();
    for choice in 0..sequences {
        let spec = Spec { kind: Kind::Generate, sampling: sampling.clone(), max_tokens, ..Spec::default() };
        let key = SequenceKey { link: LinkId(1), request: 1, attempt: 0, choice };
        let tokens: Vec<_> = (0..10).map(TokenId).collect();
        planner.submit(vec![Sequence::new(key, choice.into(), Arc::new(spec), tokens, 10)], &mut out);
    }
    let mut streams = vec![Stream::default(); sequences as usize];
    let (mut steps, mut drawn, mut drafted) = (0, 0, v1::Drafted::default());
    let mut plans = VecDeque::new();
    while !planner.is_idle() {
        while let Some(plan) = planner.plan() {
            plans.push_back(plan);
        }
        let result = worker.step(plans.pop_front().unwrap());
        steps += 1;
        drawn += result.slots.iter().map(|slot| slot.tokens.len()).sum::<usize>();
        planner.complete(result, &mut out).unwrap();
        for output in out.drain(..) {
            let told = output.message.drafted.unwrap_or_default();
            drafted.tokens += told.tokens;
            drafted.accepted += told.accepted;
            streams[output.key.choice as usize].extend(output.message);
        }
    }
    Ran { planner, streams, drafted, steps, drawn }
}

fn undisturbed(sampling: &v1::Sampling, max_tokens: usize, choice: u32) -> Stream {
    let submission = v1::Submission {
        kind: Kind::Generate.into(),
        sampling: Some(sampling.clone()),
        max_tokens: max_tokens as u32,
        ..Default::default()
    };
    alone(&(0..10).collect::<Vec<_>>(), &submission, choice, CONTEXT)
}

#[test]
fn guesses_save_steps_and_are_counted_apart_from_what_is_computed() {
    let sampling = v1::Sampling { seed: 3, ..Default::default() };
    for max_tokens in [2, 3, 9, 10, 200] {
        let ran = run(DRAFTS, &sampling, max_tokens, 1);
        assert_eq!(ran.streams[0], undisturbed(&sampling, max_tokens, 0));
        assert_eq!(ran.drawn, max_tokens, "nothing is drawn beyond the last token");
        let (totals, told) = (ran.planner.totals(), ran.drafted);
        assert_eq!((totals.draft_tokens, totals.accepted_tokens), (told.tokens.into(), told.accepted.into()));
        // The last token drawn never runs; wrong guesses count as neither computed nor wasted.
        assert_eq!((totals.first_tokens, totals.wasted_tokens), (10 + max_tokens as u64 - 1, 0));
        let load = ran.planner.load();
        assert_eq!(load.free_blocks, load.total_blocks);
    }
    let (with, without) = (run(DRAFTS, &sampling, 200, 1), run(0, &sampling, 200, 1));
    assert!(with.steps < 150 && without.steps >= 200, "{} steps, {} without", with.steps, without.steps);
    assert_eq!(without.drafted, v1::Drafted::default());
}

#[test]
fn sequences_side_by_side_each_get_their_own_stream() {
    let sampling = v1::Sampling { seed: 8, logprobs: Some(0), ..Default::default() };
    let ran = run(DRAFTS, &sampling, 120, 4);
    for (choice, stream) in (0..).zip(&ran.streams) {
        assert_eq!(*stream, undisturbed(&sampling, 120, choice));
    }
    assert!(ran.drafted.accepted > 20);
}

#[test]
fn what_depends_on_more_than_the_tokens_before_is_not_guessed() {
    let sampling = v1::Sampling { seed: 3, mirostat_target: Some(3.0), ..Default::default() };
    let ran = run(DRAFTS, &sampling, 50, 1);
    assert_eq!(ran.streams[0], undisturbed(&sampling, 50, 0));
    assert_eq!(ran.planner.totals().draft_tokens, 0);
}
