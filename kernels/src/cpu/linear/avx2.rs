//! AVX2 with FMA: a panel is two registers. Products are summed as 16-bit integers for as long as they fit.

use std::arch::x86_64::*;

use super::rows;
use super::simd::{Simd, compile_kernels};
use super::tile::{self, Tile, TileFn};
use crate::{Activation, DType};

/// 256-bit registers, in pairs.
pub(super) struct Avx2;

/// Both halves of a panel.
type Pair<T> = [T; 2];

// SAFETY of the blocks below: the trait's contract gives the instruction set and good pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type Floats = Pair<__m256>;
    type Ints = Pair<__m256i>;
    /// 2 × 8 × i16.
    type Partial = Pair<__m256i>;
    type Codes = Pair<__m256i>;
    type Quad = __m256i;

    const ROWS: &'static [usize] = &[1, 2];
    /// A step adds 4 products of at most 15, 31 or 63 × 127 to each 16-bit sum: 4, 2, 1 steps stay below 2¹⁵.
    const OPEN_STEPS: [usize; 3] = [4, 2, 1];
    const CENTERED_BYTES: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Pair<__m256> {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Pair<__m256> {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Pair<__m256>) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Pair<__m256> {
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Pair<__m256> {
        unsafe { [widen_bf16(p), widen_bf16(p.add(16))] }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Pair<__m256> {
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            Self::to_floats([low, high])
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Pair<__m256> {
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            Self::to_floats([low, high])
        }
    }
    #[inline(always)]
    unsafe fn mul(a: Pair<__m256>, b: Pair<__m256>) -> Pair<__m256> {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Pair<__m256>, b: Pair<__m256>, c: Pair<__m256>) -> Pair<__m256> {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn to_floats(x: Pair<__m256i>) -> Pair<__m256> {
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }
    #[inline(always)]
    unsafe fn splat_ints(x: i32) -> Pair<__m256i> {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn partial() -> Pair<__m256i> {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn dot<const BITS: usize>(
        sum: &mut Pair<__m256i>,
        partial: &mut Pair<__m256i>,
        codes: Pair<__m256i>,
        x: __m256i,
    ) {
        for half in 0..2 {
            unsafe {
                if BITS == 8 {
                    // Unsigned codes would overflow 16 bits; |w| · (sign of w · x) does not.
                    let w = _mm256_xor_si256(codes[half], _mm256_set1_epi8(-128));
                    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                    let wide = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
                    sum[half] = _mm256_add_epi32(sum[half], wide);
                } else {
                    partial[half] = _mm256_add_epi16(partial[half], _mm256_maddubs_epi16(codes[half], x));
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn close(sum: &mut Pair<__m256i>, partial: &mut Pair<__m256i>) {
        for half in 0..2 {
            unsafe {
                let wide = _mm256_madd_epi16(partial[half], _mm256_set1_epi16(1));
                sum[half] = _mm256_add_epi32(sum[half], wide);
                partial[half] = _mm256_setzero_si256();
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn codes(p: *const u8) -> Pair<__m256i> {
        unsafe { [_mm256_load_si256(p.cast()), _mm256_load_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn quad(p: *const u8) -> __m256i {
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read()) }
    }
    #[inline(always)]
    unsafe fn and(x: Pair<__m256i>, mask: u8) -> Pair<__m256i> {
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
        }
    }
    #[inline(always)]
    unsafe fn or(x: Pair<__m256i>, y: Pair<__m256i>) -> Pair<__m256i> {
        unsafe { [_mm256_or_si256(x[0], y[0]), _mm256_or_si256(x[1], y[1])] }
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(x: Pair<__m256i>) -> Pair<__m256i> {
        unsafe { [shift_right::<N>(x[0]), shift_right::<N>(x[1])] }
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(x: Pair<__m256i>) -> Pair<__m256i> {
        unsafe { [shift_left::<N>(x[0]), shift_left::<N>(x[1])] }
    }

    fn tile(dtype: DType, rows: usize) -> (TileFn, usize) {
        match rows {
            1 => tile::shaped::<Self, 1, 2>(dtype),
            _ => tile::shaped::<Self, 2, 1>(dtype),
        }
    }

    compile_kernels!("avx2,fma,f16c");
}

/// # Safety
/// `p` has eight numbers.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen_bf16(p: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    let narrow = unsafe { _mm_loadu_si128(p.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow)))
}

// The intrinsics take a constant of another type than `Simd`'s.

#[inline]
#[target_feature(enable = "avx2")]
fn shift_right<const N: u32>(x: __m256i) -> __m256i {
    match N {
        1 => _mm256_srli_epi16::<1>(x),
        2 => _mm256_srli_epi16::<2>(x),
        3 => _mm256_srli_epi16::<3>(x),
        _ => _mm256_srli_epi16::<4>(x),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn shift_left<const N: u32>(x: __m256i) -> __m256i {
    match N {
        1 => _mm256_slli_epi16::<1>(x),
        2 => _mm256_slli_epi16::<2>(x),
        3 => _mm256_slli_epi16::<3>(x),
        _ => _mm256_slli_epi16::<4>(x),
    }
}
