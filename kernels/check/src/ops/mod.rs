//! The operations. Adding one: a file here with `operation()`, and a line in [`operations`].

mod activation;
mod copy_blocks;
mod embed;
mod layer_norm;
mod logits;
mod logprobs;
mod qkv;
mod rms_norm;
mod sample;
mod skinny;

use crate::{Case, Random, Speed};

/// An operation: what proves it and what times it.
pub struct Operation {
    /// Its launcher's name.
    pub name: &'static str,
    /// The kernels that its cases reach, all of them.
    pub kernels: &'static [&'static str],
    /// The shapes at which it is held against the reference; random ones are drawn from the generator.
    pub cases: fn(&mut Random) -> Vec<Case>,
    /// What is timed on a GPU.
    pub speeds: fn() -> Vec<Speed>,
}

/// All of them.
pub fn operations() -> Vec<Operation> {
    vec![
        embed::operation(),
        rms_norm::operation(),
        layer_norm::operation(),
        qkv::operation(),
        activation::operation(),
        copy_blocks::operation(),
        skinny::operation(),
        logits::operation(),
        sample::operation(),
        logprobs::operation(),
    ]
}
