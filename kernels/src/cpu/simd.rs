//! Vectors of sixteen f32 with the same results on every instruction set.
//!
//! A kernel is written once over [`Lanes`] and compiled for each instruction set ([`run`] picks one). Each
//! operation rounds once, sums across lanes follow one fixed tree, and multiply-adds are fused everywhere, so
//! that the instruction set changes speed and never a bit.

use super::isa::Isa;

/// Lanes of a vector.
pub(crate) const WIDTH: usize = 16;

/// A computation written over [`Lanes`].
pub(crate) trait Kernel {
    /// What it gives.
    type Output;
    /// Runs it. Must be `#[inline(always)]`, as must all that it calls with `L`.
    ///
    /// # Safety
    /// This machine has the instruction set of `L`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Sixteen f32. A value is proof that the machine has the instruction set, so only making one is unsafe.
pub(crate) trait Lanes: Copy {
    /// Vectors of accumulators that fit the registers beside a kernel's operands.
    const ACCUMULATORS: usize;

    /// `x` in every lane.
    ///
    /// # Safety
    /// This machine has the instruction set.
    unsafe fn splat(x: f32) -> Self;
    /// Sixteen numbers from `p`, aligned or not.
    ///
    /// # Safety
    /// This machine has the instruction set; `p` has sixteen numbers.
    unsafe fn load(p: *const f32) -> Self;
    /// Sixteen halves from `p`, aligned or not.
    ///
    /// # Safety
    /// As [`load`](Self::load).
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Writes all lanes to `p`, aligned or not.
    ///
    /// # Safety
    /// `p` has room for sixteen numbers.
    unsafe fn store(self, p: *mut f32);
    /// Writes all lanes to `p` as halves, rounded to nearest even.
    ///
    /// # Safety
    /// `p` has room for sixteen halves.
    unsafe fn store_f16(self, p: *mut u16);
    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self - b`.
    fn sub(self, b: Self) -> Self;
    /// `self · b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// `self · b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `self > b ? self : b`: `b` where either is NaN.
    fn max(self, b: Self) -> Self;
    /// `self < b ? self : b`: `b` where either is NaN.
    fn min(self, b: Self) -> Self;
    /// `x ≥ bound ? self : 0`.
    fn zero_below(self, x: Self, bound: Self) -> Self;
    /// The first `n` lanes of `self`, then `fill`.
    fn first(self, n: usize, fill: Self) -> Self;
    /// 2ⁿ for an integer `n` in −126..=127, given as the number `1.5·2²³ + n`.
    fn power_of_two(self) -> Self;
    /// Sum of the lanes: halves are added onto each other, four times.
    fn sum(self) -> f32;
    /// Largest lane, by the same tree.
    fn largest(self) -> f32;
}

/// Runs `kernel` with the vectors of `isa`.
///
/// # Safety
/// This machine has `isa`.
pub(crate) unsafe fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    // SAFETY: as the caller promises.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(kernel),
            _ => kernel.run::<Portable>(),
        }
    }
}

/// eˣ for x ≤ 0, at most 1 unit in the last place off; 0 below e^−87.3 and for NaN.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    // Cephes' polynomial over r = x − n·ln 2, |r| ≤ ln 2 / 2.
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    const LOWEST: f32 = -87.3;
    /// Adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: `x` shows that the machine has the instruction set.
    unsafe {
        let (lowest, round) = (L::splat(LOWEST), L::splat(ROUND));
        let clamped = x.max(lowest);
        let shifted = clamped.fma(L::splat(std::f32::consts::LOG2_E), round);
        let n = shifted.sub(round);
        // ln 2 in two parts, the first of which times `n` is exact.
        let r = n.fma(L::splat(-0.693_359_4), clamped);
        let r = n.fma(L::splat(2.121_944_4e-4), r);
        let mut y = L::splat(POLYNOMIAL[0]);
        for coefficient in &POLYNOMIAL[1..] {
            y = y.fma(r, L::splat(*coefficient));
        }
        let y = y.fma(r.mul(r), r).add(L::splat(1.0));
        y.mul(shifted.power_of_two()).zero_below(x, lowest)
    }
}

/// Plain Rust, for the compiler to vectorize with what the target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; WIDTH]);

// === impl Portable ===

impl Portable {
    #[inline(always)]
    fn each(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }

    #[inline(always)]
    fn fold(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut x = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] = f(x[i], x[i + half]);
            }
        }
        x[0]
    }
}

impl Lanes for Portable {
    const ACCUMULATORS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; WIDTH])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { p.cast::<[f32; WIDTH]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: as the caller promises.
        let halves = unsafe { p.cast::<[u16; WIDTH]>().read_unaligned() };
        Self(halves.map(|bits| half::f16::from_bits(bits).to_f32()))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<[f32; WIDTH]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        let halves = self.0.map(|x| half::f16::from_f32(x).to_bits());
        // SAFETY: as the caller promises.
        unsafe { p.cast::<[u16; WIDTH]>().write_unaligned(halves) }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.each(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.each(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.each(b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.each(b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.each(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.each(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn zero_below(self, x: Self, bound: Self) -> Self {
        Self(std::array::from_fn(|i| if x.0[i] >= bound.0[i] { self.0[i] } else { 0.0 }))
    }
    #[inline(always)]
    fn first(self, n: usize, fill: Self) -> Self {
        Self(std::array::from_fn(|i| if i < n { self.0[i] } else { fill.0[i] }))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(self.0.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(1f32.to_bits()))))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(|a, b| if a > b { a } else { b })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every operation over two vectors and a count, flattened.
    struct All([f32; WIDTH], [f32; WIDTH], usize);

    impl Kernel for All {
        type Output = Vec<u32>;
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) -> Vec<u32> {
            let Self(a, b, n) = self;
            // SAFETY: as the caller promises; the arrays have sixteen numbers.
            let (a, b) = unsafe { (L::load(a.as_ptr()), L::load(b.as_ptr())) };
            let x = a.first(n, b);
            let vectors =
                [a.add(b), a.sub(b), a.mul(b), a.fma(b, x), a.max(b), a.min(b), x, a.zero_below(b, x)];
            let mut out = vec![b.sum().to_bits(), b.largest().to_bits()];
            for vector in vectors.into_iter().chain([exp(a), exp(b)]) {
                let (mut numbers, mut halves) = ([0f32; WIDTH], [0u16; WIDTH]);
                // SAFETY: the arrays have room for sixteen numbers.
                let back = unsafe {
                    vector.store(numbers.as_mut_ptr());
                    vector.store_f16(halves.as_mut_ptr());
                    L::load_f16(halves.as_ptr())
                };
                out.extend(numbers.map(f32::to_bits));
                out.extend(halves.map(u32::from));
                // SAFETY: as above.
                unsafe { back.store(numbers.as_mut_ptr()) };
                out.extend(numbers.map(f32::to_bits));
            }
            out
        }
    }

    struct Exp(f32);

    impl Kernel for Exp {
        type Output = f32;
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) -> f32 {
            // SAFETY: as the caller promises.
            exp(unsafe { L::splat(self.0) }).largest()
        }
    }

    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -10f32..10.0,
            1 => -100f32..0.0,
            1 => -1e-7f32..1e-7,
            1 => proptest::num::f32::NORMAL | proptest::num::f32::SUBNORMAL | proptest::num::f32::ZERO
                | proptest::num::f32::INFINITE,
        ]
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bits(
            a in proptest::array::uniform16(number()),
            b in proptest::array::uniform16(number()),
            n in 0usize..=WIDTH,
        ) {
            // NaNs may differ in sign and payload.
            let canonical = |bits: Vec<u32>| -> Vec<u32> {
                bits.into_iter().map(|x| if f32::from_bits(x).is_nan() { 0x7fc0_0000 } else { x }).collect()
            };
            // SAFETY: the machine has what `available` lists.
            let results: Vec<_> = Isa::available()
                .into_iter()
                .map(|isa| canonical(unsafe { run(isa, All(a, b, n)) }))
                .collect();
            for result in &results {
                prop_assert_eq!(result, &results[0]);
            }
        }
    }

    #[test]
    fn exp_is_within_one_unit_in_the_last_place() {
        let isa = Isa::detect();
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -(i as f32) * 87.2 / 2e6;
            let exact = f64::from(x).exp();
            // SAFETY: the machine has what `detect` gives.
            let error = (f64::from(unsafe { run(isa, Exp(x)) }) - exact).abs();
            let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1) - exact as f32);
            worst = worst.max(error / ulp);
        }
        assert!(worst <= 1.0, "{worst}");
    }

    #[test]
    fn exp_is_exact_at_its_ends() {
        for isa in Isa::available() {
            for (x, y) in [(0.0, 1.0), (-0.0, 1.0), (f32::NEG_INFINITY, 0.0), (-88.0, 0.0), (f32::NAN, 0.0)] {
                // SAFETY: the machine has what `available` lists.
                assert_eq!(unsafe { run(isa, Exp(x)) }, y, "{isa:?} {x}");
            }
        }
    }
}
