//! Log-probabilities of raw logits.

use volley_kernels::cuda::{
    Memory,
    ops::{Asked, Logprobs, logprobs},
};

use super::Operation;
use crate::{Case, Output, Random, Speed, Trial, Work, unwritten};

/// Sums in 2⁻⁴⁰ and one logarithm in f32.
const TOLERANCE: f64 = 2e-6;

pub(super) fn operation() -> Operation {
    Operation { name: "logprobs", kernels: &["logprobs"], cases, any, speeds }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases =
        vec![case(1, 1.0, 0, 0), case(5, 1.0, 20, 0), case(600, 0.0, 20, 0), case(3001, 3.0, 128, 7)];
    cases.push(case(3001, 0.0, 5, 0)); // all equal
    cases.push(case(40, 1.0, 20, 40)); // nothing possible
    cases.extend((0..3).map(|_| any(random)));
    cases
}

fn any(random: &mut Random) -> Case {
    let tokens = random.between(1, 5000);
    case(tokens, 2.0, random.between(0, 30), random.between(0, tokens.min(9)))
}

/// `impossible`: so many tokens are −∞ or NaN.
fn case(tokens: usize, deviation: f64, width: usize, impossible: usize) -> Case {
    Case::small(
        format!("{tokens} tokens, deviation {deviation}, {width} best, {impossible} impossible"),
        move |random| {
            let (rows, stride) = (3, tokens.next_multiple_of(4));
            let mut logits = random.f32(rows * stride, deviation);
            for row in logits.chunks_mut(stride) {
                for &token in random.permutation(tokens).iter().take(impossible) {
                    row[token] = random.pick(&[f32::NAN, f32::NEG_INFINITY]);
                }
            }
            let drawn: Vec<u32> = (0..rows).map(|_| random.between(0, tokens - 1) as u32).collect();
            let asked: Vec<Asked> = [(2, width), (0, width / 2), (1, 0)]
                .map(|(row, alternatives)| Asked { row, alternatives: alternatives as u32 })
                .into();
            let (mut own, mut top_tokens, mut top) = (Vec::new(), Vec::new(), Vec::new());
            for asked in &asked {
                let row = &logits[asked.row as usize * stride..][..tokens];
                let (normalizer, best) = reference(row);
                let logit = f64::from(row[drawn[asked.row as usize] as usize]);
                own.push(if logit.is_nan() { f64::NEG_INFINITY } else { logit - normalizer });
                for i in 0..width {
                    let best = best.get(i).filter(|_| i < asked.alternatives as usize);
                    top_tokens.push(best.map_or(f64::from(u32::MAX), |best| best.1 as f64));
                    top.push(best.map_or(f64::NEG_INFINITY, |best| f64::from(best.0) - normalizer));
                }
            }
            Trial::new(move |device| {
                let (logits, drawn) =
                    (Memory::from_slice(device, &logits)?, Memory::from_slice(device, &drawn)?);
                let asked = Memory::from_slice(device, &asked)?;
                let mut out = unwritten::<f32>(device, asked.len())?;
                let mut top_tokens = unwritten::<u32>(device, asked.len() * width)?;
                let mut top = unwritten::<f32>(device, asked.len() * width)?;
                let op = Logprobs {
                    logits: logits.view(),
                    asked: asked.view(),
                    drawn: drawn.view(),
                    out: out.view_mut(),
                    top_tokens: top_tokens.view_mut(),
                    top: top.view_mut(),
                    width,
                    tokens,
                    stride,
                };
                logprobs(&**device, &op)?;
                Ok(vec![
                    Output::new("out", &out.read()?),
                    Output::new("top_tokens", &top_tokens.read()?),
                    Output::new("top", &top.read()?),
                ])
            })
            .expect("out", own, TOLERANCE)
            .expect("top_tokens", top_tokens, 0.0)
            .expect("top", top, TOLERANCE)
        },
    )
}

/// The logarithm of the sum, and the possible tokens, best first.
fn reference(row: &[f32]) -> (f64, Vec<(f32, usize)>) {
    let mut best: Vec<(f32, usize)> =
        row.iter().map(|x| x + 0.0).zip(0..).filter(|x| x.0 > f32::NEG_INFINITY).collect();
    best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let Some(&(largest, _)) = best.first() else { return (0.0, best) };
    let largest = f64::from(largest);
    let sum: f64 = best.iter().map(|x| (f64::from(x.0) - largest).exp()).sum();
    (largest + sum.ln(), best)
}

fn speeds() -> Vec<Speed> {
    let (rows, tokens, width) = (256, 128_256, 20);
    vec![Speed::new(
        format!("{rows} × {tokens}, {width} best"),
        Work::Bytes((4 * rows * tokens) as f64),
        0.25,
        move |device| {
            let device = device.clone();
            let one = Random::new(1).f32(tokens, 2.5);
            let logits: Vec<f32> = (0..rows)
                .flat_map(|row| one[row..].iter().chain(&one[..row]).copied().collect::<Vec<_>>())
                .collect();
            let logits = Memory::from_slice(&device, &logits)?;
            let drawn = Memory::filled(&device, rows, 0)?;
            let asked: Vec<Asked> =
                (0..rows as u32).map(|row| Asked { row, alternatives: width as u32 }).collect();
            let asked = Memory::from_slice(&device, &asked)?;
            let mut out = Memory::<f32>::new(&device, rows)?;
            let mut top_tokens = Memory::<u32>::new(&device, rows * width)?;
            let mut top = Memory::<f32>::new(&device, rows * width)?;
            Ok(Box::new(move |_| {
                let op = Logprobs {
                    logits: logits.view(),
                    asked: asked.view(),
                    drawn: drawn.view(),
                    out: out.view_mut(),
                    top_tokens: top_tokens.view_mut(),
                    top: top.view_mut(),
                    width,
                    tokens,
                    stride: tokens,
                };
                logprobs(&*device, &op)
            }))
        },
    )]
}
