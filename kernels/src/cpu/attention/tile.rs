//! The inner loops of attention, over one tile.
//!
//! Sums run over head dimensions for scores and over positions for values, one by one in order; lanes are
//! positions for scores and head dimensions for values. How many rows and vectors a loop holds in registers
//! therefore changes no bit.

#![allow(clippy::needless_range_loop)] // arrays in step with each other, which must stay in registers

use std::ops::Range;

use crate::BLOCK_TOKENS;
use crate::cpu::cache::Element;
use crate::cpu::simd::{Lanes, WIDTH, exp};

/// Blocks of a tile.
pub(super) const TILE_BLOCKS: usize = 4;
/// Positions of a tile.
pub(super) const TILE: usize = TILE_BLOCKS * BLOCK_TOKENS;

/// The larger score, and the factors that bring both sides' sums to it.
#[inline(always)]
pub(super) fn factors<L: Lanes>(old: L, tile: L) -> (L, L, L) {
    let new = old.max(tile);
    (new, exp(old.sub(new)), exp(tile.sub(new)))
}

/// `into = into · keep + from · take`.
#[inline(always)]
pub(super) unsafe fn fold<L: Lanes>(into: *mut f32, from: *const f32, len: usize, keep: L, take: L) {
    for i in (0..len).step_by(WIDTH) {
        // SAFETY: as the caller promises.
        unsafe {
            let kept = L::load(into.add(i)).mul(keep);
            L::load(from.add(i)).fma(take, kept).store(into.add(i));
        }
    }
}

/// `out = values / sum`: exactly `dim` numbers.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes>(values: *mut f32, sum: f32, dim: usize, out: *mut f32) {
    // SAFETY: as the caller promises; `values` is padded to whole vectors.
    unsafe {
        let factor = L::splat(1.0 / sum);
        for i in (0..dim).step_by(WIDTH) {
            L::load(values.add(i)).mul(factor).store(values.add(i));
        }
        std::ptr::copy_nonoverlapping(values, out, dim);
    }
}

/// `out[r][j] = scale · Σ q[r][d] · k[j][d]` for `N` blocks of keys; gives `N`.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, E: Element, const R: usize, const N: usize>(
    q: *const f32,
    dim: usize,
    k: &[*const E],
    scale: L,
    out: *mut f32,
) -> usize {
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[L::splat(0.0); N]; R];
        for d in 0..dim {
            let mut keys = [scale; N];
            for j in 0..N {
                keys[j] = E::load(k[j].add(d * WIDTH));
            }
            for r in 0..R {
                let q = L::splat(*q.add(r * dim + d));
                for j in 0..N {
                    sums[r][j] = keys[j].fma(q, sums[r][j]);
                }
            }
        }
        for r in 0..R {
            for j in 0..N {
                sums[r][j].mul(scale).store(out.add(r * TILE + j * WIDTH));
            }
        }
    }
    N
}

/// Turns the first `seen` scores of a tile into weights; gives the largest score and the weights' sums by lane.
#[inline(always)]
pub(super) unsafe fn weights<L: Lanes>(scores: *mut f32, seen: usize) -> (f32, L) {
    // SAFETY: as the caller promises.
    unsafe {
        let unseen = L::splat(f32::NEG_INFINITY);
        let mut row = [unseen; TILE_BLOCKS];
        for j in 0..TILE_BLOCKS {
            if j * WIDTH < seen {
                let lanes = (seen - j * WIDTH).min(WIDTH);
                row[j] = L::load(scores.add(j * WIDTH)).first(lanes, unseen);
            }
        }
        let largest = row[0].max(row[1]).max(row[2].max(row[3])).largest();
        let mut sums = [L::splat(0.0); TILE_BLOCKS];
        for j in 0..TILE_BLOCKS {
            if j * WIDTH < seen {
                sums[j] = exp(row[j].sub(L::splat(largest)));
                sums[j].store(scores.add(j * WIDTH));
            }
        }
        (largest, sums[0].add(sums[1]).add(sums[2].add(sums[3])))
    }
}

/// `out[r][j] (+)= Σ weights[r][t] · v[t][j]` over `tokens`, for `N` vectors from `column` on; gives `N`.
/// Begins at zero where `tokens` do.
#[inline(always)]
pub(super) unsafe fn values<L: Lanes, E: Element, const R: usize, const N: usize>(
    weights: *const f32,
    tokens: Range<usize>,
    v: &[*const E; TILE_BLOCKS],
    column: usize,
    width: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[L::splat(0.0); N]; R];
        if tokens.start > 0 {
            for r in 0..R {
                for j in 0..N {
                    sums[r][j] = L::load(out.add(r * width + j * WIDTH));
                }
            }
        }
        for t in tokens {
            let v = v[t / BLOCK_TOKENS].add(t % BLOCK_TOKENS * width + column);
            let mut numbers = [sums[0][0]; N];
            for j in 0..N {
                numbers[j] = E::load(v.add(j * WIDTH));
            }
            for r in 0..R {
                let weight = L::splat(*weights.add(r * TILE + t));
                for j in 0..N {
                    sums[r][j] = numbers[j].fma(weight, sums[r][j]);
                }
            }
        }
        for r in 0..R {
            for j in 0..N {
                sums[r][j].store(out.add(r * width + j * WIDTH));
            }
        }
    }
    N
}
