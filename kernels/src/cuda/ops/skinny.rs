//! Matrix products for few tokens: a decode step's linear layers.
//!
//! A number's bits depend on its row, its token, the matrix's shape and the device only. So a backend that computes
//! every linear layer here, whatever the number of tokens, is batch-invariant: that is the whole of its flag. One that
//! need not be takes the products with larger tiles from some 64 tokens on: [`gemm`](super::gemm()), or for packed
//! weights [`gemm_packed`](super::gemm_packed()) on Hopper. Elsewhere packed weights stay here up to some 500 tokens,
//! from where the backend takes [`dequantize`](super::dequantize()) before `gemm`, which should pay (computed from an
//! A100's rates, not measured).

use std::sync::Arc;

use half::bf16;

use super::{int, require, require_aligned, require_len};
use crate::{
    Error,
    cuda::{Argument, Device, Launch, Memory, PackedFormat, PackedWeights, View, ViewMut},
};

const OPERATION: &str = "skinny";
/// Inputs of a step.
const STEP: usize = 64;
/// Rows that splits are chosen for, whatever the tile.
const SPLIT_ROWS: usize = 128;
const MAX_SPLITS: usize = 16;
/// Tokens of the largest tile.
const MOST_TOKENS: usize = 64;
/// Steps that are worth a split.
const SPLIT_STEPS: usize = 4;

/// `out = x · Wᵀ + bias`.
pub struct Skinny<'a> {
    /// Rows of `cols` inputs, `x_stride` apart.
    pub x: View<'a, bf16>,
    /// Elements from token to token: a multiple of 8.
    pub x_stride: usize,
    /// `[rows, cols]`
    pub weights: SkinnyWeights<'a>,
    /// `[rows]`
    pub bias: Option<View<'a, bf16>>,
    /// Tokens × rows.
    pub out: SkinnyOut<'a>,
    /// Elements from token to token of `out`.
    pub out_stride: usize,
    /// Tokens.
    pub tokens: usize,
    /// For the sums of splits.
    pub scratch: &'a mut SkinnyScratch,
}

/// A matrix of outputs × inputs.
#[derive(Clone, Copy)]
pub enum SkinnyWeights<'a> {
    /// `[rows, cols]`, as a checkpoint has it. Not what the launch just before writes: a product starts to read its
    /// weights before that has ended.
    Bf16 {
        /// The numbers.
        numbers: View<'a, bf16>,
        /// Inputs: a multiple of 8.
        cols: usize,
    },
    /// Quantized.
    Packed(&'a DeviceWeights),
}

/// What the product is rounded to.
pub enum SkinnyOut<'a> {
    /// Activations.
    Bf16(ViewMut<'a, bf16>),
    /// Logits.
    F32(ViewMut<'a, f32>),
}

/// [`PackedWeights`] on a device.
pub struct DeviceWeights {
    pub(super) format: PackedFormat,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) group: usize,
    pub(super) codes: Memory<u8>,
    pub(super) group_scales: Option<Memory<u32>>,
    pub(super) row_scales: Memory<f32>,
}

/// Memory for partial sums, for products that run one after another.
pub struct SkinnyScratch {
    partial: Memory<f32>,
    arrived: Memory<u32>,
}

/// A kernel of a format.
struct Instance {
    kernel: &'static str,
    /// Tokens of a tile, at most.
    tokens: usize,
    /// Rows of a tile.
    rows: usize,
    /// Bytes of its ring.
    shared: usize,
}

// === impl DeviceWeights ===

impl DeviceWeights {
    /// Copies weights to a device.
    pub fn new(device: &Arc<dyn Device>, packed: &PackedWeights) -> Result<Self, Error> {
        Self::with_codes(packed, Memory::from_slice(device, &packed.codes)?)
    }

    /// With a copy of their codes that is there, or on its way.
    pub(in crate::cuda) fn with_codes(packed: &PackedWeights, codes: Memory<u8>) -> Result<Self, Error> {
        let device = &codes.device().clone();
        let grouped = packed.format.grouped();
        Ok(Self {
            format: packed.format,
            rows: packed.rows,
            cols: packed.cols,
            group: packed.group,
            codes,
            group_scales: grouped.then(|| Memory::from_slice(device, &packed.group_scales)).transpose()?,
            row_scales: Memory::from_slice(device, &packed.row_scales)?,
        })
    }

    /// Bytes that a product reads of them.
    pub fn bytes(&self) -> usize {
        let scales = self.row_scales.len() + self.group_scales.as_ref().map_or(0, Memory::len);
        self.codes.len() + 4 * scales
    }
}

// === impl SkinnyScratch ===

impl SkinnyScratch {
    /// Room for the sums of 64 tokens of matrices of up to `rows` outputs, in all their splits. Products of more
    /// tokens go through it in turns.
    pub fn new(device: &Arc<dyn Device>, rows: usize) -> Result<Self, Error> {
        let tiles = rows.div_ceil(64).max(1);
        let processors = device.properties().processors as usize;
        // Matrices with more inputs have more splits, those with more outputs fewer.
        let sums = (1..=rows.div_ceil(SPLIT_ROWS)).map(|tiles| {
            let rows = rows.min(tiles * SPLIT_ROWS);
            rows * splits(rows, usize::MAX, processors.max(1))
        });
        let partial = Memory::new(device, MOST_TOKENS * sums.max().unwrap_or(0))?;
        Ok(Self { partial, arrived: Memory::from_slice(device, &vec![0; tiles])? })
    }
}

// === impl SkinnyWeights ===

impl SkinnyWeights<'_> {
    /// Outputs and inputs.
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Bf16 { numbers, cols } => (numbers.len() / (*cols).max(1), *cols),
            Self::Packed(packed) => (packed.rows, packed.cols),
        }
    }

    /// The kernel for so many tokens.
    fn instance(&self, tokens: usize) -> Instance {
        let choice = [8, 16, 32].iter().filter(|&&most| tokens > most).count();
        let format = match self {
            Self::Bf16 { .. } => None,
            Self::Packed(packed) => Some(packed.format),
        };
        let of = |kernel, rows, shared| Instance { kernel, tokens: 8 << choice, rows, shared };
        match (format, choice) {
            (None, 0) => of("skinny_bf16_8", 64, 36864),
            (None, 1) => of("skinny_bf16_16", 64, 40960),
            (None, 2) => of("skinny_bf16_32", 128, 61440),
            (None, _) => of("skinny_bf16_64", 128, 73728),
            (Some(PackedFormat::Int8), 0) => of("skinny_w8_8", 64, 40960),
            (Some(PackedFormat::Int8), 1) => of("skinny_w8_16", 64, 49152),
            (Some(PackedFormat::Int8), 2) => of("skinny_w8_32", 128, 49152),
            (Some(PackedFormat::Int8), _) => of("skinny_w8_64", 128, 65536),
            (Some(PackedFormat::Int8Grouped), 0) => of("skinny_w8_grouped_8", 64, 45056),
            (Some(PackedFormat::Int8Grouped), 1) => of("skinny_w8_grouped_16", 64, 53248),
            (Some(PackedFormat::Int8Grouped), 2) => of("skinny_w8_grouped_32", 128, 53248),
            (Some(PackedFormat::Int8Grouped), _) => of("skinny_w8_grouped_64", 128, 69632),
            (Some(PackedFormat::Int4Grouped), 0) => of("skinny_w4_8", 128, 49152),
            (Some(PackedFormat::Int4Grouped), 1) => of("skinny_w4_16", 128, 57344),
            (Some(PackedFormat::Int4Grouped), 2) => of("skinny_w4_32", 128, 55296),
            (Some(PackedFormat::Int4Grouped), _) => of("skinny_w4_64", 128, 53248),
            (Some(PackedFormat::E4m3), 0) => of("skinny_fp8_8", 64, 40960),
            (Some(PackedFormat::E4m3), 1) => of("skinny_fp8_16", 64, 49152),
            (Some(PackedFormat::E4m3), 2) => of("skinny_fp8_32", 128, 49152),
            (Some(PackedFormat::E4m3), _) => of("skinny_fp8_64", 128, 65536),
        }
    }

    /// Codes, group scales, row scales, and the logarithm of a group's inputs.
    fn arguments(&self) -> [Argument; 4] {
        match self {
            Self::Bf16 { numbers, .. } => {
                let none = || None::<View<'_, u32>>.into();
                [(*numbers).into(), none(), none(), 0u32.into()]
            }
            Self::Packed(packed) => [
                packed.codes.view().into(),
                packed.group_scales.as_ref().map(Memory::view).into(),
                packed.row_scales.view().into(),
                packed.group.max(1).ilog2().into(),
            ],
        }
    }
}

/// Runs of the inputs that are summed apart, so that every multiprocessor has work: of the shape and the device only.
/// The time goes with the blocks of the busiest multiprocessor and their length; each split costs its sums.
fn splits(rows: usize, cols: usize, processors: usize) -> usize {
    let (tiles, steps) = (rows.div_ceil(SPLIT_ROWS), cols.div_ceil(STEP));
    let time = |splits: &usize| {
        let blocks = tiles * splits;
        let turns = blocks.div_ceil(processors) as f64 / *splits as f64;
        // One block alone doesn't keep enough bytes in flight.
        let alone = (2.0 * processors as f64 / blocks as f64).clamp(1.0, 2.0);
        turns * alone * (1.0 + *splits as f64 / 64.0)
    };
    let most = (steps / SPLIT_STEPS).clamp(1, MAX_SPLITS);
    (1..=most).min_by(|a, b| time(a).total_cmp(&time(b))).unwrap_or(1)
}

/// Launches it.
pub fn skinny(device: &dyn Device, op: &mut Skinny<'_>) -> Result<(), Error> {
    let (rows, cols) = op.weights.shape();
    check(op, rows, cols)?;
    let processors = device.properties().processors as usize;
    let splits = splits(rows, cols, processors.max(1));
    let instance = op.weights.instance(op.tokens);
    let tiles = rows.div_ceil(instance.rows);
    // As many tokens at once as the scratch has room for, which changes no sum.
    let room = match splits {
        1 => usize::MAX,
        _ => (op.scratch.partial.len() / (splits * rows) / instance.tokens)
            .min(op.scratch.arrived.len() / tiles),
    };
    require(OPERATION, room > 0, || format!("the scratch is too small for {rows} rows in {splits} splits"))?;
    let turn = room.saturating_mul(instance.tokens).min(op.tokens.max(1));
    let number = |what, size| int(OPERATION, what, size).map(|size| Argument::from(size as u32));
    let [weights, group_scales, row_scales, group_log2] = op.weights.arguments();
    for first in (0..op.tokens).step_by(turn) {
        let tokens = turn.min(op.tokens - first);
        let x = op.x.slice(first * op.x_stride..op.x.len());
        let (out, f32): (Argument, bool) = match &mut op.out {
            SkinnyOut::Bf16(out) => ((&out.slice(first * op.out_stride..out.len())).into(), false),
            SkinnyOut::F32(out) => ((&out.slice(first * op.out_stride..out.len())).into(), true),
        };
        let launch = Launch {
            kernel: instance.kernel,
            grid: [tokens.div_ceil(instance.tokens) as u32, tiles as u32, splits as u32],
            block: [128, 1, 1],
            shared: instance.shared,
            arguments: &[
                weights,
                group_scales,
                row_scales,
                x.into(),
                op.bias.into(),
                out,
                (&op.scratch.partial.view_mut()).into(),
                (&op.scratch.arrived.view_mut()).into(),
                number("rows", rows)?,
                number("cols", cols)?,
                number("tokens", tokens)?,
                number("x_stride", op.x_stride)?,
                number("out_stride", op.out_stride)?,
                (splits as u32).into(),
                group_log2,
                u32::from(f32).into(),
            ],
        };
        // SAFETY: the views are as long as the kernel reads and writes, as checked; the scratch has room for `turn`.
        // Before it waits, the kernel reads weights only, which `SkinnyWeights` says nothing has just written.
        unsafe { device.launch_dependent(&launch)? }
    }
    Ok(())
}

fn check(op: &Skinny<'_>, rows: usize, cols: usize) -> Result<(), Error> {
    require(OPERATION, rows > 0 && rows <= 65535 * 16 && cols > 0 && cols.is_multiple_of(8), || {
        format!("{rows} × {cols} weights: inputs must be a multiple of 8")
    })?;
    if let SkinnyWeights::Bf16 { numbers, .. } = op.weights {
        require_len(OPERATION, "weights", numbers.len(), rows * cols)?;
        require_aligned(OPERATION, &[("weights", numbers.address())])?;
    }
    require(OPERATION, op.x_stride >= cols && op.x_stride.is_multiple_of(8), || {
        format!("x_stride must be a multiple of 8 from {cols} on, not {}", op.x_stride)
    })?;
    require(OPERATION, op.out_stride >= rows, || format!("out_stride must be {rows} at least"))?;
    require_aligned(OPERATION, &[("x", op.x.address())])?;
    require_len(OPERATION, "x", op.x.len(), op.tokens * op.x_stride)?;
    let out = match &op.out {
        SkinnyOut::Bf16(out) => out.len(),
        SkinnyOut::F32(out) => out.len(),
    };
    require_len(OPERATION, "out", out, op.tokens * op.out_stride)?;
    require_len(OPERATION, "bias", op.bias.map_or(rows, |bias| bias.len()), rows)
}

#[cfg(test)]
mod tests {
    use super::{SPLIT_ROWS, splits};

    #[test]
    fn more_inputs_never_mean_fewer_splits() {
        for rows in (1..300).map(|tiles| tiles * SPLIT_ROWS) {
            let most = splits(rows, usize::MAX, 132);
            assert!((1..200).all(|steps| splits(rows, steps * 64, 132) <= most), "{rows} outputs");
        }
    }

    #[test]
    fn the_matrices_of_an_8b_model_are_spread_evenly_over_an_h100() {
        for (rows, cols) in [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)] {
            let splits = splits(rows, cols, 132);
            let blocks = rows.div_ceil(128) * splits;
            assert!(blocks >= 2 * 132 * 9 / 10, "{rows} × {cols}: {blocks} blocks");
            let even = blocks as f64 / 132.0 / blocks.div_ceil(132) as f64;
            assert!(even > 0.9, "{rows} × {cols} in {splits}: {even}");
        }
    }
}
