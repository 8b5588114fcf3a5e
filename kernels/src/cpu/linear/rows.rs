//! The loops beside the tiles: quantizing activations, expanding scales, gating. Each is plain Rust or [`Simd`]
//! code without a choice of rounding, so it gives the same bits on every instruction set.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::simd::{LANES, Simd};
use crate::cpu::formats::BLOCK;
use crate::cpu::pack::PANEL;
use crate::cpu::prepared::{GROUP, RECORD};
use crate::{Activation, DType};

/// Adding this rounds a small f32 to an integer, ties to even, which then stands in its low bits.
const ROUND: f32 = 12_582_912.0;

/// 2 · √(2/π).
const GELU: f32 = (2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2) as f32;

/// Quantizes a row to 8 bits, as row `row` of the group whose first record is at `record`.
///
/// A block's scale is `max|x| / 127`; not-a-number in a block makes its scale so, too.
///
/// # Safety
/// The records must be there for `x.len() / 32` blocks, and the row's parts nobody else's.
#[inline(always)]
pub(super) unsafe fn quantize(x: &[f32], row: usize, record: *mut u8) {
    for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let largest = x.iter().fold(0, |m: u32, x| m.max(x.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest);
        // Below this, 127 / max is infinite; such a block is as good as zero.
        let (scale, inverse) = if largest < 1e-36 { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
        let codes = x.map(|x| (x * inverse + ROUND).to_bits() as i8);
        let sum = |codes: &[i8]| codes.iter().map(|&c| i32::from(c)).sum::<i32>();
        let (first, second) = (sum(&codes[..16]), sum(&codes[16..]));
        // SAFETY: within the block's record, and this row's own.
        unsafe {
            let record = record.add(block * RECORD);
            record.add(row * BLOCK).cast::<[i8; BLOCK]>().write(codes);
            let at = record.add(GROUP * BLOCK + row * 4);
            at.cast::<f32>().write(scale);
            at.add(GROUP * 4).cast::<f32>().write(scale * (first + second) as f32);
            at.add(GROUP * 8).cast::<i32>().write(-(first + second));
            at.add(GROUP * 12).cast::<i32>().write(-first);
        }
    }
}

/// Expands the scales of `blocks` blocks of a panel from block `first` on to f32: `[32]`, or `[2][32]` for formats
/// with a minimum or a scale per half block.
///
/// # Safety
/// `scales` is the start of a packed panel that has these blocks; `out` has room for them.
#[inline(always)]
pub(super) unsafe fn expand<V: Simd + ?Sized>(
    dtype: DType,
    scales: *const u8,
    first: usize,
    blocks: usize,
    out: *mut f32,
) {
    // SAFETY: offsets are those of the layout in `pack`.
    unsafe {
        for i in 0..blocks * 2 {
            let (block, lanes) = (first + i / 2, i % 2 * LANES);
            let (group, in_group) = (block / 8, block % 8);
            let pair = out.add(i / 2 * 2 * PANEL + lanes);
            match dtype {
                DType::Q4_1 | DType::Q5_1 => {
                    let from = scales.add(block * 128 + lanes * 2);
                    V::store(pair, V::load_f16(from));
                    V::store(pair.add(PANEL), V::load_f16(from.add(64)));
                }
                DType::Q4K | DType::Q5K => {
                    let from = scales.add(group * 640 + lanes * 2);
                    let sub = scales.add(group * 640 + 128 + in_group * 64 + lanes);
                    V::store(pair, V::mul(V::load_f16(from), V::load_u8(sub)));
                    V::store(pair.add(PANEL), V::mul(V::load_f16(from.add(64)), V::load_u8(sub.add(32))));
                }
                DType::Q6K => {
                    let d = V::load_f16(scales.add(group * 576 + lanes * 2));
                    let sub = scales.add(group * 576 + 64 + in_group * 64 + lanes);
                    V::store(pair, V::mul(d, V::load_i8(sub)));
                    V::store(pair.add(PANEL), V::mul(d, V::load_i8(sub.add(32))));
                }
                _ => V::store(out.add(i * LANES), V::load_f16(scales.add((first * 2 + i) * 32))),
            }
        }
    }
}

/// `out = activation(gate) · up`.
#[inline(always)]
pub(super) fn gate(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((&g, &u), out) in gate.iter().zip(up).zip(out) {
        *out = activated(activation, g) * u;
    }
}

/// `x = activation(x)`.
#[inline(always)]
pub(super) fn activate(activation: Activation, x: &mut [f32]) {
    for x in x {
        *x = activated(activation, *x);
    }
}

#[inline(always)]
fn activated(activation: Activation, x: f32) -> f32 {
    // Two are x · σ(y): GELU's tanh form is x · σ(2 · √(2/π) · (x + 0.044715 · x³)).
    let y = match activation {
        Activation::Silu => x,
        Activation::GeluTanh => GELU * (0.044715 * x * x).mul_add(x, x),
        Activation::GeluErf => return x * normal(x),
    };
    x / (1.0 + exp(-y))
}

/// The normal distribution, within 1e-7: erf as in Abramowitz and Stegun 7.1.26.
#[inline(always)]
fn normal(x: f32) -> f32 {
    let z = x.abs() * FRAC_1_SQRT_2 as f32;
    let t = 1.0 / 0.327_591_1f32.mul_add(z, 1.0);
    let mut p = 1.061_405_4f32;
    for c in [-1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        p = t.mul_add(p, c);
    }
    let beyond = 0.5 * t * p * exp(-z * z);
    if x < 0.0 { beyond } else { 1.0 - beyond }
}

/// `e^x` within 2 units in the last place, from operations that every CPU rounds alike; saturates beyond ±87.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 87.0);
    // x = n · ln 2 + r, |r| ≤ ln 2 / 2; ln 2 in two parts so that r keeps its low bits.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_145_75, x);
    let r = n.mul_add(-1.428_606_8e-6, r);
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    // 2ⁿ: n stands in the low bits of `shifted`.
    p * f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23)
}
