//! AVX-512 with VNNI: a panel is one register, four inputs one instruction.

use std::arch::x86_64::*;

use super::rows;
use super::simd::{Simd, compile_kernels};
use super::tile::{self, Tile, TileFn};
use crate::{Activation, DType};

/// 512-bit registers.
pub(super) struct Avx512;

// SAFETY of the blocks below: the trait's contract gives the instruction set and good pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type Floats = __m512;
    type Ints = __m512i;
    type Partial = ();
    type Codes = __m512i;
    type Quad = __m512i;

    const ROWS: &'static [usize] = &[1, 2, 4, 6];
    const OPEN_STEPS: [usize; 3] = [4; 3];
    const CENTERED_BYTES: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn to_floats(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_ints(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn partial() {}
    #[inline(always)]
    unsafe fn dot<const BITS: usize>(sum: &mut __m512i, _: &mut (), codes: __m512i, x: __m512i) {
        unsafe { *sum = _mm512_dpbusd_epi32(*sum, codes, x) }
    }
    #[inline(always)]
    unsafe fn close(_: &mut __m512i, _: &mut ()) {}
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn codes(p: *const u8) -> __m512i {
        unsafe { _mm512_load_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn quad(p: *const u8) -> __m512i {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read()) }
    }
    #[inline(always)]
    unsafe fn and(x: __m512i, mask: u8) -> __m512i {
        unsafe { _mm512_and_si512(x, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn or(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(x, y) }
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(x: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi16::<N>(x) }
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(x: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi16::<N>(x) }
    }

    fn tile(dtype: DType, rows: usize) -> (TileFn, usize) {
        match rows {
            1 => tile::shaped::<Self, 1, 2>(dtype),
            2 => tile::shaped::<Self, 2, 2>(dtype),
            4 => tile::shaped::<Self, 4, 2>(dtype),
            _ => tile::shaped::<Self, 6, 2>(dtype),
        }
    }

    compile_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
}
