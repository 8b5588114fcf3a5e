//! RMS norm of a row. The squares are summed in 64 lanes, which are added by a fixed tree.

use super::simd::{Kernel, Lanes, WIDTH};

/// `out = x / rms(x) · gain`.
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) gain: &'a [f32],
    pub(crate) epsilon: f32,
    pub(crate) out: &'a mut [f32],
}

// === impl RmsNorm ===

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, gain, epsilon, out } = self;
        assert!(
            x.len() == gain.len() && x.len() == out.len(),
            "a norm of {} gains over {}",
            gain.len(),
            x.len()
        );
        // SAFETY: as the caller promises; `load` and `store` keep to the slices.
        unsafe {
            let mut sums = [L::splat(0.0); 4];
            for (i, chunk) in x.chunks(WIDTH).enumerate() {
                let numbers = load::<L>(chunk);
                sums[i % 4] = numbers.fma(numbers, sums[i % 4]);
            }
            let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
            let scale = L::splat(1.0 / (sum / x.len() as f32 + epsilon).sqrt());
            for ((x, gain), out) in x.chunks(WIDTH).zip(gain.chunks(WIDTH)).zip(out.chunks_mut(WIDTH)) {
                store(load::<L>(x).mul(scale).mul(load::<L>(gain)), out);
            }
        }
    }
}

/// A whole vector, or what there is of it and zeros.
///
/// # Safety
/// This machine has the instruction set.
#[inline(always)]
pub(crate) unsafe fn load<L: Lanes>(numbers: &[f32]) -> L {
    if numbers.len() >= WIDTH {
        // SAFETY: sixteen numbers.
        return unsafe { L::load(numbers.as_ptr()) };
    }
    let mut padded = [0.0; WIDTH];
    padded[..numbers.len()].copy_from_slice(numbers);
    // SAFETY: sixteen numbers.
    unsafe { L::load(padded.as_ptr()) }
}

/// Writes a whole vector, or as much of it as there is room for.
#[inline(always)]
pub(crate) fn store<L: Lanes>(vector: L, numbers: &mut [f32]) {
    if numbers.len() >= WIDTH {
        // SAFETY: room for sixteen numbers.
        return unsafe { vector.store(numbers.as_mut_ptr()) };
    }
    let mut padded = [0.0; WIDTH];
    // SAFETY: room for sixteen numbers.
    unsafe { vector.store(padded.as_mut_ptr()) };
    numbers.copy_from_slice(&padded[..numbers.len()]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::isa::Isa;
    use crate::cpu::simd;

    fn norm(isa: Isa, x: &[f32], gain: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        // SAFETY: callers pass what the machine has.
        unsafe { simd::run(isa, RmsNorm { x, gain, epsilon: 1e-5, out: &mut out }) };
        out
    }

    proptest! {
        #[test]
        fn a_norm_is_what_it_is_defined_as_on_every_instruction_set(
            row in proptest::collection::vec((-9f32..9.0, -2f32..2.0), 1..700),
        ) {
            let (x, gain): (Vec<f32>, Vec<f32>) = row.into_iter().unzip();
            let square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
            let reference = norm(Isa::available()[0], &x, &gain);
            for ((&y, &x), &gain) in reference.iter().zip(&x).zip(&gain) {
                let expected = f64::from(x) / (square + 1e-5).sqrt() * f64::from(gain);
                prop_assert!((f64::from(y) - expected).abs() <= 1e-6 * expected.abs());
            }
            for isa in Isa::available() {
                prop_assert_eq!(norm(isa, &x, &gain), reference.clone());
            }
        }
    }
}
