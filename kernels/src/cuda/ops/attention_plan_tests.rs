use super::*;

fn shape(heads: usize, kv_heads: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads,
        dim: 128,
        page_tokens: 16,
        e4m3: false,
        window: None,
        softcap: None,
        scale: 0.1,
    }
}

fn h100() -> Properties {
    Properties { name: "H100".into(), arch: 90, processors: 132, l2_bytes: 50 << 20, shared_bytes: 227 << 10 }
}

const FREE: AttentionLimits = AttentionLimits { invariant: false, scratch: usize::MAX, items: usize::MAX };
const INVARIANT: AttentionLimits =
    AttentionLimits { invariant: true, scratch: usize::MAX, items: usize::MAX };

/// A plan for sequences of (position, tokens).
fn plan(shape: &AttentionShape, sequences: &[(usize, usize)], limits: &AttentionLimits) -> AttentionPlan {
    let pages: Vec<Vec<u32>> = sequences
        .iter()
        .map(|(at, new)| (0..(at + new).div_ceil(shape.page_tokens) as u32).collect())
        .collect();
    let mut row = 0;
    let sequences: Vec<_> = sequences
        .iter()
        .zip(&pages)
        .map(|(&(position, tokens), pages)| {
            row += tokens;
            AttentionSequence { first_row: row - tokens, tokens, position, pages }
        })
        .collect();
    AttentionPlan::new(shape, &sequences, limits, &h100()).unwrap()
}

/// Every row of every sequence sees every key up to its own exactly once, in parts that the merges name.
fn covers(plan: &AttentionPlan, sequences: &[(usize, usize)], window: usize) {
    let group = plan.shape.group();
    for (s, &(position, tokens)) in sequences.iter().enumerate() {
        for row in 0..tokens * group {
            let at = position + row / group;
            let mine = |item: &&[i32; 6]| {
                item[0] as usize == s && (item[1]..item[1] + item[2]).contains(&(row as i32))
            };
            let mut ranges: Vec<_> =
                plan.items.iter().filter(mine).map(|item| (item[3] as usize, item[4] as usize)).collect();
            ranges.sort_unstable();
            assert!(ranges[0].0 <= (at + 1).saturating_sub(window) && ranges[ranges.len() - 1].1 > at);
            assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{ranges:?}");
            if plan.segment > 0 {
                assert!(ranges.iter().all(|range| range.0 % plan.segment == 0));
            }
        }
    }
    let slots: usize = plan.merges.iter().map(|merge| merge[4] as usize).sum();
    assert_eq!(slots, plan.slots);
    for item in plan.items.iter().filter(|item| item[5] >= 0) {
        let owner =
            plan.merges.iter().find(|merge| (merge[3]..merge[3] + merge[4]).contains(&item[5])).unwrap();
        assert_eq!((owner[1], owner[2]), (item[1], item[2]));
    }
}

#[test]
fn every_key_is_seen_once() {
    for limits in [FREE, INVARIANT] {
        for sequences in [
            &[(0, 1)][..],
            &[(32767, 1)],
            &[(5, 1), (8191, 1), (0, 1), (700, 1)],
            &[(100, 50), (0, 1), (9000, 700)],
        ] {
            covers(&plan(&shape(32, 8), sequences, &limits), sequences, usize::MAX);
        }
    }
}

#[test]
fn a_long_sequence_alone_keeps_every_sm_busy() {
    for limits in [FREE, INVARIANT] {
        let plan = plan(&shape(32, 8), &[(32767, 1)], &limits);
        assert!(plan.items.len() * 8 >= 132, "{} items", plan.items.len());
    }
}

#[test]
fn a_full_batch_ends_within_a_tenth_of_the_ideal() {
    // 64 × 8k keys over 8 heads: simulated, items in order onto the blocks that run at a time.
    let plan = plan(&shape(32, 8), &[(8191, 1); 64], &FREE);
    let mut ends = vec![0usize; plan.resident(&h100())];
    for item in &plan.items {
        for _ in 0..8 {
            let soonest = ends.iter_mut().min().unwrap();
            *soonest += (item[4] - item[3]) as usize;
        }
    }
    let ideal = 64 * 8 * 8192 / ends.len();
    assert!(ends.iter().max().unwrap() * 10 <= ideal * 11, "{:?} over {ideal}", ends.iter().max());
}

#[test]
fn short_sequences_are_not_cut() {
    let plan = plan(&shape(32, 8), &[(100, 1); 256], &FREE);
    assert_eq!((plan.items.len(), plan.slots), (256, 0));
}

#[test]
fn without_scratch_memory_nothing_is_cut() {
    let plan = plan(&shape(32, 8), &[(32767, 1)], &AttentionLimits { scratch: 0, ..FREE });
    assert_eq!((plan.items.len(), plan.slots, plan.scratch(plan.slots)), (1, 0, 0));
    let some = AttentionLimits { scratch: 5 * 16 * 8 * 130, ..FREE };
    let plan = self::plan(&shape(32, 8), &[(32767, 1)], &some);
    assert!(plan.slots > 1 && plan.scratch(plan.slots) <= some.scratch);
}

#[test]
fn pages_outside_the_window_are_never_touched() {
    let shape = AttentionShape { window: Some(100), ..shape(8, 8) };
    let mut pages = vec![u32::MAX; 40];
    for (i, page) in pages.iter_mut().enumerate().skip((500 - 99) / 16) {
        *page = i as u32;
    }
    let sequence = AttentionSequence { first_row: 0, tokens: 1, position: 500, pages: &pages };
    let plan = AttentionPlan::new(&shape, &[sequence], &FREE, &h100()).unwrap();
    assert_eq!(plan.pages, 32);
    covers(&plan, &[(500, 1)], 100);
}

#[test]
fn the_kernel_follows_the_rows_and_the_mode() {
    let kernel = |heads, sequences: &[_], limits: &_| plan(&shape(heads, 8), sequences, limits).kernel;
    assert_eq!(kernel(32, &[(10, 1)], &FREE), AttentionKernel::Small);
    assert_eq!(kernel(32, &[(10, 200)], &FREE), AttentionKernel::Hopper);
    assert_eq!(kernel(32, &[(10, 200)], &INVARIANT), AttentionKernel::Large);
    assert_eq!(kernel(8 * 48, &[(10, 1)], &FREE), AttentionKernel::Large);
}

#[test]
fn a_plan_fits_a_larger_capacity_and_no_smaller_one() {
    let plan = plan(&shape(32, 8), &[(5000, 1), (3, 1)], &FREE);
    let mut capacity = plan.capacity();
    let lists = plan.lists(&capacity).unwrap().len();
    capacity.items += 7;
    assert_eq!(plan.lists(&capacity).unwrap().len(), lists + 7 * ITEM_WORDS);
    capacity.sequences = 1;
    assert!(plan.lists(&capacity).is_err());
}

#[test]
fn wrong_shapes_are_errors() {
    let wrong =
        |shape: AttentionShape| AttentionPlan::new(&shape, &[], &FREE, &h100()).unwrap_err().to_string();
    assert!(wrong(AttentionShape { dim: 72, ..shape(8, 8) }).contains("not of 72"));
    assert!(wrong(shape(9, 8)).contains("9 heads over 8"));
    assert!(wrong(AttentionShape { page_tokens: 24, ..shape(8, 8) }).contains("24 tokens"));
    let short = AttentionSequence { first_row: 0, tokens: 1, position: 16, pages: &[0] };
    let error = AttentionPlan::new(&shape(8, 8), &[short], &FREE, &h100()).unwrap_err().to_string();
    assert!(error.contains("need 2 pages"), "{error}");
}
