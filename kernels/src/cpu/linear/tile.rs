//! The inner loops: a register tile of R rows × P panels (of 16 outputs), over the inputs in order.
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

use super::simd::Simd;
use crate::DType;
use crate::cpu::pack::PANEL;
use crate::cpu::prepared::{GROUP, RECORD};

/// Blocks whose scales are expanded at a time.
pub(super) const CHUNK: usize = 32;
/// Floats between one panel's expanded scales and the next one's.
pub(super) const SCALES: usize = CHUNK * 2 * PANEL;

/// The operands of a tile.
pub(in crate::cpu) struct Tile {
    /// `[row][panel][16]` sums.
    pub(super) acc: *mut f32,
    /// Start from zero instead of what stands in `acc`.
    pub(super) fresh: bool,
    /// Codes (or floats) of the first panel from the first step on, and the distance of panels in bytes.
    pub(super) weights: *const u8,
    pub(super) stride: usize,
    /// Expanded scales, `SCALES` floats a panel: per block `[scale][min]`, or one `[scale]` per 16 inputs.
    pub(super) scales: *const f32,
    /// The rows' group from the first step on.
    pub(super) activations: *const u8,
    /// First row within the group.
    pub(super) row: usize,
    /// Blocks (inputs, for floats) to go.
    pub(super) steps: usize,
}

/// A kernel for tiles of one shape and format. Its caller vouches for the instruction set and for pointers that
/// are good for the whole tile.
pub(in crate::cpu) type TileFn = unsafe fn(&Tile);

/// The kernel for `rows` × `panels` of `dtype`.
pub(super) fn select<V: Simd>(dtype: DType, rows: usize, panels: usize) -> TileFn {
    match (panels, rows) {
        (1, 1) => shaped::<V, 1, 1>(dtype),
        (1, 2) => shaped::<V, 2, 1>(dtype),
        (1, _) => shaped::<V, 4, 1>(dtype),
        (_, 1) => shaped::<V, 1, 3>(dtype),
        (_, 2) => shaped::<V, 2, 3>(dtype),
        (_, _) => shaped::<V, 4, 3>(dtype),
    }
}

fn shaped<V: Simd, const R: usize, const P: usize>(dtype: DType) -> TileFn {
    match dtype {
        DType::F32 => V::float::<4, R, P>,
        DType::F16 => V::float::<2, R, P>,
        DType::BF16 => V::float::<3, R, P>,
        DType::Q4_0 => V::quantized::<4, false, R, P>,
        DType::Q4_1 | DType::Q4K => V::quantized::<4, true, R, P>,
        DType::Q5_0 => V::quantized::<5, false, R, P>,
        DType::Q5_1 | DType::Q5K => V::quantized::<5, true, R, P>,
        DType::Q6K => V::quantized::<6, false, R, P>,
        DType::Q8_0 => V::quantized::<8, false, R, P>,
    }
}

/// The tile of a quantized format: `BITS` per code, with a minimum per block or a zero point in the middle.
#[inline(always)]
pub(super) unsafe fn quantized<
    V: Simd + ?Sized,
    const BITS: usize,
    const MIN: bool,
    const R: usize,
    const P: usize,
>(
    t: &Tile,
) {
    // SAFETY: the caller's promises, for this block and the functions below.
    unsafe {
        let halves = BITS == 6;
        let step = match BITS {
            4 => 256,
            5 => 320,
            6 => 384,
            _ => 512,
        };
        let mut acc = start::<V, R, P>(t);
        for block in 0..t.steps {
            let record = t.activations.add(block * RECORD);
            let codes = t.weights.add(block * step);
            let x = record.add(t.row * 32);
            let row = record.add(GROUP * 32 + t.row * 4);
            let scales = t.scales.add(block * PANEL * if MIN || halves { 2 } else { 1 });

            let sum = |at: usize, r: usize| row.add(at * GROUP * 4 + r * 4).cast::<i32>().read();
            let zero = |sum: i32| if MIN || BITS == 8 && V::CENTERED_BYTES { 0 } else { sum << (BITS - 1) };
            let first = |r: usize| zero(sum(if halves { 3 } else { 2 }, r));
            let mut ints = [[V::splat_ints(first(0)); P]; R];
            for r in 1..R {
                ints[r] = [V::splat_ints(first(r)); P];
            }
            let mut partial = [[V::partial(); P]; R];
            steps::<V, BITS, R, P>(0, codes, t.stride, x, &mut ints, &mut partial);
            steps::<V, BITS, R, P>(1, codes, t.stride, x, &mut ints, &mut partial);
            if halves {
                fold::<V, false, R, P>(&ints, row, scales, &mut acc);
                for r in 0..R {
                    ints[r] = [V::splat_ints(zero(sum(2, r) - sum(3, r))); P];
                }
            }
            steps::<V, BITS, R, P>(2, codes, t.stride, x, &mut ints, &mut partial);
            steps::<V, BITS, R, P>(3, codes, t.stride, x, &mut ints, &mut partial);
            let scales = if halves { scales.add(PANEL) } else { scales };
            fold::<V, MIN, R, P>(&ints, row, scales, &mut acc);
        }
        finish::<V, R, P>(t, acc);
    }
}

/// Multiplies 8 inputs: the `v`-th quarter of a block.
#[inline(always)]
unsafe fn steps<V: Simd + ?Sized, const BITS: usize, const R: usize, const P: usize>(
    v: usize,
    codes: *const u8,
    stride: usize,
    x: *const u8,
    ints: &mut [[V::Ints; P]; R],
    partial: &mut [[V::Partial; P]; R],
) {
    // SAFETY: the caller's promises.
    unsafe {
        for high in 0..2 {
            let mut weights = [load_codes::<V, BITS>(codes, v, high == 1); P];
            for p in 1..P {
                weights[p] = load_codes::<V, BITS>(codes.add(p * stride), v, high == 1);
            }
            for r in 0..R {
                let x = V::quad(x.add(r * 32 + v * 8 + high * 4));
                for p in 0..P {
                    V::dot::<BITS>(&mut ints[r][p], &mut partial[r][p], weights[p], x);
                }
            }
        }
        let closes = BITS == 8 || (v + 1).is_multiple_of(V::OPEN_STEPS[BITS - 4]);
        if closes {
            for r in 0..R {
                for p in 0..P {
                    V::close(&mut ints[r][p], &mut partial[r][p]);
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
            return V::codes(p.add((2 * v + usize::from(high)) * 64));
        }
        let both = V::codes(p.add(v * 64));
        let nibble = if high { V::and(V::shr::<4>(both), 15) } else { V::and(both, 15) };
        if BITS == 4 {
            return nibble;
        }
        let bits = BITS - 4;
        let plane = V::codes(p.add(256 + v * bits / 4 * 64));
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
unsafe fn fold<V: Simd + ?Sized, const MIN: bool, const R: usize, const P: usize>(
    ints: &[[V::Ints; P]; R],
    row: *const u8,
    scales: *const f32,
    acc: &mut [[V::Floats; P]; R],
) {
    // SAFETY: the caller's promises.
    unsafe {
        for r in 0..R {
            let x_scale = V::splat(row.add(r * 4).cast::<f32>().read());
            let x_sum = V::splat(row.add(GROUP * 4 + r * 4).cast::<f32>().read());
            for p in 0..P {
                let scaled = V::mul(V::to_floats(ints[r][p]), x_scale);
                acc[r][p] = V::fma(scaled, V::load(scales.add(p * SCALES)), acc[r][p]);
                if MIN {
                    acc[r][p] = V::fma(V::load(scales.add(p * SCALES + PANEL)), x_sum, acc[r][p]);
                }
            }
        }
    }
}

/// The tile of a float format: 4 = f32, 2 = f16, 3 = bf16.
#[inline(always)]
pub(super) unsafe fn float<V: Simd + ?Sized, const KIND: usize, const R: usize, const P: usize>(t: &Tile) {
    // SAFETY: the caller's promises.
    unsafe {
        let step = if KIND == 4 { 64 } else { 32 };
        let mut acc = start::<V, R, P>(t);
        for k in 0..t.steps {
            let x = t.activations.cast::<f32>().add(k * GROUP + t.row);
            let mut weights = [load_floats::<V, KIND>(t.weights.add(k * step)); P];
            for p in 1..P {
                weights[p] = load_floats::<V, KIND>(t.weights.add(p * t.stride + k * step));
            }
            for r in 0..R {
                let x = V::splat(x.add(r).read());
                for p in 0..P {
                    acc[r][p] = V::fma(weights[p], x, acc[r][p]);
                }
            }
        }
        finish::<V, R, P>(t, acc);
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
unsafe fn start<V: Simd + ?Sized, const R: usize, const P: usize>(t: &Tile) -> [[V::Floats; P]; R] {
    // SAFETY: the caller's promises.
    unsafe {
        let mut acc = [[V::splat(0.0); P]; R];
        if !t.fresh {
            for r in 0..R {
                for p in 0..P {
                    acc[r][p] = V::load(t.acc.add((r * P + p) * PANEL));
                }
            }
        }
        acc
    }
}

#[inline(always)]
unsafe fn finish<V: Simd + ?Sized, const R: usize, const P: usize>(t: &Tile, acc: [[V::Floats; P]; R]) {
    // SAFETY: the caller's promises.
    unsafe {
        for r in 0..R {
            for p in 0..P {
                V::store(t.acc.add((r * P + p) * PANEL), acc[r][p]);
            }
        }
    }
}
