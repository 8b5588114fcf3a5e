use volley_kernels::{BlockId, Drawn};
use volley_proto::v1::{BlockAppend, BlockCopy, Kind, NewSequence, Sampling, ScoreRange, SlotRun, StepPlan};

use crate::engine::{
    Limits, Slots,
    slots::{PlanError, Step},
};

pub(super) const LIMITS: Limits =
    Limits { sequences: 2, rows: 32, blocks: 4, context: 40, vocab: 100, pooling: None };

pub(super) fn sequence(slot: u32, tokens: u32) -> NewSequence {
    NewSequence {
        slot,
        kind: Kind::Generate.into(),
        tokens: (0..tokens).collect(),
        prompt_tokens: tokens,
        sampling: Some(Sampling::default()),
        ..Default::default()
    }
}

/// A plan's step, without a draft model.
pub(super) fn lay_out(slots: &mut Slots, plan: StepPlan) -> Result<Step, PlanError> {
    let planned = slots.apply(plan)?;
    slots.lay_out(planned)
}

fn append(slot: u32, blocks: &[u32]) -> BlockAppend {
    BlockAppend { slot, group: 0, blocks: blocks.to_vec() }
}

fn run(slot: u32, tokens: u32) -> SlotRun {
    SlotRun { slot, tokens, drafts: 0 }
}

/// Slot 0 holds a sequence of 20 tokens in two blocks, 16 of them computed.
fn started() -> Slots {
    let mut slots = super::guided::slots(LIMITS);
    let admit = vec![sequence(0, 20)];
    let plan =
        StepPlan { admit, append: vec![append(0, &[0, 1])], run: vec![run(0, 16)], ..Default::default() };
    lay_out(&mut slots, plan).unwrap();
    slots
}

#[test]
fn a_plan_that_contradicts_itself_is_refused() {
    let plan = StepPlan::default;
    let cases = [
        (StepPlan { release: vec![1], ..plan() }, "release of slot 1, which is empty"),
        (StepPlan { release: vec![0, 0], ..plan() }, "release of slot 0, which is empty"),
        (StepPlan { release: vec![2], ..plan() }, "slot 2; there are 2"),
        (StepPlan { admit: vec![sequence(0, 1)], ..plan() }, "admission to slot 0, which is taken"),
        (StepPlan { admit: vec![sequence(u32::MAX, 1)], ..plan() }, "slot 4294967295; there are 2"),
        (StepPlan { admit: vec![sequence(1, 0)], ..plan() }, "0 tokens computed of 0 known"),
        (
            StepPlan { admit: vec![NewSequence { computed: 3, ..sequence(1, 3) }], ..plan() },
            "3 tokens computed of 3",
        ),
        (
            StepPlan { admit: vec![NewSequence { prompt_tokens: 0, ..sequence(1, 3) }], ..plan() },
            "0 prompt tokens",
        ),
        (
            StepPlan { admit: vec![NewSequence { prompt_tokens: 4, ..sequence(1, 3) }], ..plan() },
            "4 prompt tokens",
        ),
        (StepPlan { append: vec![append(1, &[0])], ..plan() }, "slot 1 is empty"),
        (StepPlan { append: vec![append(0, &[4])], ..plan() }, "block 4; there are 4"),
        (StepPlan { append: vec![append(0, &[2, 3, 2])], ..plan() }, "a table of 5 blocks; there are 4"),
        (
            StepPlan { append: vec![BlockAppend { group: 1, ..append(0, &[2]) }], ..plan() },
            "KV group 1; there is one",
        ),
        (StepPlan { copy: vec![BlockCopy { group: 0, from: 0, to: 9 }], ..plan() }, "block 9; there are 4"),
        (
            StepPlan { copy: vec![BlockCopy { group: 7, from: 0, to: 1 }], ..plan() },
            "KV group 7; there is one",
        ),
        (StepPlan { run: vec![run(1, 1)], ..plan() }, "slot 1 is empty"),
        (StepPlan { run: vec![run(0, 1), run(0, 1)], ..plan() }, "slot 0 runs twice"),
        (StepPlan { run: vec![run(0, 0)], ..plan() }, "run of 0 tokens at 16; expected 1 to 4"),
        (StepPlan { run: vec![run(0, 5)], ..plan() }, "run of 5 tokens at 16; expected 1 to 4"),
        (
            StepPlan {
                admit: vec![sequence(1, 33)],
                append: vec![append(1, &[1, 2, 3])],
                run: vec![run(1, 33)],
                ..plan()
            },
            "more than 32 rows",
        ),
        (
            StepPlan {
                admit: vec![sequence(1, 17)],
                append: vec![append(1, &[2])],
                run: vec![run(1, 17)],
                ..plan()
            },
            "1 blocks of 16 tokens cannot hold 17 tokens",
        ),
        (
            StepPlan {
                admit: vec![NewSequence { computed: 40, ..sequence(1, 41) }],
                append: vec![append(1, &[0, 1, 2])],
                run: vec![run(1, 1)],
                ..plan()
            },
            "run to token 41 of a context of 40",
        ),
    ];
    for (plan, expected) in cases {
        let error = lay_out(&mut started(), StepPlan { step_id: 7, ..plan }).err().unwrap().to_string();
        assert!(error.starts_with("step 7: ") && error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_table_may_name_every_block_there_is() {
    let mut slots = started();
    lay_out(&mut slots, StepPlan { append: vec![append(0, &[2, 3])], ..Default::default() }).unwrap();
}

#[test]
fn what_one_sequence_cannot_have_fails_that_sequence_alone() {
    let sampling = |change: fn(&mut Sampling)| {
        let mut sampling = Sampling::default();
        change(&mut sampling);
        NewSequence { sampling: Some(sampling), ..sequence(0, 3) }
    };
    const FILTERS: &str = "top_p, min_p and typical_p are expected between 0 and 1";
    const FINITE: &str = "penalties and biases are expected to be finite";
    const POSITIVE: &str = "repetition_penalty, mirostat_target and mirostat_rate are expected above 0";
    let cases = [
        (
            NewSequence { tokens: vec![1, 100, 2], ..sequence(0, 3) },
            "token 100 is outside the vocabulary of 100",
        ),
        (NewSequence { banned: vec![100], ..sequence(0, 3) }, "token 100 is outside the vocabulary of 100"),
        (NewSequence { kind: Kind::Embed.into(), ..sequence(0, 3) }, "this worker computes no embeddings"),
        (NewSequence { kind: 99, ..sequence(0, 3) }, "the kind of the sequence is not known to this worker"),
        (NewSequence { adapter: "a".into(), ..sequence(0, 3) }, "this worker has no adapter \"a\""),
        (sampling(|s| s.temperature = f32::NAN), "temperature NaN; expected a number from 0"),
        (sampling(|s| s.temperature = -1.0), "temperature -1; expected a number from 0"),
        (sampling(|s| s.top_p = Some(1.5)), FILTERS),
        (sampling(|s| s.min_p = Some(f32::NAN)), FILTERS),
        (sampling(|s| s.typical_p = Some(-0.1)), FILTERS),
        (sampling(|s| s.presence_penalty = f32::NAN), FINITE),
        (sampling(|s| (s.bias_tokens, s.bias_values) = (vec![1], vec![f32::INFINITY])), FINITE),
        (sampling(|s| s.repetition_penalty = Some(0.0)), POSITIVE),
        (sampling(|s| s.mirostat_target = Some(f32::INFINITY)), POSITIVE),
        (sampling(|s| s.mirostat_rate = Some(0.0)), POSITIVE),
        (sampling(|s| s.bias_tokens = vec![1]), "each bias is expected to have a token"),
        (
            sampling(|s| (s.bias_tokens, s.bias_values) = (vec![100], vec![1.0])),
            "token 100 is outside the vocabulary of 100",
        ),
    ];
    for (bad, expected) in cases {
        let mut slots = super::guided::slots(LIMITS);
        let plan = StepPlan {
            admit: vec![bad, sequence(1, 2)],
            append: vec![append(0, &[0]), append(1, &[1])],
            run: vec![run(0, 3), run(1, 2)],
            ..Default::default()
        };
        let step = lay_out(&mut slots, plan).unwrap();
        assert_eq!((&step.batch.tokens[..], step.draws.len()), (&[0, 1][..], 1));
        let results = slots.settle(step, vec![Drawn { token: 5, ..Default::default() }]);
        assert_eq!(results[0].failure.as_deref(), Some(expected));
        assert_eq!((results[1].failure.as_deref(), &results[1].tokens[..]), (None, &[5][..]));
        lay_out(&mut slots, StepPlan { release: vec![0], run: vec![run(1, 1)], ..Default::default() })
            .unwrap();
    }
}

#[test]
fn a_step_draws_only_where_a_sequence_reached_its_end() {
    let mut slots = started();
    let step = lay_out(&mut slots, StepPlan { run: vec![run(0, 3)], ..Default::default() }).unwrap();
    assert_eq!((step.batch.sequences[0].position, step.draws.len()), (16, 0));
    assert!(slots.settle(step, vec![])[0].tokens.is_empty());

    let step = lay_out(&mut slots, StepPlan { run: vec![run(0, 1)], ..Default::default() }).unwrap();
    assert_eq!((&step.rows[..], step.draws[0].position), (&[0][..], 20));
    slots.settle(step, vec![Drawn { token: 42, ..Default::default() }]);

    let step = lay_out(&mut slots, StepPlan { run: vec![run(0, 1)], ..Default::default() }).unwrap();
    assert_eq!(step.batch.tokens, [42], "the drawn token was kept");
    assert_eq!(step.batch.sequences[0].blocks, [BlockId(0), BlockId(1)]);
}

#[test]
fn stop_tokens_are_banned_before_min_tokens() {
    let mut slots = super::guided::slots(LIMITS);
    let mut admit = sequence(0, 3);
    (admit.prompt_tokens, admit.banned, admit.min_tokens) = (2, vec![9], 2);
    let plan = StepPlan { admit: vec![admit], append: vec![append(0, &[0])], ..Default::default() };
    lay_out(&mut slots, plan).unwrap();
    let mut banned = Vec::new();
    for rows in [3, 1] {
        let mut step =
            lay_out(&mut slots, StepPlan { run: vec![run(0, rows)], ..Default::default() }).unwrap();
        banned.push(std::mem::take(&mut step.draws[0].banned));
        slots.settle(step, vec![Drawn { token: 1, ..Default::default() }]);
    }
    assert_eq!(banned, [vec![9], vec![]]);
}

#[test]
fn scores_come_from_the_rows_before_them() {
    let mut slots = super::guided::slots(LIMITS);
    let score = Some(ScoreRange { from: 0, alternatives: 1000 });
    let admit = NewSequence { kind: Kind::Score.into(), score, ..sequence(0, 5) };
    let plan = |rows| StepPlan { run: vec![run(0, rows)], ..Default::default() };
    lay_out(&mut slots, StepPlan { admit: vec![admit], append: vec![append(0, &[0])], ..Default::default() })
        .unwrap();
    let step = lay_out(&mut slots, plan(2)).unwrap();
    let given =
        |step: &crate::engine::slots::Step| step.draws.iter().map(|draw| draw.given).collect::<Vec<_>>();
    assert_eq!((&step.rows[..], given(&step)), (&[0, 1][..], vec![Some(1), Some(2)]));
    assert_eq!(step.draws[0].logprobs, Some(LIMITS.vocab as u32), "no more than the vocabulary has");
    let step = lay_out(&mut slots, plan(3)).unwrap();
    assert_eq!((&step.rows[..], given(&step)), (&[0, 1][..], vec![Some(3), Some(4)]), "nothing is drawn");
}
