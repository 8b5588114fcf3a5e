//! Penalties, bias and bans; and the way back.

use volley_kernels::cuda::{
    Memory,
    ops::{Edit, EditLogits, PenaltyRow, RestoreLogits, logits_cap, logits_edit, logits_restore},
};

use super::Operation;
use crate::{Case, Output, Random, Speed, Trial};

/// What a ban looks like here, where NaN never passes.
const BANNED: f32 = 12345.0;

pub(super) fn operation() -> Operation {
    Operation {
        name: "logits_edit",
        kernels: &["logits_cap", "logits_edit", "logits_restore"],
        cases,
        any,
        speeds: || Vec::<Speed>::new(),
    }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = vec![case(1, 5, 0), case(1, 5, 5), case(3, 300, 129)];
    cases.extend((0..3).map(|_| any(random)));
    cases.push(capped(1, 30.0));
    cases.push(capped(300, 2.5));
    cases
}

/// Soft caps, to f32's own precision nearly.
fn capped(fours: usize, cap: f32) -> Case {
    Case::small(format!("{fours} × 4, capped at {cap}"), move |random| {
        let mut logits = random.f32(4 * fours, 40.0);
        logits[..4].copy_from_slice(&[0.0, 1e30, -1e30, 1e-3]);
        let cap_of = |x: &f32| f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
        let expected = logits.iter().map(cap_of).collect();
        Trial::new(move |device| {
            let mut logits = Memory::from_slice(device, &logits)?;
            logits_cap(&**device, logits.view_mut(), cap)?;
            Ok(vec![Output::new("capped", &logits.read()?)])
        })
        .expect("capped", expected, 1e-5)
    })
}

fn any(random: &mut Random) -> Case {
    let (rows, tokens) = (random.between(1, 5), random.between(1, 999));
    case(rows, tokens, random.between(0, tokens.min(200)))
}

fn case(rows: usize, tokens: usize, edits: usize) -> Case {
    Case::small(format!("{edits} edits in each of {rows} × {tokens}"), move |random| {
        let stride = tokens.next_multiple_of(4) + 4;
        let mut logits = random.f32(rows * stride, 4.0);
        logits[0] = f32::INFINITY;
        let penalties: Vec<PenaltyRow> = (0..rows)
            .map(|_| PenaltyRow {
                frequency: random.uniform() as f32,
                presence: random.uniform() as f32,
                repetition: 0.5 + random.uniform() as f32,
                unused: 0.0,
            })
            .collect();
        let mut list = Vec::new();
        for row in 0..rows as u32 {
            for &token in random.permutation(tokens).iter().take(edits) {
                let flags = random.pick(&[0, Edit::HISTORY, Edit::HISTORY, Edit::BANNED | Edit::HISTORY]);
                let history =
                    if flags & Edit::HISTORY == 0 { flags } else { flags | random.between(0, 3) as u32 };
                list.push(Edit { row, token: token as u32, history, bias: random.pick(&[0.0, 3.5, -100.0]) });
            }
        }
        let edited = reference(&logits, &list, &penalties, stride);
        let mut all = list;
        all.push(Edit { row: rows as u32, token: 0, history: Edit::BANNED, bias: 0.0 });
        all.push(Edit { row: 0, token: tokens as u32, history: Edit::BANNED, bias: 0.0 });
        let expected = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (before, after) = (expected(&logits), expected(&edited));
        Trial::new(move |device| {
            let mut logits = Memory::from_slice(device, &logits)?;
            let (edits, penalties) =
                (Memory::from_slice(device, &all)?, Memory::from_slice(device, &penalties)?);
            let mut raw = Memory::filled(device, all.len(), 0)?;
            let op = EditLogits {
                logits: logits.view_mut(),
                edits: edits.view(),
                penalties: penalties.view(),
                raw: raw.view_mut(),
                tokens,
                stride,
            };
            logits_edit(&**device, &op)?;
            let edited: Vec<f32> =
                logits.read()?.iter().map(|&x| if x.is_nan() { BANNED } else { x }).collect();
            let op = RestoreLogits {
                logits: logits.view_mut(),
                edits: edits.view(),
                raw: raw.view(),
                tokens,
                stride,
            };
            logits_restore(&**device, &op)?;
            Ok(vec![Output::new("edited", &edited), Output::new("restored", &logits.read()?)])
        })
        .expect("edited", after, 1e-6)
        .expect("restored", before, 0.0)
    })
}

fn reference(logits: &[f32], edits: &[Edit], penalties: &[PenaltyRow], stride: usize) -> Vec<f32> {
    let mut edited = logits.to_vec();
    for edit in edits {
        let at = &mut edited[edit.row as usize * stride + edit.token as usize];
        let penalty = penalties[edit.row as usize];
        let mut logit = at.min(f32::MAX);
        if edit.history & Edit::HISTORY != 0 {
            let generated = edit.history & !(Edit::HISTORY | Edit::BANNED);
            logit = if logit > 0.0 { logit / penalty.repetition } else { logit * penalty.repetition };
            let present = if generated > 0 { penalty.presence } else { 0.0 };
            logit = (logit - penalty.frequency * generated as f32 - present).min(f32::MAX);
        }
        let shifted = (logit + edit.bias).min(f32::MAX);
        *at = if edit.history & Edit::BANNED != 0 { BANNED } else { shifted };
    }
    edited
}
