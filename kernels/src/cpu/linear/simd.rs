//! What a kernel asks of an instruction set: the same 16 lanes everywhere, so that every kernel is written once
//! and gives the same bits on each.

use super::tile::{Tile, TileFn};
use crate::{Activation, DType};

/// Outputs that are computed side by side.
pub(super) const LANES: usize = 16;

/// Operations on 16 lanes, one per output.
///
/// All of them are unsafe to call for two reasons: the CPU must have the instruction set, and pointers must be
/// good for the lanes read or written. Implementations inline into functions that enable the instruction set;
/// so code over this trait has no closures around its operations (a closure would be compiled on its own, without
/// the instruction set).
pub(in crate::cpu) trait Simd: 'static {
    /// 16 × f32.
    type Floats: Copy;
    /// 16 × i32.
    type Ints: Copy;
    /// 16 partial sums that [`close`](Self::close) adds to the `Ints`.
    type Partial: Copy;
    /// 16 lanes × 4 unsigned bytes.
    type Codes: Copy;
    /// Four signed bytes in every lane.
    type Quad: Copy;

    /// Rows of a register tile, ascending; the last divides a group.
    const ROWS: &'static [usize];
    /// Steps of 8 inputs after which partial sums of 4, 5 and 6-bit codes are closed (at most).
    const OPEN_STEPS: [usize; 3];
    /// Whether 8-bit codes are multiplied as `code - 128`, so that their zero point is nothing to subtract.
    const CENTERED_BYTES: bool;

    unsafe fn splat(x: f32) -> Self::Floats;
    unsafe fn load(p: *const f32) -> Self::Floats;
    unsafe fn store(p: *mut f32, x: Self::Floats);
    /// From f16, exactly.
    unsafe fn load_f16(p: *const u8) -> Self::Floats;
    /// From bf16, exactly.
    unsafe fn load_bf16(p: *const u8) -> Self::Floats;
    unsafe fn load_u8(p: *const u8) -> Self::Floats;
    unsafe fn load_i8(p: *const u8) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn to_floats(x: Self::Ints) -> Self::Floats;

    unsafe fn splat_ints(x: i32) -> Self::Ints;
    unsafe fn partial() -> Self::Partial;
    /// Adds four products per lane, to either sum.
    unsafe fn dot<const BITS: usize>(
        sum: &mut Self::Ints,
        partial: &mut Self::Partial,
        codes: Self::Codes,
        x: Self::Quad,
    );
    /// Adds the partial sums and clears them.
    unsafe fn close(sum: &mut Self::Ints, partial: &mut Self::Partial);

    /// Asks for the cache line at `p`, which need not be valid.
    unsafe fn prefetch(p: *const u8);
    unsafe fn codes(p: *const u8) -> Self::Codes;
    unsafe fn quad(p: *const u8) -> Self::Quad;
    unsafe fn and(x: Self::Codes, mask: u8) -> Self::Codes;
    unsafe fn or(x: Self::Codes, y: Self::Codes) -> Self::Codes;
    /// Shifts by at most 4 bits; what crosses from a neighbouring byte is for the caller to mask.
    unsafe fn shr<const N: u32>(x: Self::Codes) -> Self::Codes;
    unsafe fn shl<const N: u32>(x: Self::Codes) -> Self::Codes;

    /// The tile kernel of a format for so many rows (one of `ROWS`), and its columns: registers of 16 outputs
    /// beside each other, 1 or 2 (a whole panel).
    fn tile(dtype: DType, rows: usize) -> (TileFn, usize);

    // The kernels, compiled for the instruction set: see `tile` and `rows` for what they do.
    unsafe fn quantized<const BITS: usize, const MIN: bool, const R: usize, const P: usize>(tile: &Tile);
    unsafe fn float<const WIDTH: usize, const R: usize, const P: usize>(tile: &Tile);
    unsafe fn expand(dtype: DType, scales: *const u8, first: usize, blocks: usize, out: *mut f32);
    unsafe fn quantize(x: &[f32], row: usize, record: *mut u8);
    unsafe fn gate(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]);
    unsafe fn activate(activation: Activation, x: &mut [f32]);
}

/// The kernels of an instruction set.
pub(in crate::cpu) struct Kernels {
    /// See [`Simd::ROWS`].
    pub(in crate::cpu) rows: &'static [usize],
    /// See [`Simd::tile`].
    pub(in crate::cpu) tile: fn(DType, rows: usize) -> (TileFn, usize),
    /// See [`super::rows::expand`].
    pub(in crate::cpu) expand: unsafe fn(DType, *const u8, usize, usize, *mut f32),
    /// See [`super::rows::quantize`].
    pub(in crate::cpu) quantize: unsafe fn(&[f32], usize, *mut u8),
    /// See [`super::rows::gate`].
    pub(in crate::cpu) gate: unsafe fn(Activation, &[f32], &[f32], &mut [f32]),
    /// See [`super::rows::activate`].
    pub(in crate::cpu) activate: unsafe fn(Activation, &mut [f32]),
}

impl Kernels {
    pub(super) const fn of<V: Simd>() -> Self {
        let (rows, gate, activate) = (V::ROWS, V::gate, V::activate);
        Self { rows, tile: V::tile, expand: V::expand, quantize: V::quantize, gate, activate }
    }
}

/// Compiles the kernels for an instruction set, within its `impl Simd`.
macro_rules! compile_kernels {
    ($($feature:literal)?) => {
        $(#[target_feature(enable = $feature)])?
        unsafe fn quantized<const BITS: usize, const MIN: bool, const R: usize, const P: usize>(t: &Tile) {
            // SAFETY: the caller's, as for the functions below.
            unsafe { tile::quantized::<Self, BITS, MIN, R, P>(t) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn float<const WIDTH: usize, const R: usize, const P: usize>(t: &Tile) {
            // SAFETY: the caller's.
            unsafe { tile::float::<Self, WIDTH, R, P>(t) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn expand(dtype: DType, scales: *const u8, first: usize, blocks: usize, out: *mut f32) {
            // SAFETY: the caller's.
            unsafe { rows::expand::<Self>(dtype, scales, first, blocks, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn quantize(x: &[f32], row: usize, record: *mut u8) {
            // SAFETY: the caller's.
            unsafe { rows::quantize(x, row, record) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn gate(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
            rows::gate(activation, gate, up, out)
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn activate(activation: Activation, x: &mut [f32]) {
            rows::activate(activation, x)
        }
    };
}
pub(super) use compile_kernels;
