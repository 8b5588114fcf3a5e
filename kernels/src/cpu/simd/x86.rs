//! [`Lanes`] over AVX-512 and over pairs of AVX2 vectors.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

/// One AVX-512 register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// Two AVX registers: lanes 0–7 and 8–15.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Compiles a kernel for AVX-512.
///
/// # Safety
/// This machine has it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi1,bmi2,lzcnt")]
pub(super) unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as the caller promises.
    unsafe { kernel.run::<Avx512>() }
}

/// Compiles a kernel for AVX2.
///
/// # Safety
/// This machine has it, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c,popcnt,bmi1,bmi2,lzcnt")]
pub(super) unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as the caller promises.
    unsafe { kernel.run::<Avx2>() }
}

/// A method whose body needs no more than the instruction set, which `self` shows to be there.
macro_rules! method {
    ($name:ident($self:ident $(, $arg:ident: $type:ty)*) -> $output:ty $body:block) => {
        #[inline(always)]
        fn $name($self $(, $arg: $type)*) -> $output {
            // SAFETY: a value of this type exists only on machines that have the instruction set.
            unsafe { $body }
        }
    };
}

// === impl Avx512 ===

impl Lanes for Avx512 {
    const ACCUMULATORS: usize = 24;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self(_mm512_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: as the caller promises.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    method!(add(self, b: Self) -> Self { Self(_mm512_add_ps(self.0, b.0)) });
    method!(sub(self, b: Self) -> Self { Self(_mm512_sub_ps(self.0, b.0)) });
    method!(mul(self, b: Self) -> Self { Self(_mm512_mul_ps(self.0, b.0)) });
    method!(div(self, b: Self) -> Self { Self(_mm512_div_ps(self.0, b.0)) });
    method!(fma(self, b: Self, c: Self) -> Self { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) });
    method!(max(self, b: Self) -> Self { Self(_mm512_max_ps(self.0, b.0)) });
    method!(min(self, b: Self) -> Self { Self(_mm512_min_ps(self.0, b.0)) });
    method!(zero_below(self, x: Self, bound: Self) -> Self {
        Self(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x.0, bound.0), self.0))
    });
    method!(first(self, n: usize, fill: Self) -> Self {
        Self(_mm512_mask_mov_ps(fill.0, ((1u32 << n) - 1) as u16, self.0))
    });
    method!(power_of_two(self) -> Self {
        let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
        Self(_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f80_0000))))
    });
    method!(sum(self) -> f32 {
        sum8(_mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)))
    });
    method!(largest(self) -> f32 {
        largest8(_mm256_max_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)))
    });
}

// === impl Avx2 ===

impl Lanes for Avx2 {
    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            Self(low, _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: as the caller promises.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
        }
    }
    method!(add(self, b: Self) -> Self { Self(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) });
    method!(sub(self, b: Self) -> Self { Self(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) });
    method!(mul(self, b: Self) -> Self { Self(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) });
    method!(div(self, b: Self) -> Self { Self(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)) });
    method!(fma(self, b: Self, c: Self) -> Self {
        Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1))
    });
    method!(max(self, b: Self) -> Self { Self(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)) });
    method!(min(self, b: Self) -> Self { Self(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1)) });
    method!(zero_below(self, x: Self, bound: Self) -> Self {
        Self(
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x.0, bound.0), self.0),
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x.1, bound.1), self.1),
        )
    });
    method!(first(self, n: usize, fill: Self) -> Self {
        let n = _mm256_set1_epi32(n as i32);
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, lanes));
        let high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))));
        Self(_mm256_blendv_ps(fill.0, self.0, low), _mm256_blendv_ps(fill.1, self.1, high))
    });
    method!(power_of_two(self) -> Self { Self(power_of_two8(self.0), power_of_two8(self.1)) });
    method!(sum(self) -> f32 { sum8(_mm256_add_ps(self.0, self.1)) });
    method!(largest(self) -> f32 { largest8(_mm256_max_ps(self.0, self.1)) });
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn power_of_two8(x: __m256) -> __m256 {
    let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(x));
    _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f80_0000)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum8(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn largest8(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}
