//! One typed launcher per operation.
//!
//! A launcher checks every shape first and answers [`Error::Arguments`] where one doesn't fit; what it then launches can
//! reach no memory outside the views that it was given.

mod activation;
mod attention;
mod attention_plan;
mod copy_blocks;
mod dequantize;
mod embed;
mod gemm;
mod gemm_packed;
mod layer_norm;
mod logits;
mod qkv;
mod rms_norm;
mod sample;
mod skinny;

pub use activation::{Activate, Function, activate};
pub use attention::{Attention, KvPages, PlannedAttention, PlannedView, attention};
pub use attention_plan::{
    AttentionCapacity, AttentionKernel, AttentionLimits, AttentionPlan, AttentionSequence, AttentionShape,
};
pub use copy_blocks::{CopyBlocks, copy_blocks};
pub use dequantize::dequantize;
pub use embed::{DRAWN, Embed, embed};
pub use gemm::{Factors, Gemm, GemmOutput, gemm};
pub use gemm_packed::{PackedGemm, gemm_packed};
pub use layer_norm::{LayerNorm, layer_norm};
pub use logits::{
    Asked, Edit, EditLogits, Logprobs, MAX_ALTERNATIVES, PenaltyRow, RestoreLogits, logits_edit,
    logits_restore, logprobs,
};
pub use qkv::{HeadNorms, KvCache, KvNumbers, QkvStore, Queries, qkv_store};
pub use rms_norm::{RmsNorm, rms_norm};
pub use sample::{DrawRow, Sample, sample};
pub use skinny::{DeviceWeights, Skinny, SkinnyOut, SkinnyScratch, SkinnyWeights, skinny};

use crate::{Error, cuda::Address};

/// Fails with `problem` unless `holds`.
fn require(operation: &'static str, holds: bool, problem: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Arguments { operation, problem: problem() }) }
}

/// Fails unless a view has the `wanted` elements.
fn require_len(operation: &'static str, what: &str, len: usize, wanted: usize) -> Result<(), Error> {
    require(operation, len == wanted, || format!("{what} has {len} elements, not {wanted}"))
}

/// Fails unless every view starts at a multiple of 16 bytes, the width of the kernels' accesses.
fn require_aligned(operation: &'static str, views: &[(&str, Address)]) -> Result<(), Error> {
    match views.iter().find(|(_, address)| !address.0.is_multiple_of(16)) {
        None => Ok(()),
        Some((what, _)) => {
            let problem = format!("{what} must start at a multiple of 16 bytes");
            Err(Error::Arguments { operation, problem })
        }
    }
}

/// A size as kernels take it.
fn int(operation: &'static str, what: &str, size: usize) -> Result<i32, Error> {
    i32::try_from(size)
        .map_err(|_| Error::Arguments { operation, problem: format!("{what} is {size}: too large") })
}
