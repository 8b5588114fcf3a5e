//! Weights in the order in which the kernels read them.
//!
//! A matrix is cut into panels of 32 outputs, two registers of SIMD lanes; the outputs of the last panel that don't
//! exist are zero. A quantized panel is
//!
//! ```text
//! [scales of all blocks][codes of all blocks]                                (block = 32 inputs × 32 outputs)
//!
//! scales   Q4_0, Q5_0, Q8_0   d[32]              f16
//!          Q4_1, Q5_1         d[32] m[32]        f16
//!          Q4_K, Q5_K         per 8 blocks: d[32] m[32] f16, then per block: sub[32] min[32] u8
//!          Q6_K               per 8 blocks: d[32] f16, then per block: sub[2][32] i8
//! codes    8 bits             8 × 128 bytes: [j][output][i] is the code of input 4j + i
//!          4, 5, 6 bits       4 × 128 bytes: [v][output][i] low nibble input 8v + i, high nibble 8v + 4 + i
//!          + fifth bits       128 bytes: [output][i] bit 4 + v of input 8v + i, bit v of input 8v + 4 + i
//!          + fifth, sixth     2 × 128 bytes: [v/2][output][i] bits 4 + 2(v%2).. and 2(v%2).. likewise
//! ```
//!
//! so one aligned 64-byte load is what one `vpdpbusd` (or two) multiplies, all weights are read front to back as
//! one stream (hardware prefetches that well, and many short ones badly), and nothing is larger than in the file but
//! for the unpacked 6-bit scales of Q4_K and Q5_K (3 %). A float panel is `[input][output]` in the stored width.

use half::f16;

use super::formats::{self, BLOCK};
use super::memory::{Arena, Region, release_pages};
use super::pool::Pool;
use super::reblock;
use crate::{DType, Error, Tensor};

/// Outputs in a panel.
pub(super) const PANEL: usize = 32;

/// What the linear layers compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Quantized weights meet activations of 8 bits (a scale per 32 of a row); float weights f32 activations.
    Int8,
    /// Weights dequantized to f32 when packed, f32 activations: for debugging numerics.
    F32,
}

/// Packs weights, side by side in large pages.
pub struct Packer {
    activations: Activations,
    arena: Arena,
}

/// Weight matrices over the same inputs, packed.
pub struct Packed {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Stacked by outputs; or gate and up.
    pub(super) segments: Vec<Segment>,
    /// One per output, if any part has one.
    pub(super) bias: Option<Vec<f32>>,
    pub(super) gated: bool,
}

/// One packed matrix.
pub(super) struct Segment {
    pub(super) dtype: DType,
    /// Where its outputs stand in a row of the result.
    pub(super) first_output: usize,
    pub(super) outputs: usize,
    pub(super) panels: usize,
    pub(super) layout: Layout,
    data: Region,
}

/// Sizes of a panel's parts in bytes.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Scales of all blocks; 0 for float formats.
    pub(super) scales: usize,
    /// Codes of a block, or the numbers of one input.
    pub(super) step: usize,
    /// The whole panel.
    pub(super) panel: usize,
}

// === impl Packer ===

impl Packer {
    /// Packs for the given kind of activations.
    pub fn new(activations: Activations) -> Self {
        Self { activations, arena: Arena::default() }
    }

    /// Stacks matrices of equal `cols` by outputs, each with an optional bias (a number per output).
    /// Pages of a mapped file are released once packed.
    pub fn linear(&self, pool: &Pool, parts: &[(Tensor, Option<Tensor>)]) -> Result<Packed, Error> {
        let Some((first, _)) = parts.first() else {
            return Err(Error::Unsupported("a linear layer needs a matrix".into()));
        };
        let inputs = first.cols;
        let outputs = parts.iter().map(|(t, _)| t.rows).sum();
        let mut bias = parts.iter().any(|(_, b)| b.is_some()).then(|| vec![0.0; outputs]);
        let mut segments = Vec::new();
        let mut first_output = 0;
        for (tensor, part) in parts {
            if let (Some(bias), Some(part)) = (&mut bias, part) {
                let numbers = formats::dequantized(part)?;
                if numbers.len() != tensor.rows {
                    let problem = format!("{} numbers for a bias of {} outputs", numbers.len(), tensor.rows);
                    return Err(Error::Tensor { name: part.name.clone(), problem });
                }
                bias[first_output..][..tensor.rows].copy_from_slice(&numbers);
            }
            segments.push(self.segment(pool, tensor, inputs, first_output)?);
            first_output += tensor.rows;
        }
        release_pages(&parts.iter().map(|(t, _)| &t.data[..]).collect::<Vec<_>>());
        Ok(Packed { inputs, outputs, segments, bias, gated: false })
    }

    /// The gate and up projections of a gated layer: matrices of the same shape.
    pub fn gated(&self, pool: &Pool, gate: &Tensor, up: &Tensor) -> Result<Packed, Error> {
        if up.rows != gate.rows {
            let problem = format!("{} outputs, but {} has {}", up.rows, gate.name, gate.rows);
            return Err(Error::Tensor { name: up.name.clone(), problem });
        }
        let segments = vec![self.segment(pool, gate, gate.cols, 0)?, self.segment(pool, up, gate.cols, 0)?];
        release_pages(&[&gate.data, &up.data]);
        Ok(Packed { inputs: gate.cols, outputs: gate.rows, segments, bias: None, gated: true })
    }

    fn segment(
        &self,
        pool: &Pool,
        tensor: &Tensor,
        inputs: usize,
        first_output: usize,
    ) -> Result<Segment, Error> {
        formats::check(tensor)?;
        if tensor.cols != inputs || tensor.cols == 0 || tensor.rows == 0 {
            let problem = format!("{}×{} in a layer of {inputs} inputs", tensor.rows, tensor.cols);
            return Err(Error::Tensor { name: tensor.name.clone(), problem });
        }
        let dtype = match self.activations {
            Activations::Int8 => reblock::format(tensor),
            Activations::F32 => DType::F32,
        };
        let layout = Layout::of(dtype, inputs);
        let panels = tensor.rows.div_ceil(PANEL);
        let data = self.arena.region(panels * layout.panel, "packed weights")?;
        let segment = Segment { dtype, first_output, outputs: tensor.rows, panels, layout, data };
        let tasks = panels.div_ceil(8);
        pool.run(tasks, &|task| {
            for panel in task * 8..panels.min(task * 8 + 8) {
                // SAFETY: the region is zeroed memory that nobody reads yet, and each panel is one task's.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(
                        segment.data.pointer().add(panel * layout.panel),
                        layout.panel,
                    )
                };
                pack_panel(tensor, panel, dtype, layout, out);
            }
        });
        Ok(segment)
    }
}

// === impl Packed ===

impl Packed {
    /// Columns of the activations it takes.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Columns of the result; for a gated layer, after gating.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether these are the gate and up projections of a gated layer.
    pub fn is_gated(&self) -> bool {
        self.gated
    }

    /// Bytes of memory that a product reads.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|s| s.data.len()).sum()
    }

    /// Whether some matrix wants its activations as 8-bit integers.
    pub(super) fn needs_int8(&self) -> bool {
        self.segments.iter().any(|s| !is_float(s.dtype))
    }

    /// Whether some matrix wants its activations as f32.
    pub(super) fn needs_f32(&self) -> bool {
        self.segments.iter().any(|s| is_float(s.dtype))
    }
}

// === impl Segment ===

impl Segment {
    /// The first byte of a panel.
    pub(super) fn panel(&self, index: usize) -> *const u8 {
        debug_assert!(index < self.panels);
        self.data.pointer().wrapping_add(index * self.layout.panel)
    }
}

// === impl Layout ===

impl Layout {
    fn of(dtype: DType, inputs: usize) -> Self {
        let blocks = inputs / BLOCK;
        let (scales, step) = match dtype {
            // What has its scales apart is packed otherwise.
            DType::F32 | DType::Int8 | DType::Int4 | DType::E4m3 => (0, 128),
            DType::F16 | DType::BF16 => (0, 64),
            DType::Q4_0 => (blocks * 64, 512),
            DType::Q4_1 => (blocks * 128, 512),
            DType::Q5_0 => (blocks * 64, 640),
            DType::Q5_1 => (blocks * 128, 640),
            DType::Q8_0 => (blocks * 64, 1024),
            DType::Q4K => (blocks / 8 * 640, 512),
            DType::Q5K => (blocks / 8 * 640, 640),
            DType::Q6K => (blocks / 8 * 576, 768),
        };
        let steps = if is_float(dtype) { inputs } else { blocks };
        Self { scales, step, panel: scales + steps * step }
    }
}

/// Whether numbers are stored as floats, one by one.
pub(super) fn is_float(dtype: DType) -> bool {
    dtype.is_plain()
}

/// Packs 32 outputs into `out`, which is zeroed.
fn pack_panel(tensor: &Tensor, panel: usize, dtype: DType, layout: Layout, out: &mut [u8]) {
    let mut row = Vec::new();
    for lane in 0..PANEL.min(tensor.rows - panel * PANEL) {
        let data = formats::row_data(tensor, panel * PANEL + lane);
        if tensor.scales.is_some() && !is_float(dtype) {
            let (scales, codes) = out.split_at_mut(layout.scales);
            let blocks = reblock::row(tensor, dtype, panel * PANEL + lane);
            pack_quantized(dtype, &blocks, lane, layout, scales, codes);
        } else if !is_float(dtype) {
            let (scales, codes) = out.split_at_mut(layout.scales);
            pack_quantized(dtype, data, lane, layout, scales, codes);
        } else if dtype == tensor.dtype {
            let width = dtype.block().1;
            for (number, out) in data.chunks_exact(width).zip(out.chunks_exact_mut(PANEL * width)) {
                out[lane * width..][..width].copy_from_slice(number);
            }
        } else {
            row.resize(tensor.cols, 0.0);
            formats::dequantize_row(tensor, panel * PANEL + lane, &mut row);
            for (number, out) in row.iter().zip(out.chunks_exact_mut(PANEL * 4)) {
                out[lane * 4..][..4].copy_from_slice(&number.to_le_bytes());
            }
        }
    }
}

/// Packs one output of a quantized matrix.
fn pack_quantized(
    dtype: DType,
    data: &[u8],
    lane: usize,
    layout: Layout,
    scales: &mut [u8],
    codes: &mut [u8],
) {
    let (numbers, bytes) = dtype.block();
    let per_block = numbers / BLOCK;
    for (b, out) in codes.chunks_exact_mut(layout.step).enumerate().take(data.len() / bytes * per_block) {
        let (data, i) = (&data[b / per_block * bytes..][..bytes], b % per_block);
        let block = formats::codes(dtype, data, i);
        match layout.step {
            1024 => pack_bytes(&block, lane, out),
            640 => pack_nibbles(&block, lane, out, 1),
            768 => pack_nibbles(&block, lane, out, 2),
            _ => pack_nibbles(&block, lane, out, 0),
        }
        pack_scales(dtype, formats::scales(dtype, data, i), b, lane, scales);
    }
}

fn pack_bytes(codes: &[u8; BLOCK], lane: usize, out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<128>().0) {
        out[lane * 4..][..4].copy_from_slice(codes);
    }
}

/// Nibbles, then the planes of `high` more bits.
fn pack_nibbles(codes: &[u8; BLOCK], lane: usize, out: &mut [u8], high: usize) {
    let (nibbles, planes) = out.split_at_mut(512);
    let steps = codes.as_chunks::<8>().0.iter().zip(nibbles.as_chunks_mut::<128>().0);
    for (v, (codes, out)) in steps.enumerate() {
        for i in 0..4 {
            let (first, second) = (codes[i], codes[4 + i]);
            out[lane * 4 + i] = (first & 15) | (second & 15) << 4;
            if high > 0 {
                let shift = v * high % 4;
                let plane = v * high / 4 * 128;
                planes[plane + lane * 4 + i] |= (first >> 4) << (4 + shift) | (second >> 4) << shift;
            }
        }
    }
}

fn pack_scales(dtype: DType, s: formats::Scales, block: usize, lane: usize, out: &mut [u8]) {
    let mut half = |at: usize, number: f16| out[at + lane * 2..][..2].copy_from_slice(&number.to_le_bytes());
    let (group, i) = (block / 8, block % 8);
    match dtype {
        DType::Q4_1 | DType::Q5_1 => {
            half(block * 128, s.d);
            half(block * 128 + 64, s.m);
        }
        DType::Q4K | DType::Q5K => {
            half(group * 640, s.d);
            half(group * 640 + 64, s.m);
            out[group * 640 + 128 + i * 64 + lane] = s.sub[0];
            out[group * 640 + 160 + i * 64 + lane] = s.min;
        }
        DType::Q6K => {
            half(group * 576, s.d);
            out[group * 576 + 64 + i * 64 + lane] = s.sub[0];
            out[group * 576 + 96 + i * 64 + lane] = s.sub[1];
        }
        _ => half(block * 64, s.d),
    }
}
