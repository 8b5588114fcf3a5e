use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{History, Mirostat, Penalties};

fn greedy() -> Draw {
    Draw { seed: 1, ..Draw::default() }
}

fn sampled() -> Draw {
    Draw { temperature: 1.0, ..greedy() }
}

fn draw_one(logits: &[f32], draw: Draw) -> Drawn {
    let pool = Pool::new(1).unwrap();
    super::draw(&pool, Isa::detect(), logits, logits.len(), &[draw]).remove(0)
}

fn token(logits: &[f32], draw: Draw) -> u32 {
    draw_one(logits, draw).token
}

fn allows(draw: &Draw, token: u32) -> bool {
    let bit =
        |words: &Vec<u32>| words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1);
    draw.allowed.as_ref().is_none_or(bit)
}

/// Tokens in falling order of logits, with their probabilities, by the definition of each filter.
fn kept(logits: &[f32], draw: &Draw) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(token, &logit)| (token as u32, shifted(draw, token as u32, logit)))
        .map(|(token, logit)| (token, f64::from(logit) / f64::from(draw.temperature)))
        .filter(|(token, _)| !draw.banned.contains(token) && allows(draw, *token))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let largest = all[0].1;
    let normalize = |all: &mut Vec<(u32, f64)>| {
        let total: f64 = all.iter().map(|x| x.1).sum();
        all.iter_mut().for_each(|x| x.1 /= total);
    };
    all.iter_mut().for_each(|x| x.1 = (x.1 - largest).exp());
    if draw.top_k > 0 {
        all.truncate(draw.top_k as usize);
    }
    normalize(&mut all);
    let mut sum = 0.0;
    let enough = all.iter().position(|x| {
        sum += x.1;
        sum >= f64::from(draw.top_p)
    });
    all.truncate(enough.map_or(all.len(), |last| last + 1));
    let least = f64::from(draw.min_p) * all[0].1;
    all.retain(|x| x.1 >= least);
    normalize(&mut all);
    if draw.typical_p < 1.0 {
        let entropy: f64 = all.iter().map(|x| -x.1 * x.1.ln()).filter(|x| !x.is_nan()).sum();
        let distance = |x: &(u32, f64)| (-x.1.ln() - entropy).abs();
        all.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.0.cmp(&b.0)));
        let mut sum = 0.0;
        let enough = all.iter().position(|x| {
            sum += x.1;
            sum >= f64::from(draw.typical_p)
        });
        all.truncate(enough.map_or(all.len(), |last| last + 1));
        normalize(&mut all);
    }
    all
}

/// A logit after penalties and bias, by their definitions.
fn shifted(draw: &Draw, token: u32, mut logit: f32) -> f32 {
    if let Some(Penalties { frequency, presence, repetition, history }) = &draw.penalties
        && let Some(seen) = history.seen().iter().find(|seen| seen.token == token)
    {
        logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
        logit -= frequency * seen.generated as f32 + if seen.generated > 0 { *presence } else { 0.0 };
    }
    logit + draw.bias.iter().find(|bias| bias.0 == token).map_or(0.0, |bias| bias.1)
}

fn history(prompt: &[u32], generated: &[u32]) -> Arc<History> {
    let mut history = History::default();
    prompt.iter().for_each(|&token| history.prompt(token));
    generated.iter().for_each(|&token| history.generated(token));
    Arc::new(history)
}

/// What the reference draws with the same uniform number, and how far it is from drawing another token.
fn reference(logits: &[f32], draw: &Draw) -> (u32, f64) {
    let mut kept = kept(logits, draw);
    kept.sort_by_key(|x| x.0);
    let share = rng::uniform(draw.seed, draw.choice, draw.position);
    let mut sum = 0.0;
    let mut margin = f64::INFINITY;
    let mut token = kept[kept.len() - 1].0;
    for (i, x) in kept.iter().enumerate() {
        let before = sum;
        sum += x.1;
        if i + 1 < kept.len() {
            margin = margin.min((sum - share).abs());
        }
        if before <= share && share < sum {
            token = x.0;
        }
    }
    (token, margin)
}

#[test]
fn greedy_takes_the_lowest_token_among_the_best() {
    let mut logits = vec![-1.0; 1000];
    for best in [700, 701, 300, 999] {
        logits[best] = 2.5;
        let first = logits.iter().position(|&x| x == 2.5).unwrap() as u32;
        assert_eq!(token(&logits, greedy()), first);
    }
    assert_eq!(token(&[-0.0, 0.0], greedy()), 0);
}

#[test]
fn banned_tokens_are_never_drawn() {
    let logits: Vec<f32> = (0..600).map(|i| i as f32 / 10.0).collect();
    let banned: Vec<u32> = (400..700).collect();
    assert_eq!(token(&logits, Draw { banned: banned.clone(), ..greedy() }), 399);
    for position in 0..200 {
        let draw = Draw { banned: banned.clone(), temperature: 9.0, position, ..sampled() };
        assert!(token(&logits, draw) < 400);
    }
    assert_eq!(token(&logits, Draw { banned: (1..600).collect(), ..sampled() }), 0);
    assert_eq!(token(&logits, Draw { banned: (0..600).collect(), ..sampled() }), 0);
}

#[test]
fn a_token_that_is_not_allowed_is_never_drawn() {
    // Beyond its end, a mask allows nothing.
    let allowed = Some(vec![0, 0b101 << 7, u32::MAX]);
    let all = [39, 41].into_iter().chain(64..96).collect::<Vec<u32>>();
    let flat = vec![1.0; 600];
    let lost: Vec<f32> =
        (0..600).map(|i| if all.contains(&i) { f32::NEG_INFINITY } else { i as f32 }).collect();
    let mut drawn = std::collections::BTreeSet::new();
    for position in 0..2000 {
        let draw = Draw { allowed: allowed.clone(), position, temperature: 3.0, ..sampled() };
        drawn.insert(token(&flat, draw.clone()));
        assert_eq!(token(&lost, draw.clone()), 39, "no logit says which to take");
        assert_eq!(token(&lost, Draw { banned: vec![39], ..draw }), 41);
    }
    assert!(drawn.iter().eq(&all), "{drawn:?}");
    let nothing = Draw { allowed: Some(vec![]), ..greedy() };
    assert_eq!(token(&flat, nothing), 0);
}

#[test]
fn rounding_never_draws_a_token_without_weight() {
    // Sums by lanes and one by one differ here, so that some draws pass the end of the first block's weights.
    let mut logits = vec![f32::NEG_INFINITY; 3 * BLOCK];
    (0..BLOCK).for_each(|i| logits[i] = (i as f32 * 0.37).sin() * 5.0);
    logits[3 * BLOCK - 1] = -16.0;
    for position in 0..200_000 {
        let drawn = token(&logits, Draw { position, ..sampled() });
        assert!(logits[drawn as usize] > f32::NEG_INFINITY);
    }
}

#[test]
fn filters_that_leave_nothing_keep_the_best_token() {
    let logits = [0.0, 3.0, 1.0];
    for draw in [
        Draw { min_p: 2.0, ..sampled() },
        Draw { top_p: 0.0, ..sampled() },
        Draw { top_p: -1.0, min_p: 7.0, ..sampled() },
        Draw { top_k: 1, ..sampled() },
        Draw { typical_p: 0.0, ..sampled() },
        Draw { mirostat: Some(Mirostat::start(0.0, 0.1)), ..sampled() },
        Draw { temperature: f32::MIN_POSITIVE / 2.0, ..sampled() },
        Draw { temperature: 1e-30, ..sampled() },
        Draw { temperature: f32::NAN, ..sampled() },
    ] {
        assert_eq!(token(&logits, draw.clone()), 1, "{draw:?}");
    }
}

#[test]
fn logits_that_are_no_numbers_do_no_harm() {
    let all = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0];
    for a in all {
        for b in all {
            let filtered = Draw { top_p: 0.5, top_k: 2, min_p: 0.1, ..sampled() };
            let hot = Draw { temperature: f32::INFINITY, ..filtered.clone() };
            let penalties = Penalties {
                frequency: -2.0,
                presence: 2.0,
                repetition: 0.001,
                history: history(&[0], &[1, 2, 7]),
            };
            let shifted = Draw {
                penalties: Some(penalties),
                bias: [(0, 100.0), (1, -100.0), (9, 1.0)].into(),
                ..filtered.clone()
            };
            let surprising = Draw { mirostat: Some(Mirostat::start(3.0, 0.1)), ..shifted.clone() };
            let typical = Draw { typical_p: 0.5, ..shifted.clone() };
            for draw in [greedy(), sampled(), filtered, hot, shifted, surprising, typical] {
                let drawn = draw_one(&[a, b, f32::NAN], Draw { logprobs: Some(3), ..draw });
                assert!(drawn.token < 3);
                assert!(!drawn.logprobs.unwrap().logprob.is_nan(), "{a} {b}");
                assert!(drawn.mirostat.is_none_or(f32::is_finite), "{a} {b}");
            }
        }
    }
    assert_eq!(token(&[f32::NAN, 1.0, f32::INFINITY], greedy()), 2);
}

#[test]
fn a_draw_depends_on_nothing_but_its_own_row() {
    let vocabulary = 777;
    let logits: Vec<f32> = (0..20 * vocabulary).map(|i| ((i * 7919) % 1013) as f32 / 200.0).collect();
    let draws: Vec<Draw> =
        (0..20).map(|i| Draw { position: i, top_p: 0.9, logprobs: Some(i % 4), ..sampled() }).collect();
    let mut all = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 3] {
            all.push(super::draw(&Pool::new(threads).unwrap(), isa, &logits, vocabulary, &draws));
        }
    }
    let alone: Vec<Drawn> = (draws.iter().zip(logits.chunks(vocabulary)))
        .map(|(draw, row)| draw_one(row, draw.clone()))
        .collect();
    assert!(all.iter().all(|drawn| *drawn == alone));
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = (0..40).map(|i| ((i * 17) % 40) as f32 / 10.0).collect();
    for draw in [
        sampled(),
        Draw { temperature: 2.5, ..sampled() },
        Draw { top_k: 9, seed: 5, ..sampled() },
        Draw { top_p: 0.7, choice: 3, ..sampled() },
        Draw { min_p: 0.2, seed: 77, ..sampled() },
        Draw { temperature: 0.8, top_k: 30, top_p: 0.9, min_p: 0.05, ..sampled() },
        Draw { typical_p: 0.6, ..sampled() },
        Draw { bias: [(3, 2.5), (9, -1.5)].into(), ..sampled() },
    ] {
        let draws: Vec<Draw> = (0..20_000).map(|position| Draw { position, ..draw.clone() }).collect();
        let rows: Vec<f32> = logits.repeat(draws.len());
        let mut counts = [0f64; 40];
        for drawn in super::draw(&Pool::new(2).unwrap(), Isa::detect(), &rows, 40, &draws) {
            counts[drawn.token as usize] += 1.0;
        }
        let expected = kept(&logits, &draw);
        let chi_square: f64 = expected
            .iter()
            .map(|&(token, p)| (counts[token as usize] - p * 20_000.0).powi(2) / (p * 20_000.0))
            .sum();
        let drawn: f64 = expected.iter().map(|x| counts[x.0 as usize]).sum();
        assert_eq!(drawn, 20_000.0, "a token was drawn that {draw:?} excludes");
        let freedom = (expected.len() - 1) as f64;
        // Five standard deviations.
        assert!(chi_square < freedom + 5.0 * (2.0 * freedom).sqrt(), "{draw:?}: {chi_square}");
    }
}

#[test]
fn logprobs_are_of_the_raw_logits_whatever_is_banned_biased_or_given() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 1000) as f32 / 50.0).collect();
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let expected = |token: u32| f64::from(logits[token as usize]) - total.ln();
    let banned = vec![27, 54];
    for given in [None, Some(54), Some(3)] {
        let bias = [(81, 1e-3), (3, 9.0)].into();
        let draw = Draw { banned: banned.clone(), bias, given, logprobs: Some(5), ..greedy() };
        let drawn = draw_one(&logits, draw);
        // 37 · 27 = 999 and 37 · 54 = 998 (mod 1000).
        assert_eq!(drawn.token, given.unwrap_or(81));
        let logprobs = drawn.logprobs.unwrap();
        assert!((f64::from(logprobs.logprob) - expected(drawn.token)).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|x| x.0).collect::<Vec<_>>(), [27, 54, 81, 108, 135]);
        assert!(logprobs.top.iter().all(|&(t, p)| (f64::from(p) - expected(t)).abs() < 1e-6));
    }
    let unknown = draw_one(&logits, Draw { given: Some(5000), logprobs: Some(0), ..greedy() });
    let logprobs = Logprobs { logprob: f32::NEG_INFINITY, top: Vec::new() };
    assert_eq!(unknown, Drawn { token: 5000, logprobs: Some(logprobs), mirostat: None });
}

#[test]
fn equal_alternatives_come_by_token_and_unlikely_ones_are_found() {
    let mut logits = vec![0.0; 600];
    logits[300] = 200.0;
    let drawn = draw_one(&logits, Draw { logprobs: Some(4), ..greedy() });
    assert_eq!(drawn.logprobs.unwrap().top, [(300, 0.0), (0, -200.0), (1, -200.0), (2, -200.0)]);
}

#[test]
fn penalties_and_bias_do_what_they_say() {
    let logits = [4.0, 3.0, -1.0, -2.0];
    let penalties = |frequency, presence, repetition, history| {
        let penalties = Penalties { frequency, presence, repetition, history };
        Draw { penalties: Some(penalties), ..greedy() }
    };
    let prompt = history(&[0, 0, 0], &[]);
    let twice = history(&[], &[0, 0, 1]);
    // Frequency and presence know nothing of the prompt, repetition does.
    assert_eq!(token(&logits, penalties(2.0, 2.0, 1.0, prompt.clone())), 0);
    assert_eq!(token(&logits, penalties(0.0, 0.0, 1.5, prompt)), 1);
    // Presence costs 0 and 1 the same, frequency costs 0 twice.
    assert_eq!(token(&logits, penalties(0.0, 2.0, 1.0, twice.clone())), 0);
    assert_eq!(token(&logits, penalties(1.5, 0.0, 1.0, twice)), 1);
    // A negative logit sinks, too.
    assert_eq!(token(&[-1.0, -1.5], penalties(0.0, 0.0, 2.0, history(&[0], &[]))), 1);
    assert_eq!(token(&logits, Draw { bias: [(2, 5.5), (900, 100.0)].into(), ..greedy() }), 2);
    // What is banned stays so.
    let banned = Draw { bias: [(2, 100.0)].into(), banned: vec![2], ..greedy() };
    assert_eq!(token(&logits, banned), 0);
}

#[test]
fn mirostat_cuts_at_its_bound_and_follows_the_surprise() {
    // Probabilities 1/2, 1/4, 1/8, 1/8: 1, 2, 3 and 3 bits.
    let logits = [8f32, 4.0, 2.0, 2.0].map(f32::ln);
    for position in 0..200 {
        let mirostat = Mirostat { target: 1.5, rate: 0.5, bound: 2.01 };
        let drawn = draw_one(&logits, Draw { mirostat: Some(mirostat), position, ..sampled() });
        assert!(drawn.token < 2);
        let expected = 2.01 - 0.5 * ((drawn.token + 1) as f32 - 1.5);
        assert!((drawn.mirostat.unwrap() - expected).abs() < 1e-5);
    }
    let greedy = draw_one(&logits, Draw { mirostat: Some(Mirostat::start(1.5, 0.5)), ..greedy() });
    assert_eq!((greedy.token, greedy.mirostat), (0, Some(3.0)));
}

#[test]
fn mirostat_reaches_its_target() {
    let logits: Vec<f32> = (0..5000).map(|i| -((i + 1) as f32).ln()).collect();
    let normalizer: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let mut mirostat = Mirostat::start(4.0, 0.1);
    let (mut surprise, count) = (0.0, 3000);
    for position in 0..count {
        let drawn = draw_one(&logits, Draw { mirostat: Some(mirostat), position, ..sampled() });
        mirostat.bound = drawn.mirostat.unwrap();
        surprise += -(f64::from(logits[drawn.token as usize]).exp() / normalizer).log2();
    }
    let mean = surprise / f64::from(count);
    assert!((mean - 4.0).abs() < 0.1, "{mean}");
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(0u32..700, 0..20)
}

proptest! {
    #[test]
    fn filters_agree_with_their_definitions(
        // Few distinct logits: many ties.
        logits in proptest::collection::vec((-40i32..40, 0i32..3), 1..700),
        temperature in prop_oneof![Just(1f32), 0.05f32..5.0],
        top_p in prop_oneof![Just(1f32), 0.01f32..1.0],
        top_k in prop_oneof![Just(0u32), 1u32..20, 1u32..800],
        min_p in prop_oneof![Just(0f32), 0.001f32..1.0],
        typical_p in prop_oneof![3 => Just(1f32), 1 => 0.01f32..1.0],
        banned in proptest::collection::vec(0u32..700, 0..5),
        allowed in proptest::option::of(proptest::collection::vec(any::<u32>(), 1..25)),
        (prompt, generated) in (tokens(), tokens()),
        (frequency, presence, repetition) in (-2f32..2.0, -2f32..2.0, 0.1f32..2.0),
        bias in proptest::collection::btree_map(0u32..700, -5f32..5.0, 0..4),
        seed: u64,
    ) {
        let logits: Vec<f32> = logits.into_iter().map(|(a, b)| a as f32 / 4.0 + b as f32 * 0.01).collect();
        let history = history(&prompt, &generated);
        let penalties = Some(Penalties { frequency, presence, repetition, history });
        let penalties = penalties.filter(|_| !(prompt.is_empty() && generated.is_empty()));
        let bias = bias.into_iter().collect::<Vec<_>>().into();
        let filters = Draw { temperature, top_p, top_k, min_p, typical_p, ..greedy() };
        let draw = Draw { penalties, bias, banned, allowed, seed, ..filters };
        prop_assume!((0..logits.len() as u32).any(|token| !draw.banned.contains(&token) && allows(&draw, token)));
        let (expected, margin) = reference(&logits, &draw);
        // A cut or a draw that hangs on rounding may fall either way: those of top-p and min-p do so where
        // nudging them changes what is kept.
        let nudged = |by: f32| {
            let draw = Draw {
                top_p: top_p * (1.0 + by),
                min_p: min_p * (1.0 - by),
                typical_p: typical_p * (1.0 + by),
                ..draw.clone()
            };
            kept(&logits, &draw).len()
        };
        prop_assume!(margin > 1e-5 && nudged(1e-5) == nudged(-1e-5));
        prop_assert_eq!(token(&logits, draw), expected);
    }
}
