//! The kernels in plain Rust, for every other CPU. Arrays of 16 lanes are what compilers vectorize.

use std::array::from_fn;

use half::{bf16, f16};

use super::rows;
use super::simd::{Simd, compile_kernels};
use super::tile::{self, Tile, TileFn};
use crate::{Activation, DType};

/// No particular instruction set.
pub(super) struct Portable;

#[allow(clippy::missing_safety_doc)] // the trait's head says what is asked
impl Simd for Portable {
    type Floats = [f32; 16];
    type Ints = [i32; 16];
    type Partial = ();
    type Codes = [u8; 64];
    type Quad = [i8; 4];

    const ROWS: &'static [usize] = &[1, 2];
    const OPEN_STEPS: [usize; 3] = [4; 3];
    const CENTERED_BYTES: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 16] {
        // SAFETY: good for 16 numbers by the trait's contract, like the pointers below.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [f32; 16]) {
        // SAFETY: by contract.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [f32; 16] {
        // SAFETY: by contract.
        let x = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        x.map(|x| f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> [f32; 16] {
        // SAFETY: by contract.
        let x = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        x.map(|x| bf16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [f32; 16] {
        // SAFETY: by contract.
        unsafe { p.cast::<[u8; 16]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> [f32; 16] {
        // SAFETY: by contract.
        unsafe { p.cast::<[i8; 16]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn to_floats(x: [i32; 16]) -> [f32; 16] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn splat_ints(x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn partial() {}
    #[inline(always)]
    unsafe fn dot<const BITS: usize>(sum: &mut [i32; 16], _: &mut (), codes: [u8; 64], x: [i8; 4]) {
        for (sum, codes) in sum.iter_mut().zip(codes.as_chunks::<4>().0) {
            for (&code, &x) in codes.iter().zip(&x) {
                *sum += i32::from(code) * i32::from(x);
            }
        }
    }
    #[inline(always)]
    unsafe fn close(_: &mut [i32; 16], _: &mut ()) {}
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn codes(p: *const u8) -> [u8; 64] {
        // SAFETY: by contract.
        unsafe { p.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn quad(p: *const u8) -> [i8; 4] {
        // SAFETY: by contract.
        unsafe { p.cast::<[i8; 4]>().read() }
    }
    #[inline(always)]
    unsafe fn and(x: [u8; 64], mask: u8) -> [u8; 64] {
        x.map(|x| x & mask)
    }
    #[inline(always)]
    unsafe fn or(x: [u8; 64], y: [u8; 64]) -> [u8; 64] {
        from_fn(|i| x[i] | y[i])
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x >> N)
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x << N)
    }

    fn tile(dtype: DType, rows: usize) -> (TileFn, usize) {
        match rows {
            1 => tile::shaped::<Self, 1, 1>(dtype),
            _ => tile::shaped::<Self, 2, 1>(dtype),
        }
    }

    compile_kernels!();
}
