//! What a worker tells the scheduler that claims it: all that earlier ones told it, and never what was written since.

use volley_proto::v1::{
    BlockAppend, BlockCopy, Kind, NamedBlocks, NewSequence, SlotRun, StepPlan, result_message::Message,
};

use super::{
    driver::{Driver, next},
    guided::slots,
    plans::{LIMITS, lay_out, sequence},
};
use crate::engine::{Epoch, Slots, inventory::Inventory};

/// Blocks, each with its own number for a name.
fn named(blocks: &[u32]) -> NamedBlocks {
    let names = blocks.iter().flat_map(|&block| u128::from(block).to_le_bytes());
    NamedBlocks { group: 0, blocks: blocks.to_vec(), names: names.collect() }
}

/// The blocks that have names, in the order in which they are told.
fn told(slots: &Slots) -> Vec<u32> {
    match slots.inventory().as_slice() {
        [] => Vec::new(),
        [group] => {
            assert_eq!(*group, named(&group.blocks), "each with its name");
            group.blocks.clone()
        }
        several => panic!("{several:?}"),
    }
}

fn append(slot: u32, blocks: &[u32]) -> BlockAppend {
    BlockAppend { slot, group: 0, blocks: blocks.to_vec() }
}

/// Runs a plan whose deltas are these.
fn step(slots: &mut Slots, plan: StepPlan) {
    lay_out(slots, plan).unwrap();
}

#[test]
fn a_name_is_kept_until_its_block_is_written_by_a_run_a_guess_or_a_copy() {
    let mut slots = slots(LIMITS);
    step(&mut slots, StepPlan { full: vec![named(&[0, 1, 2, 3])], ..Default::default() });
    assert_eq!(told(&slots), [0, 1, 2, 3]);
    // 16 of its tokens are found, two follow, and with the guesses after them it comes to the third block.
    let found = NewSequence { computed: 16, ..sequence(0, 18) };
    let admitted = StepPlan { admit: vec![found], append: vec![append(0, &[2, 0, 3])], ..Default::default() };
    step(&mut slots, admitted);
    assert_eq!(told(&slots), [0, 1, 2, 3], "a block that is only handed out holds what it held");
    let run = SlotRun { slot: 0, tokens: 2, drafts: 0 };
    step(&mut slots, StepPlan { run: vec![run], ..Default::default() });
    assert_eq!(told(&slots), [1, 2, 3], "what is found isn't written, what follows is");
    let copy = BlockCopy { group: 0, from: 2, to: 3 };
    step(&mut slots, StepPlan { copy: vec![copy], ..Default::default() });
    assert_eq!(told(&slots), [1, 2]);
}

#[test]
fn wrong_guesses_cost_a_block_its_name_too() {
    let mut slots = slots(LIMITS);
    // The prompt repeats itself, so what follows is guessed from it: rows up to the second block.
    let tokens: Vec<u32> = [1, 2, 3, 4, 5].into_iter().cycle().take(14).collect();
    let admit = NewSequence { tokens, ..sequence(0, 14) };
    let plan = StepPlan {
        full: vec![named(&[0, 1, 2])],
        admit: vec![admit],
        append: vec![append(0, &[0, 1])],
        run: vec![SlotRun { slot: 0, tokens: 14, drafts: 6 }],
        ..Default::default()
    };
    let rows = lay_out(&mut slots, plan).unwrap().batch.tokens.len();
    assert!(rows > 16, "{rows} rows");
    assert_eq!(told(&slots), [2]);
}

#[test]
fn a_plan_that_hands_a_named_block_out_and_writes_it_leaves_it_without_a_name() {
    let mut slots = slots(LIMITS);
    let plan = StepPlan {
        full: vec![named(&[0, 1])],
        admit: vec![sequence(0, 5)],
        append: vec![append(0, &[1])],
        run: vec![SlotRun { slot: 0, tokens: 5, drafts: 0 }],
        ..Default::default()
    };
    step(&mut slots, plan);
    assert_eq!(told(&slots), [0]);
}

#[test]
fn what_was_let_go_first_is_told_first_and_a_tail_before_its_head() {
    let mut slots = slots(LIMITS);
    let holds = |slot, blocks: &[u32]| StepPlan {
        admit: vec![sequence(slot, 20)],
        append: vec![append(slot, blocks)],
        ..Default::default()
    };
    step(&mut slots, holds(0, &[2, 0]));
    step(&mut slots, holds(1, &[3, 1]));
    step(&mut slots, StepPlan { full: vec![named(&[0, 1, 2, 3])], ..Default::default() });
    step(&mut slots, StepPlan { release: vec![1], ..Default::default() });
    slots.clear();
    assert_eq!(told(&slots), [1, 3, 0, 2]);
    let mut inventory = Inventory::default();
    inventory.name(&named(&[7, 8, 9])).unwrap();
    assert_eq!(inventory.report(2), [named(&[8, 9])], "the newest, where there are too many");
}

#[test]
fn names_that_do_not_fit_their_blocks_are_refused() {
    let short = NamedBlocks { names: vec![0; 17], ..named(&[0]) };
    let other_group = NamedBlocks { group: 1, ..named(&[0]) };
    for (full, problem) in [
        (named(&[4]), "block 4; there are 4"),
        (other_group, "KV group 1; there is one"),
        (short, "17 bytes of names for 1 blocks"),
    ] {
        let error = lay_out(&mut slots(LIMITS), StepPlan { full: vec![full], ..Default::default() });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_claim_is_answered_with_the_inventory_after_what_is_in_flight() {
    let driver = Driver::start("tiny-llama", 2, 64);
    let epoch = |claim| Epoch { claim, connection: 1 };
    let hello = |claim| {
        let (mut received, ended) = driver.claim(epoch(claim));
        let Ok(Message::Hello(hello)) = next(&mut received) else { panic!("no hello") };
        (hello.inventory, received, ended)
    };
    let admit = NewSequence {
        kind: Kind::Generate.into(),
        tokens: vec![1, 2, 3],
        prompt_tokens: 3,
        ..Default::default()
    };
    let runs = |block| StepPlan {
        step_id: 2,
        admit: vec![admit.clone()],
        append: vec![append(0, &[block])],
        run: vec![SlotRun { slot: 0, tokens: 3, drafts: 0 }],
        ..Default::default()
    };
    let (none, _received, _ended) = hello(1);
    assert_eq!(none, []);
    driver.send(epoch(1), StepPlan { step_id: 1, full: vec![named(&[4, 5, 6])], ..Default::default() });
    driver.send(epoch(1), runs(5));
    let (inventory, _received, _ended) = hello(2);
    assert_eq!(inventory, [named(&[4, 6])], "the step in flight wrote one");
    driver.send(epoch(1), runs(4)); // of an older epoch: it is dropped
    driver.send(epoch(2), runs(6));
    driver.send(epoch(2), StepPlan { step_id: 3, full: vec![named(&[6])], ..Default::default() });
    let (inventory, _received, _ended) = hello(3);
    assert_eq!(inventory, [named(&[4, 6])], "one from each of the two before");
    driver.stop();
}
