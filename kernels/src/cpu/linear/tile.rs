//! The inner loops: a register tile of R rows × C columns of 16 outputs, over the inputs in order.
//!
//! A lane's sum is the same chain of roundings in every tile and on every instruction set, so a row's result
//! depends on nothing but the row. Per block of 32 inputs the codes are multiplied and summed as integers
//! (exactly, in any order), then
//!
//! ```text
//! acc = fma(f32(Σ (code - zero) · x) · x_scale, scale, acc)
//! acc = fma(min, x_scale · Σ x, acc)                          formats with a minimum
//! ```
//!
//! Bound: 8 `vpdpbusd` + 2 or 3 float operations per row and block on the multiply ports, that is 80 % (73 % with
//! minimums) of the VNNI roof; with one row, the weights' bytes.

// Rows and columns index several arrays at once, and closures are no choice here (see `Simd`).
#![allow(clippy::needless_range_loop)]

use super::simd::{LANES, Simd};
use crate::DType;
use crate::cpu::pack::PANEL;
use crate::cpu::prepared::{GROUP, RECORD};

/// Blocks whose scales are expanded at a time.
pub(super) const CHUNK: usize = 32;

/// The operands of a tile, one or both columns of a panel.
pub(in crate::cpu) struct Tile {
    /// `[row][PANEL]` sums.
    pub(super) acc: *mut f32,
    /// Start from zero instead of what stands in `acc`.
    pub(super) fresh: bool,
    /// Codes (or floats) from the first step on.
    pub(super) weights: *const u8,
    /// Expanded scales: per block `[scale][min]`, or one `[scale]` per 16 inputs, of `PANEL` each.
    pub(super) scales: *const f32,
    /// The rows' group from the first step on.
    pub(super) activations: *const u8,
    /// First row within the group.
    pub(super) row: usize,
    /// Blocks (inputs, for floats) to go.
    pub(super) steps: usize,
    /// Weights that will be needed next: so many cache lines a step are asked for, into L2 (measured: with three
    /// rows and more this hides the memory, with fewer the hardware does better alone).
    pub(super) ahead: *const u8,
    pub(super) ahead_lines: usize,
    /// Where the results will go, and the bytes between rows there: asked for, too.
    pub(super) out: *const u8,
    pub(super) out_stride: usize,
}

/// A kernel for tiles of one shape and format. Its caller vouches for the instruction set and for pointers that
/// are good for the whole tile.
pub(in crate::cpu) type TileFn = unsafe fn(&Tile);

/// The kernel of a format for tiles of R rows and C columns, and C.
pub(super) fn shaped<V: Simd, const R: usize, const C: usize>(dtype: DType) -> (TileFn, usize) {
    let kernel = match dtype {
        // What has its scales apart is packed otherwise.
        DType::F32 | DType::Int8 | DType::Int4 | DType::E4m3 => V::float::<4, R, C>,
        DType::F16 => V::float::<2, R, C>,
        DType::BF16 => V::float::<3, R, C>,
        DType::Q4_0 => V::quantized::<4, false, R, C>,
        DType::Q4_1 | DType::Q4K => V::quantized::<4, true, R, C>,
        DType::Q5_0 => V::quantized::<5, false, R, C>,
        DType::Q5_1 | DType::Q5K => V::quantized::<5, true, R, C>,
        DType::Q6K => V::quantized::<6, false, R, C>,
        DType::Q8_0 => V::quantized::<8, false, R, C>,
    };
    (kernel, C)
}

/// The tile of a quantized format: `BITS` per code, with a minimum per block or a zero point in the middle.
#[inline(always)]
pub(super) unsafe fn quantized<
    V: Simd + ?Sized,
    const BITS: usize,
    const MIN: bool,
    const R: usize,
    const C: usize,
>(
    t: &Tile,
) {
    // SAFETY: the caller's promises, for this block and the functions below.
    unsafe {
        let halves = BITS == 6;
        let step = match BITS {
            4 => 512,
            5 => 640,
            6 => 768,
            _ => 1024,
        };
        let mut acc = start::<V, R, C>(t);
        for block in 0..t.steps {
            let record = t.activations.add(block * RECORD);
            let codes = t.weights.add(block * step);
            let ahead = t.ahead.wrapping_add(block * t.ahead_lines * 64);
            for line in 0..t.ahead_lines {
                V::prefetch(ahead.wrapping_add(line * 64));
            }
            let x = record.add(t.row * 32);
            let row = record.add(GROUP * 32 + t.row * 4);
            let scales = t.scales.add(block * PANEL * if MIN || halves { 2 } else { 1 });

            let sum = |at: usize, r: usize| row.add(at * GROUP * 4 + r * 4).cast::<i32>().read();
            let zero = |sum: i32| if MIN || BITS == 8 && V::CENTERED_BYTES { 0 } else { sum << (BITS - 1) };
            let first = |r: usize| zero(sum(if halves { 3 } else { 2 }, r));
            let mut ints = [[V::splat_ints(first(0)); C]; R];
            for r in 1..R {
                ints[r] = [V::splat_ints(first(r)); C];
            }
            let mut partial = [[V::partial(); C]; R];
            steps::<V, BITS, R, C>(0, codes, x, &mut ints, &mut partial);
            steps::<V, BITS, R, C>(1, codes, x, &mut ints, &mut partial);
            if halves {
                fold::<V, false, R, C>(&ints, row, scales, &mut acc);
                for r in 0..R {
                    ints[r] = [V::splat_ints(zero(sum(2, r) - sum(3, r))); C];
                }
            }
            steps::<V, BITS, R, C>(2, codes, x, &mut ints, &mut partial);
            steps::<V, BITS, R, C>(3, codes, x, &mut ints, &mut partial);
            let scales = if halves { scales.add(PANEL) } else { scales };
            fold::<V, MIN, R, C>(&ints, row, scales, &mut acc);
        }
        finish::<V, R, C>(t, acc);
    }
}

/// Multiplies 8 inputs: the `v`-th quarter of a block.
#[inline(always)]
unsafe fn steps<V: Simd + ?Sized, const BITS: usize, const R: usize, const C: usize>(
    v: usize,
    codes: *const u8,
    x: *const u8,
    ints: &mut [[V::Ints; C]; R],
    partial: &mut [[V::Partial; C]; R],
) {
    // SAFETY: the caller's promises.
    unsafe {
        for high in 0..2 {
            let mut weights = [load_codes::<V, BITS>(codes, v, high == 1); C];
            for c in 1..C {
                weights[c] = load_codes::<V, BITS>(codes.add(c * 64), v, high == 1);
            }
            for r in 0..R {
                let x = V::quad(x.add(r * 32 + v * 8 + high * 4));
                for c in 0..C {
                    V::dot::<BITS>(&mut ints[r][c], &mut partial[r][c], weights[c], x);
                }
            }
        }
        let closes = BITS == 8 || (v + 1).is_multiple_of(V::OPEN_STEPS[BITS - 4]);
        if closes {
            for r in 0..R {
                for c in 0..C {
                    V::close(&mut ints[r][c], &mut partial[r][c]);
                }
            }
        }
    }
}

/// The codes of inputs `8v + 4·high` to `8v + 4·high + 3` of 16 outputs.
#[inline(always)]
unsafe fn load_codes<V: Simd + ?Sized, const BITS: usize>(p: *const u8, v: usize, high: bool) -> V::Codes {
    // SAFETY: the caller's promises; constants are those of the layout in `pack`.
    unsafe {
        if BITS == 8 {
            return V::codes(p.add((2 * v + usize::from(high)) * 128));
        }
        let both = V::codes(p.add(v * 128));
        let nibble = if high { V::and(V::shr::<4>(both), 15) } else { V::and(both, 15) };
        if BITS == 4 {
            return nibble;
        }
        let bits = BITS - 4;
        let plane = V::codes(p.add(512 + v * bits / 4 * 128));
        let mask = if BITS == 5 { 0x10 } else { 0x30 };
        // Bit 4 + s (low) or s (high) of the plane goes to bit 4.
        let moved = match (high, v * bits % 4) {
            (false, 0) | (true, 4) => plane,
            (false, 1) => V::shr::<1>(plane),
            (false, 2) => V::shr::<2>(plane),
            (false, _) => V::shr::<3>(plane),
            (true, 0) => V::shl::<4>(plane),
            (true, 1) => V::shl::<3>(plane),
            (true, 2) => V::shl::<2>(plane),
            (true, _) => V::shl::<1>(plane),
        };
        V::or(nibble, V::and(moved, mask))
    }
}

/// Adds a block's integer sums to the results.
#[inline(always)]
unsafe fn fold<V: Simd + ?Sized, const MIN: bool, const R: usize, const C: usize>(
    ints: &[[V::Ints; C]; R],
    row: *const u8,
    scales: *const f32,
    acc: &mut [[V::Floats; C]; R],
) {
    // SAFETY: the caller's promises.
    unsafe {
        for r in 0..R {
            let x_scale = V::splat(row.add(r * 4).cast::<f32>().read());
            let x_sum = V::splat(row.add(GROUP * 4 + r * 4).cast::<f32>().read());
            for c in 0..C {
                let scaled = V::mul(V::to_floats(ints[r][c]), x_scale);
                acc[r][c] = V::fma(scaled, V::load(scales.add(c * LANES)), acc[r][c]);
                if MIN {
                    acc[r][c] = V::fma(V::load(scales.add(PANEL + c * LANES)), x_sum, acc[r][c]);
                }
            }
        }
    }
}

/// The tile of a float format: 4 = f32, 2 = f16, 3 = bf16.
#[inline(always)]
pub(super) unsafe fn float<V: Simd + ?Sized, const KIND: usize, const R: usize, const C: usize>(t: &Tile) {
    // SAFETY: the caller's promises.
    unsafe {
        let step = if KIND == 4 { 128 } else { 64 };
        let mut acc = start::<V, R, C>(t);
        for k in 0..t.steps {
            let x = t.activations.cast::<f32>().add(k * GROUP + t.row);
            let mut weights = [load_floats::<V, KIND>(t.weights.add(k * step)); C];
            for c in 1..C {
                weights[c] = load_floats::<V, KIND>(t.weights.add(k * step + c * step / 2));
            }
            for r in 0..R {
                let x = V::splat(x.add(r).read());
                for c in 0..C {
                    acc[r][c] = V::fma(weights[c], x, acc[r][c]);
                }
            }
        }
        finish::<V, R, C>(t, acc);
    }
}

#[inline(always)]
unsafe fn load_floats<V: Simd + ?Sized, const KIND: usize>(p: *const u8) -> V::Floats {
    // SAFETY: the caller's promises.
    unsafe {
        match KIND {
            2 => V::load_f16(p),
            3 => V::load_bf16(p),
            _ => V::load(p.cast()),
        }
    }
}

#[inline(always)]
unsafe fn start<V: Simd + ?Sized, const R: usize, const C: usize>(t: &Tile) -> [[V::Floats; C]; R] {
    // SAFETY: the caller's promises.
    unsafe {
        let mut acc = [[V::splat(0.0); C]; R];
        for r in 0..R {
            for c in 0..C {
                V::prefetch(t.out.wrapping_add(r * t.out_stride + c * 64));
            }
        }
        if !t.fresh {
            for r in 0..R {
                for c in 0..C {
                    acc[r][c] = V::load(t.acc.add(r * PANEL + c * LANES));
                }
            }
        }
        acc
    }
}

#[inline(always)]
unsafe fn finish<V: Simd + ?Sized, const R: usize, const C: usize>(t: &Tile, acc: [[V::Floats; C]; R]) {
    // SAFETY: the caller's promises.
    unsafe {
        for r in 0..R {
            for c in 0..C {
                V::store(t.acc.add(r * PANEL + c * LANES), acc[r][c]);
            }
        }
    }
}
