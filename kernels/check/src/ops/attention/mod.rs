//! Attention over a paged cache: decoding, prefill and the bits that both must share.

mod speeds;
mod world;

use volley_kernels::cuda::ops::AttentionShape;

use super::Operation;
use crate::{Case, Output, Random, Trial};
use world::{FREE, Limits, Run, World};

/// Probabilities and the output are rounded to bf16; a few scores dominate a sum.
const TOLERANCE: f64 = 8e-3;
const DIMS: [usize; 5] = [64, 80, 96, 128, 256];

pub(super) fn operation() -> Operation {
    Operation {
        name: "attention",
        kernels: &[
            "attention_d64_bf16_r16",
            "attention_d64_bf16_r64",
            "attention_d64_e4m3_r16",
            "attention_d64_e4m3_r64",
            "attention_d80_bf16_r16",
            "attention_d80_bf16_r64",
            "attention_d80_e4m3_r16",
            "attention_d80_e4m3_r64",
            "attention_d96_bf16_r16",
            "attention_d96_bf16_r64",
            "attention_d96_e4m3_r16",
            "attention_d96_e4m3_r64",
            "attention_d128_bf16_r16",
            "attention_d128_bf16_r64",
            "attention_d128_e4m3_r16",
            "attention_d128_e4m3_r64",
            "attention_d256_bf16_r16",
            "attention_d256_bf16_r32",
            "attention_d256_e4m3_r16",
            "attention_d256_e4m3_r32",
            "attention_merge",
        ],
        cases,
        any,
        speeds: speeds::speeds,
    }
}

pub(super) fn hopper() -> Operation {
    Operation {
        name: "attention_sm90",
        kernels: &[
            "attention_sm90_d64",
            "attention_sm90_d80",
            "attention_sm90_d96",
            "attention_sm90_d128",
            "attention_sm90_d256",
            "attention_merge",
        ],
        cases: hopper_cases,
        any: any_hopper,
        speeds: speeds::hopper_speeds,
    }
}

// --- Cases

fn shape(group: usize, kv_heads: usize, dim: usize, page_tokens: usize, e4m3: bool) -> AttentionShape {
    // e4m3 elements reach 2 before scaling; bf16 ones are normal.
    let scale = 1.0 / (dim as f32).sqrt();
    AttentionShape {
        heads: group * kv_heads,
        kv_heads,
        dim,
        page_tokens,
        e4m3,
        window: None,
        softcap: None,
        scale,
    }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for dim in DIMS {
        for e4m3 in [false, true] {
            let decode = shape(random.pick(&[1, 3, 4, 8]), 2, dim, random.pick(&[16, 32]), e4m3);
            // One key, page and tile borders on both sides, two parts.
            let lens = [1, random.pick(&[16, 17]), random.pick(&[64, 65]), random.between(129, 260)];
            cases.push(case("decode", decode, lens.map(|len| (len - 1, 1)).to_vec(), FREE));
            let chunks = shape(random.pick(&[1, 5]), 1, dim, random.pick(&[16, 48]), e4m3);
            let runs =
                vec![(0, 1), (random.between(0, 40), random.between(17, 40)), (random.between(64, 140), 18)];
            cases.push(case("chunks", chunks, runs, FREE).on(&[80]));
        }
    }
    let window = |s| AttentionShape { window: Some(50), ..s };
    let softcap = |s| AttentionShape { softcap: Some(2.0), ..s };
    for (e4m3, dim) in [(false, 64), (true, 128)] {
        let s = shape(4, 1, dim, 16, e4m3);
        cases.push(case("window", window(s), vec![(3, 1), (49, 1), (300, 1)], FREE));
        cases.push(case("window, chunks", window(s), vec![(3, 20), (160, 9)], FREE).on(&[80]));
        cases.push(case("soft-cap", softcap(s), vec![(3, 1), (130, 2)], FREE));
        cases.push(case("soft-cap and window, chunks", window(softcap(s)), vec![(40, 20)], FREE).on(&[80]));
    }
    cases.push(case("48 query heads on one", shape(48, 1, 64, 16, false), vec![(0, 1), (100, 1)], FREE));
    let graph = Limits { graph: true, ..FREE };
    cases.push(case(
        "in lists with room for more",
        shape(4, 2, 64, 16, false),
        vec![(299, 1), (4, 1)],
        graph,
    ));
    for (e4m3, dim) in [(false, 64), (true, 64), (false, 256)] {
        cases.push(one_row_many_ways(shape(4, 1, dim, 16, e4m3)));
        cases.push(one_row_many_ways(window(shape(2, 1, dim, 16, e4m3))));
    }
    cases.extend((0..6).map(|_| any(random)));
    for _ in 0..6 {
        let (group, kv_heads, dim) = (random.between(1, 9), random.between(1, 8), random.pick(&DIMS));
        let s = shape(group, kv_heads, dim, 16 * random.between(1, 4), random.between(0, 1) == 1);
        let s = if random.between(0, 2) == 0 {
            AttentionShape { window: Some(random.between(1, 3000)), ..s }
        } else {
            s
        };
        let runs =
            (0..random.between(1, 6)).map(|_| (random.between(0, 4000), random.between(1, 3))).collect();
        cases.push(large("decode", s, runs));
        let runs = (0..3).map(|_| (random.between(0, 900), random.between(1, 300))).collect();
        cases.push(large("chunks", s, runs));
    }
    cases
}

/// Some heads, and some sequences of which each starts near the border of a page.
fn any(random: &mut Random) -> Case {
    let (group, kv_heads, e4m3) = (random.between(1, 9), random.between(1, 2), random.between(0, 1) == 1);
    let s = any_shape(random, group, kv_heads, e4m3);
    let most = random.pick(&[1, 1, 3, 20]);
    let runs = (0..random.between(1, 4)).map(|_| any_run(random, s.page_tokens, 1, most)).collect();
    let (invariant, parts) = (random.between(0, 1) == 1, random.between(0, 1) == 1);
    // Whether another plan can take a plan's place depends on the kernel, and that on the tokens.
    let graph = most == 1 && !invariant && random.between(0, 1) == 1;
    case("any", s, runs, Limits { invariant, parts, graph }).on(&[80, 90])
}

fn any_shape(random: &mut Random, group: usize, kv_heads: usize, e4m3: bool) -> AttentionShape {
    let s = shape(group, kv_heads, random.pick(&DIMS), 16 * random.between(1, 4), e4m3);
    let window = random.pick(&[None, None, Some(1), Some(17), Some(64), Some(100)]);
    AttentionShape { window, softcap: random.pick(&[None, None, Some(2.0)]), ..s }
}

fn any_run(random: &mut Random, page_tokens: usize, least: usize, most: usize) -> Run {
    let border = page_tokens * random.between(0, 6);
    ((border + random.between(0, 2)).saturating_sub(1), random.between(least, most))
}

/// More than 64 rows, from where on the kernel is chosen.
fn any_hopper(random: &mut Random) -> Case {
    let (group, kv_heads) = (random.between(3, 5), random.between(1, 2));
    let s = any_shape(random, group, kv_heads, false);
    let mut runs = vec![any_run(random, s.page_tokens, 22, 40)];
    runs.extend((0..random.between(0, 2)).map(|_| any_run(random, s.page_tokens, 1, 9)));
    case("any", s, runs, Limits { parts: random.between(0, 1) == 1, ..FREE })
}

fn hopper_cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for dim in DIMS {
        let s = shape(random.pick(&[3, 4]), 1, dim, random.pick(&[16, 64]), false);
        cases.push(case("chunks", s, vec![(0, 2), (random.between(0, 60), random.between(22, 45))], FREE));
    }
    // More tiles than stages, by one block.
    let whole = Limits { parts: false, ..FREE };
    cases.push(case("round the ring", shape(4, 1, 64, 16, false), vec![(600, 20)], whole));
    cases.push(case("round the ring", shape(4, 1, 256, 16, false), vec![(250, 17)], whole));
    let s = shape(4, 1, 64, 16, false);
    cases.push(case("parts", s, vec![(530, 17)], FREE));
    cases.push(case("window", AttentionShape { window: Some(50), ..s }, vec![(170, 40)], FREE));
    cases.push(case("soft-cap", AttentionShape { softcap: Some(2.0), ..s }, vec![(100, 20)], FREE));
    cases.extend((0..4).map(|_| any_hopper(random)));
    for _ in 0..6 {
        let s = shape(
            random.between(1, 8),
            random.between(1, 4),
            random.pick(&DIMS),
            16 * random.between(1, 4),
            false,
        );
        let runs = (0..3).map(|_| (random.between(0, 900), random.between(64, 300))).collect();
        cases.push(large("chunks", s, runs));
    }
    cases
}

fn label(what: &str, shape: &AttentionShape, runs: &[Run]) -> String {
    let AttentionShape { kv_heads, dim, page_tokens, e4m3, .. } = shape;
    let kind = if *e4m3 { "e4m3" } else { "bf16" };
    format!("{what}: {} × {kv_heads} heads of {dim}, {kind}, pages of {page_tokens}, {runs:?}", shape.group())
}

fn case(what: &str, shape: AttentionShape, runs: Vec<Run>, limits: Limits) -> Case {
    Case::small(label(what, &shape, &runs), move |random| trial(random, shape, &runs, limits))
}

fn large(what: &str, shape: AttentionShape, runs: Vec<Run>) -> Case {
    Case::large(label(what, &shape, &runs), move |random| trial(random, shape, &runs, FREE))
}

fn trial(random: &mut Random, shape: AttentionShape, runs: &[Run], limits: Limits) -> Trial {
    let lens: Vec<usize> = runs.iter().map(|(position, tokens)| position + tokens).collect();
    let world = World::new(random, shape, &lens);
    let runs: Vec<(usize, Run)> = runs.iter().copied().enumerate().collect();
    let expected = world.reference(&runs);
    Trial::new(move |device| Ok(vec![Output::new("out", &world.run(device, &runs, limits)?)]))
        .expect("out", expected, TOLERANCE)
}

/// A token's row has the same bits decoded (in parts over several blocks, or by one), recomputed with what comes
/// before it, in another chunk, and beside another sequence.
fn one_row_many_ways(shape: AttentionShape) -> Case {
    let len = 600; // a segment and a bit
    Case::small(label("one row many ways", &shape, &[(len - 1, 1)]), move |random| {
        let world = World::new(random, shape, &[len, 70]);
        let expected = world.reference(&[(0, (len - 1, 1))]);
        Trial::new(move |device| {
            let parts = Limits { invariant: true, ..FREE };
            let whole = Limits { parts: false, ..parts };
            let ways = [
                ("decoded", vec![(0, (len - 1, 1))], parts),
                ("decoded by one block", vec![(1, (69, 1)), (0, (len - 1, 1))], whole),
                ("recomputed", vec![(0, (len - 20, 20))], whole),
                ("in another chunk", vec![(0, (len - 9, 9))], parts),
                ("beside another", vec![(1, (0, 3)), (0, (len - 3, 3))], parts),
            ];
            let columns = shape.heads * shape.dim;
            ways.into_iter()
                .map(|(name, runs, limits)| {
                    let out = world.run(device, &runs, limits)?;
                    Ok(Output::new(name, &out[out.len() - columns..]))
                })
                .collect()
        })
        .expect("decoded", expected, TOLERANCE)
        .same("decoded", "decoded by one block")
        .same("decoded", "recomputed")
        .same("decoded", "in another chunk")
        .same("decoded", "beside another")
    })
    .on(&[80, 90])
}
