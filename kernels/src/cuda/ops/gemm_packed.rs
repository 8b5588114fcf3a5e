//! Products of many tokens and packed weights, on Hopper.

use half::bf16;

use super::{gemm::GemmOutput, int, require, require_aligned, require_len, skinny::DeviceWeights};
use crate::{
    Error,
    cuda::{Address, Argument, Device, ElementType, Launch, Memory, PackedFormat, Tile, View, ViewMut},
};

const OPERATION: &str = "gemm_packed";
/// Rows of weights that a block takes.
const TILE_ROWS: usize = 128;

/// `c = a · Wᵀ (+ bias) (+ c)`, in sums of f32. For some tens of tokens and less see [`skinny`](super::skinny()), which
/// reads the same weights; the bits are not the same.
pub struct PackedGemm<'a, C: GemmOutput> {
    /// Rows of k inputs, `a_stride` apart.
    pub a: View<'a, bf16>,
    /// Elements from row to row: a multiple of 8.
    pub a_stride: usize,
    /// n × k
    pub weights: &'a DeviceWeights,
    /// `[n]`
    pub bias: Option<View<'a, bf16>>,
    /// Adds what `c` holds.
    pub add: bool,
    /// `[m, n]`, n a multiple of 8.
    pub c: ViewMut<'a, C>,
    /// Rows of a.
    pub m: usize,
}

/// Launches it.
pub fn gemm_packed<C: GemmOutput>(device: &dyn Device, op: &PackedGemm<'_, C>) -> Result<(), Error> {
    let weights = op.weights;
    let (n, k) = (weights.rows, weights.cols);
    check(op, n, k)?;
    let properties = device.properties();
    if properties.arch != 90 {
        return Err(Error::Unsupported("products of packed weights with wgmma need a Hopper GPU".into()));
    }
    if op.m == 0 {
        return Ok(());
    }
    let tiles = |rows: usize| op.m.div_ceil(rows) * n.div_ceil(TILE_ROWS);
    let processors = properties.processors as usize;
    let wide = tiles(256) >= processors;
    let (rows, stages) = if wide { (256, 5) } else { (128, 6) };
    let blocks = int(OPERATION, "m · n", tiles(rows).min(processors))?;
    let map = device.tensor_map(&Tile {
        base: op.a.address(),
        element: ElementType::Bf16,
        rows: op.m,
        columns: k,
        pitch: op.a_stride * size_of::<bf16>(),
        box_rows: rows,
        box_columns: 64,
        swizzle: 128,
    })?;
    let (null, c) = (Argument::Address(Address(0)), Argument::from(&op.c));
    let codes = TILE_ROWS * 64 * weights.format.bits() / 8;
    let launch = Launch {
        kernel: kernel(weights.format, wide),
        grid: [blocks as u32, 1, 1],
        block: [384, 1, 1],
        shared: stages * (rows * 128 + codes + 2 * size_of::<u64>()),
        arguments: &[
            map.into(),
            null,
            weights.codes.view().into(),
            null,
            weights.row_scales.view().into(),
            op.bias.into(),
            if op.add { c } else { null },
            c,
            int(OPERATION, "m", op.m)?.into(),
            int(OPERATION, "n", n)?.into(),
            int(OPERATION, "k", k)?.into(),
            int(OPERATION, "a_stride", op.a_stride)?.into(),
            int(OPERATION, "n", n)?.into(),
            i32::from(C::F32).into(),
            weights.group_scales.as_ref().map(Memory::view).into(),
            int(OPERATION, "group", weights.group.max(1).ilog2() as usize)?.into(),
        ],
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked; weights are whole by construction.
    unsafe { device.launch(&launch) }
}

fn kernel(format: PackedFormat, wide: bool) -> &'static str {
    match (format, wide) {
        (PackedFormat::Int8, false) => "gemm_w8_sm90_128x128",
        (PackedFormat::Int8, true) => "gemm_w8_sm90_256x128",
        (PackedFormat::Int8Grouped, false) => "gemm_w8_grouped_sm90_128x128",
        (PackedFormat::Int8Grouped, true) => "gemm_w8_grouped_sm90_256x128",
        (PackedFormat::Int4Grouped, false) => "gemm_w4_grouped_sm90_128x128",
        (PackedFormat::Int4Grouped, true) => "gemm_w4_grouped_sm90_256x128",
        (PackedFormat::E4m3, false) => "gemm_fp8_sm90_128x128",
        (PackedFormat::E4m3, true) => "gemm_fp8_sm90_256x128",
    }
}

fn check<C: GemmOutput>(op: &PackedGemm<'_, C>, n: usize, k: usize) -> Result<(), Error> {
    require(OPERATION, n.is_multiple_of(8), || format!("n must be a multiple of 8, not {n}"))?;
    require(OPERATION, op.a_stride >= k && op.a_stride.is_multiple_of(8), || {
        format!("a_stride must be a multiple of 8 from {k} on, not {}", op.a_stride)
    })?;
    let rows = if op.m == 0 { 0 } else { (op.m - 1) * op.a_stride + k };
    require(OPERATION, op.a.len() >= rows, || format!("a has {} elements, not {rows}", op.a.len()))?;
    require_len(OPERATION, "c", op.c.len(), op.m * n)?;
    require_len(OPERATION, "bias", op.bias.map_or(n, |bias| bias.len()), n)?;
    let bias = op.bias.map_or(Address(0), |bias| bias.address());
    require_aligned(OPERATION, &[("a", op.a.address()), ("c", op.c.address()), ("bias", bias)])
}
