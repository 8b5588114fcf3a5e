//! The operations. Adding one: a file here with `operation()`, and a line in [`operations`].

mod activation;
mod attention;
mod copy_blocks;
mod embed;
mod gemm;
mod gemm_packed;
mod layer_norm;
mod logits;
mod logprobs;
mod qkv;
mod rms_norm;
mod sample;
mod skinny;
mod wrappers;

use crate::{Case, Random, Speed};

/// An operation: what proves it and what times it.
pub struct Operation {
    /// Its launcher's name.
    pub name: &'static str,
    /// The kernels that its cases reach, all of them.
    pub kernels: &'static [&'static str],
    /// The shapes at which it is held against the reference; some are drawn from the generator.
    pub cases: fn(&mut Random) -> Vec<Case>,
    /// One more shape, drawn from the generator: the smaller the draws, the simpler it is.
    pub any: fn(&mut Random) -> Case,
    /// What is timed on a GPU.
    pub speeds: fn() -> Vec<Speed>,
}

/// All of them.
pub fn operations() -> Vec<Operation> {
    vec![
        activation::operation(),
        attention::hopper(),
        attention::operation(),
        copy_blocks::operation(),
        embed::operation(),
        gemm::operation(),
        gemm_packed::operation(),
        layer_norm::operation(),
        logits::operation(),
        logprobs::operation(),
        qkv::operation(),
        rms_norm::operation(),
        sample::operation(),
        skinny::dequantizing(),
        skinny::operation(),
        wrappers::operation(),
    ]
}

/// An 8-bit float as it is meant (NaN aside).
fn e4m3(bits: u8) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f64::from(bits & 7) / 8.0);
    let size =
        if exponent == 0 { fraction * 2f64.powi(-6) } else { (1.0 + fraction) * 2f64.powi(exponent - 7) };
    if bits & 0x80 == 0 { size } else { -size }
}

/// x · y, in eight sums that a processor adds to at once: references of large shapes take seconds.
fn dot(x: &[f64], y: &[f64]) -> f64 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (x, y) in x.iter().zip(y) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}
