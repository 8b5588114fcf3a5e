//! Numbers held within soft bounds: `cap · tanh(x / cap)`.

use super::norm::{load, store};
use super::simd::{Kernel, Lanes, WIDTH, exp};

/// Bounds all numbers of a slice.
pub(crate) struct SoftCap<'a> {
    pub(crate) numbers: &'a mut [f32],
    pub(crate) cap: f32,
}

/// `cap · tanh(x / cap)`, some 1e-7 of the cap off.
#[inline(always)]
pub(crate) fn soft_cap<L: Lanes>(x: L, cap: L) -> L {
    // SAFETY: `x` shows that the machine has the instruction set.
    let (zero, one, minus_two) = unsafe { (L::splat(0.0), L::splat(1.0), L::splat(-2.0)) };
    let negative = zero.sub(x);
    // tanh |y| = (1 − e^(−2|y|)) / (1 + e^(−2|y|)).
    let power = exp(x.max(negative).div(cap).mul(minus_two));
    let capped = one.sub(power).div(one.add(power)).mul(cap);
    capped.zero_below(x, zero).sub(capped.zero_below(negative, zero))
}

// === impl SoftCap ===

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: as the caller promises; `load` and `store` keep to the slice.
        unsafe {
            let cap = L::splat(self.cap);
            for numbers in self.numbers.chunks_mut(WIDTH) {
                store(soft_cap(load::<L>(numbers), cap), numbers);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;
    use crate::cpu::simd;

    #[test]
    fn numbers_are_capped_as_tanh_does_on_every_instruction_set() {
        let numbers: Vec<f32> =
            (-2000..=2000).map(|i| i as f32 * 0.05).chain([0.0, 1e-6, 1e30, -1e30]).collect();
        let mut reference: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut capped = numbers.clone();
            // SAFETY: this machine has `isa`.
            unsafe { simd::run(isa, SoftCap { numbers: &mut capped, cap: 30.0 }) };
            for (x, capped) in numbers.iter().zip(&capped) {
                let expected = 30.0 * (f64::from(*x) / 30.0).tanh();
                assert!((f64::from(*capped) - expected).abs() < 1e-5, "{x}: {capped}, not {expected}");
            }
            assert_eq!(reference.get_or_insert(capped.clone()), &capped, "{isa:?}");
        }
    }
}
