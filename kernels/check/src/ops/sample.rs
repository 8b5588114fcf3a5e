//! Drawing tokens.

use volley_kernels::{
    cpu::rng,
    cuda::{
        Memory,
        ops::{DrawRow, Sample, sample},
    },
};

use super::Operation;
use crate::{Case, Output, Random, Speed, Trial, Work, unwritten};

pub(super) fn operation() -> Operation {
    Operation { name: "sample", kernels: &["sample"], cases, any, speeds }
}

const GREEDY: DrawRow = DrawRow {
    temperature: 0.0,
    top_p: 1.0,
    min_p: 0.0,
    top_k: 0,
    seed: 0,
    choice: 0,
    position: 0,
    given: -1,
    mask: -1,
};

/// How logits are spread.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// Normally, with this deviation.
    Normal(f64),
    /// Normally, in steps of a half: many are equal.
    Steps(f64),
    /// All the same.
    Equal,
    /// NaN, infinities and both zeros among few numbers.
    Odd,
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for (tokens, spread) in [
        (1, Spread::Equal),
        (5, Spread::Odd),
        (100, Spread::Equal), // a share that ends exactly between two tokens
        (513, Spread::Normal(3.0)),
        (1000, Spread::Odd),
        (3001, Spread::Equal), // more equal ones than the list holds
        (1000, Spread::Equal), // more than are ranked
        (3001, Spread::Steps(0.7)),
        (9000, Spread::Normal(2.0)),  // more than one turn of the block
        (9000, Spread::Normal(0.01)), // a bin with more than the list holds
    ] {
        cases.push(case(tokens, spread, filters(random, tokens)));
    }
    cases.extend((0..4).map(|_| any(random)));
    cases.push(masked());
    cases
}

fn any(random: &mut Random) -> Case {
    let spreads = [Spread::Equal, Spread::Odd, Spread::Normal(4.0), Spread::Normal(1.0), Spread::Steps(2.0)];
    let (spread, tokens) = (random.pick(&spreads), random.between(1, 4000));
    case(tokens, spread, filters(random, tokens))
}

/// Rows that between them take every path.
fn filters(random: &mut Random, tokens: usize) -> Vec<DrawRow> {
    let warm = DrawRow { temperature: 1.0, ..GREEDY };
    let k = |top_k: usize| DrawRow { top_k: top_k.max(1) as u32, ..warm };
    let mut rows = vec![
        GREEDY,
        warm,
        k(1),
        k(40),
        k(tokens * 4 / 5),
        DrawRow { top_p: 0.6, ..warm },
        DrawRow { top_p: 0.95, temperature: 0.3, ..warm },
        DrawRow { top_p: 0.9, ..k(50) },
        DrawRow { top_p: 0.5, ..k(tokens * 9 / 10) },
        DrawRow { min_p: 0.3, ..warm },
        DrawRow { min_p: 0.05, top_p: 0.8, temperature: 2.0, ..warm },
        DrawRow { top_p: 0.0, ..warm },
        DrawRow { temperature: 1e-6, ..warm },
        DrawRow { temperature: 1e6, ..warm },
        DrawRow { given: 3, ..warm },
    ];
    for row in &mut rows {
        row.seed = random.bits();
        row.choice = random.between(0, 3) as u32;
        row.position = random.between(0, 100_000) as u32;
    }
    rows
}

fn draw_logits(random: &mut Random, spread: Spread, n: usize) -> Vec<f32> {
    match spread {
        Spread::Normal(deviation) => random.f32(n, deviation),
        Spread::Steps(deviation) => {
            random.f32(n, deviation).iter().map(|x| (x * 2.0).round() / 2.0).collect()
        }
        Spread::Equal => vec![1.25; n],
        Spread::Odd => {
            let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 1.0, f32::MAX, -3.0e38];
            (0..n)
                .map(|_| if random.between(0, 3) == 0 { random.pick(&odd) } else { random.normal() as f32 })
                .collect()
        }
    }
}

fn case(tokens: usize, spread: Spread, draws: Vec<DrawRow>) -> Case {
    Case::small(format!("{tokens} tokens, {spread:?}"), move |random| {
        let stride = tokens.next_multiple_of(4) + 4;
        let logits = draw_logits(random, spread, stride * draws.len());
        trial(logits, tokens, stride, draws.clone(), Vec::new())
    })
}

/// Masks for some rows: few tokens allowed, one, none.
fn masked() -> Case {
    Case::small("masks", move |random| {
        let (tokens, stride): (usize, usize) = (1003, 1004);
        let words = tokens.div_ceil(32);
        let mut masks: Vec<u32> =
            (0..words).map(|_| (random.bits() & random.bits() & random.bits()) as u32).collect();
        masks.extend((0..words).map(|word| if word == 20 { 1 << 7 } else { 0 }));
        masks.extend(vec![0; words]);
        let mut draws = Vec::new();
        for mask in [-1, 0, 1, 2] {
            for row in filters(random, tokens).into_iter().take(8) {
                draws.push(DrawRow { mask, ..row });
            }
        }
        let logits = draw_logits(random, Spread::Normal(2.0), stride * draws.len());
        trial(logits, tokens, stride, draws, masks)
    })
}

fn trial(logits: Vec<f32>, tokens: usize, stride: usize, draws: Vec<DrawRow>, masks: Vec<u32>) -> Trial {
    let words = tokens.div_ceil(32);
    let expected = draws.iter().zip(logits.chunks(stride)).map(|(draw, row)| {
        let mask = usize::try_from(draw.mask).ok().map(|mask| &masks[mask * words..(mask + 1) * words]);
        f64::from(reference(&row[..tokens], draw, mask))
    });
    let expected = expected.collect();
    Trial::new(move |device| {
        let (logits, draws) = (Memory::from_slice(device, &logits)?, Memory::from_slice(device, &draws)?);
        let masks = (!masks.is_empty()).then(|| Memory::from_slice(device, &masks)).transpose()?;
        let mut out = unwritten::<u32>(device, draws.len())?;
        let op = Sample {
            logits: logits.view(),
            draws: draws.view(),
            masks: masks.as_ref().map(Memory::view),
            out: out.view_mut(),
            tokens,
            stride,
        };
        sample(&**device, &op)?;
        Ok(vec![Output::new("tokens", &out.read()?)])
    })
    .expect("tokens", expected, 0.0)
}

/// The definition: sort, cut, sum in token order.
fn reference(logits: &[f32], draw: &DrawRow, mask: Option<&[u32]>) -> u32 {
    if let Ok(given) = u32::try_from(draw.given) {
        return given;
    }
    let allowed = |token: usize| mask.is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1);
    let may = |token: usize| allowed(token) && !logits[token].is_nan();
    // −0 is 0, infinity the largest number.
    let mut sorted: Vec<(f32, usize)> =
        (0..logits.len()).filter(|&i| may(i)).map(|i| (logits[i].min(f32::MAX) + 0.0, i)).collect();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let Some(&(largest, best)) = sorted.first() else { return 0 };
    if draw.temperature <= 0.0 || largest == f32::NEG_INFINITY {
        return best as u32;
    }
    let factor = f64::from(draw.temperature.recip().min(f32::MAX));
    let weigh = |logit: f32| ((f64::from(logit) - f64::from(largest)) * factor).exp();
    let mut kept: Vec<(f64, usize)> =
        sorted.iter().filter(|x| x.0 > f32::NEG_INFINITY).map(|&(logit, i)| (weigh(logit), i)).collect();
    if draw.top_k > 0 {
        kept.truncate(draw.top_k as usize);
    }
    if draw.top_p < 1.0 {
        let enough = f64::from(draw.top_p) * kept.iter().map(|kept| kept.0).sum::<f64>();
        let mut sum = 0.0;
        let last = kept.iter().position(|kept| {
            sum += kept.0;
            sum >= enough
        });
        kept.truncate(last.map_or(kept.len(), |last| last + 1));
    }
    if draw.min_p > 0.0 {
        kept.retain(|kept| kept.0 >= f64::from(draw.min_p));
    }
    kept.sort_by_key(|kept| kept.1);
    let target =
        rng::uniform(draw.seed, draw.choice, draw.position) * kept.iter().map(|kept| kept.0).sum::<f64>();
    let mut sum = 0.0;
    let drawn = kept.iter().find(|kept| {
        sum += kept.0;
        sum > target
    });
    drawn.map_or(best, |drawn| drawn.1) as u32
}

fn speeds() -> Vec<Speed> {
    let warm = DrawRow { temperature: 0.8, ..GREEDY };
    [
        ("greedy", GREEDY, 0.7),
        ("temperature", warm, 0.4),
        ("top-p 0.95", DrawRow { top_p: 0.95, ..warm }, 0.25),
        ("top-k 50, top-p 0.95", DrawRow { top_p: 0.95, top_k: 50, ..warm }, 0.25),
    ]
    .into_iter()
    // Goals are against reading the logits once: the target is four times that.
    .map(|(label, draw, goal)| speed(label, draw, goal))
    .collect()
}

fn speed(label: &str, draw: DrawRow, goal: f64) -> Speed {
    let (rows, tokens) = (256, 128_256);
    let label = format!("{rows} × {tokens}, {label}");
    Speed::new(label, Work::Bytes((4 * rows * tokens) as f64), goal, move |device| {
        let device = device.clone();
        // One row's random logits, turned a little further for each row.
        let one = Random::new(1).f32(tokens, 2.5);
        let logits: Vec<f32> = (0..rows)
            .flat_map(|row| one[row..].iter().chain(&one[..row]).copied().collect::<Vec<_>>())
            .collect();
        let logits = Memory::from_slice(&device, &logits)?;
        let draws: Vec<DrawRow> = (0..rows as u32).map(|position| DrawRow { position, ..draw }).collect();
        let draws = Memory::from_slice(&device, &draws)?;
        let mut out = Memory::<u32>::new(&device, rows)?;
        Ok(Box::new(move |_| {
            let op = Sample {
                logits: logits.view(),
                draws: draws.view(),
                masks: None,
                out: out.view_mut(),
                tokens,
                stride: tokens,
            };
            sample(&*device, &op)
        }))
    })
}
