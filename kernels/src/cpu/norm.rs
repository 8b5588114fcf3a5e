//! Norms of a row. Sums are taken in 64 lanes, which are added by a fixed tree.

use super::simd::{Kernel, Lanes, WIDTH};

/// `out = x / rms(x) · gain`.
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) gain: &'a [f32],
    pub(crate) epsilon: f32,
    pub(crate) out: &'a mut [f32],
}

/// `out = (x − mean) / √(variance + ε) · gain + bias`.
pub(crate) struct LayerNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) gain: &'a [f32],
    pub(crate) bias: &'a [f32],
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
            let scale = L::splat(1.0 / (mean_square::<L>(x) + epsilon).sqrt());
            for ((x, gain), out) in x.chunks(WIDTH).zip(gain.chunks(WIDTH)).zip(out.chunks_mut(WIDTH)) {
                store(load::<L>(x).mul(scale).mul(load::<L>(gain)), out);
            }
        }
    }
}

// === impl LayerNorm ===

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, gain, bias, epsilon, out } = self;
        let lengths = [gain.len(), bias.len(), out.len()];
        assert!(lengths.iter().all(|&len| len == x.len()), "a norm of {lengths:?} over {}", x.len());
        // SAFETY: as the caller promises; `load` and `store` keep to the slices.
        unsafe {
            let mut sums = [L::splat(0.0); 4];
            for (i, chunk) in x.chunks(WIDTH).enumerate() {
                sums[i % 4] = sums[i % 4].add(load::<L>(chunk));
            }
            let mean = L::splat(total(sums) / x.len() as f32);
            for (x, out) in x.chunks(WIDTH).zip(out.chunks_mut(WIDTH)) {
                store(load::<L>(x).sub(mean), out);
            }
            // Of the differences, so that a large mean costs no precision.
            let scale = L::splat(1.0 / (mean_square::<L>(out) + epsilon).sqrt());
            let vectors = gain.chunks(WIDTH).zip(bias.chunks(WIDTH));
            for ((gain, bias), out) in vectors.zip(out.chunks_mut(WIDTH)) {
                store(load::<L>(out).mul(scale).fma(load::<L>(gain), load::<L>(bias)), out);
            }
        }
    }
}

/// An RMS norm of a head, where it stands.
///
/// # Safety
/// This machine has the instruction set.
#[inline(always)]
pub(crate) unsafe fn norm_head<L: Lanes>(head: &mut [f32], gain: &[f32], epsilon: f32) {
    // SAFETY: as the caller promises; `load` and `store` keep to the slices.
    unsafe {
        let scale = L::splat(1.0 / (mean_square::<L>(head) + epsilon).sqrt());
        for (numbers, gain) in head.chunks_mut(WIDTH).zip(gain.chunks(WIDTH)) {
            store(load::<L>(numbers).mul(scale).mul(load::<L>(gain)), numbers);
        }
    }
}

/// The mean of the numbers' squares.
///
/// # Safety
/// This machine has the instruction set.
#[inline(always)]
unsafe fn mean_square<L: Lanes>(numbers: &[f32]) -> f32 {
    // SAFETY: as the caller promises; `load` keeps to the slice.
    unsafe {
        let mut sums = [L::splat(0.0); 4];
        for (i, chunk) in numbers.chunks(WIDTH).enumerate() {
            let chunk = load::<L>(chunk);
            sums[i % 4] = chunk.fma(chunk, sums[i % 4]);
        }
        total(sums) / numbers.len() as f32
    }
}

#[inline(always)]
fn total<L: Lanes>(sums: [L; 4]) -> f32 {
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
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

    /// The same, in place.
    struct Head<'a> {
        head: &'a mut [f32],
        gain: &'a [f32],
    }

    impl Kernel for Head<'_> {
        type Output = ();

        unsafe fn run<L: Lanes>(self) {
            // SAFETY: as the caller promises.
            unsafe { norm_head::<L>(self.head, self.gain, 1e-5) }
        }
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
                let mut head = x.clone();
                // SAFETY: the machine has it.
                unsafe { simd::run(isa, Head { head: &mut head, gain: &gain }) };
                prop_assert_eq!(&head, &reference);
            }
        }

        #[test]
        fn a_layer_norm_is_what_it_is_defined_as_on_every_instruction_set(
            row in proptest::collection::vec((-9f32..9.0, -2f32..2.0, -2f32..2.0), 2..700),
            mean in prop_oneof![Just(0f32), Just(100.0)],
        ) {
            let x: Vec<f32> = row.iter().map(|row| row.0 + mean).collect();
            let (gain, bias): (Vec<f32>, Vec<f32>) = row.into_iter().map(|row| (row.1, row.2)).unzip();
            let norm = |isa| {
                let mut out = vec![0.0; x.len()];
                let norm = LayerNorm { x: &x, gain: &gain, bias: &bias, epsilon: 1e-2, out: &mut out };
                // SAFETY: callers pass what the machine has.
                unsafe { simd::run(isa, norm) };
                out
            };
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let reference = norm(Isa::available()[0]);
            for (i, &y) in reference.iter().enumerate() {
                let normed = (f64::from(x[i]) - mean) / (variance + 1e-2).sqrt();
                let expected = normed * f64::from(gain[i]) + f64::from(bias[i]);
                prop_assert!((f64::from(y) - expected).abs() <= 1e-4, "{y}, not {expected}");
            }
            for isa in Isa::available() {
                prop_assert_eq!(norm(isa), reference.clone());
            }
        }
    }
}
