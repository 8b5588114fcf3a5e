//! Products of activations and weights.

use half::bf16;

use super::{int, require, require_aligned, require_len};
use crate::{
    Error,
    cuda::{Address, Argument, Device, Element, ElementType, Launch, Properties, Tile, View, ViewMut},
};

const OPERATION: &str = "gemm";

/// The factors, both with k along the row.
#[derive(Clone, Copy)]
pub enum Factors<'a> {
    /// 16-bit; `a` is `[m, a_stride]`, `b` is `[n, k]`.
    Bf16 {
        /// Activations.
        a: View<'a, bf16>,
        /// Weights.
        b: View<'a, bf16>,
    },
    /// 8-bit floats with a scale per row; Hopper only.
    E4m3 {
        /// Activations.
        a: View<'a, u8>,
        /// Weights.
        b: View<'a, u8>,
        /// `[m]`
        a_scales: View<'a, f32>,
        /// `[n]`
        b_scales: View<'a, f32>,
    },
}

/// `c = a · bᵀ (+ bias) (+ residual)`, in sums of f32; C is bf16 or f32.
pub struct Gemm<'a, C: GemmOutput> {
    /// What is multiplied.
    pub factors: Factors<'a>,
    /// `[n]`
    pub bias: Option<View<'a, bf16>>,
    /// Adds what `c` holds.
    pub add: bool,
    /// Rows of n, `c_stride` apart.
    pub c: ViewMut<'a, C>,
    /// Elements from row to row of c: n, or more where c is some columns of a wider matrix.
    pub c_stride: usize,
    /// Rows of a.
    pub m: usize,
    /// Rows of b.
    pub n: usize,
    /// Columns of both: a multiple of 8 (e4m3: 16).
    pub k: usize,
    /// Elements from row to row of a: likewise.
    pub a_stride: usize,
    /// A row's bits depend on that row only: one matrix instruction for every m.
    pub invariant: bool,
}

/// What a product can be written as.
pub trait GemmOutput: Element {
    /// Is it f32?
    const F32: bool;
}

impl GemmOutput for bf16 {
    const F32: bool = false;
}

impl GemmOutput for f32 {
    const F32: bool = true;
}

/// A kernel and its tile.
struct Kernel {
    name: &'static str,
    m: usize,
    n: usize,
    shared: usize,
    hopper: bool,
}

/// Launches it.
pub fn gemm<C: GemmOutput>(device: &dyn Device, op: &Gemm<'_, C>) -> Result<(), Error> {
    op.check()?;
    if op.m == 0 || op.n == 0 {
        return Ok(());
    }
    let properties = device.properties();
    let kernel = op.choose(properties)?;
    let tiles = op.m.div_ceil(kernel.m) * op.n.div_ceil(kernel.n);
    int(OPERATION, "m · n", tiles)?;
    let null = Argument::Address(Address(0));
    let (a, b, scales): (Argument, Argument, _) = match op.factors {
        Factors::Bf16 { a, b } => (a.into(), b.into(), [null, null]),
        Factors::E4m3 { a, b, a_scales, b_scales } => {
            (a.into(), b.into(), [a_scales.into(), b_scales.into()])
        }
    };
    let mut arguments = Vec::with_capacity(15);
    if kernel.hopper {
        arguments.extend(op.maps(device, &kernel)?);
        arguments.extend([null, null]);
    } else {
        arguments.extend([a, b]);
    }
    let c = Argument::from(&op.c);
    arguments.extend(scales);
    arguments.extend([op.bias.into(), if op.add { c } else { null }, c]);
    for (what, size) in
        [("m", op.m), ("n", op.n), ("k", op.k), ("a_stride", op.a_stride), ("c_stride", op.c_stride)]
    {
        arguments.push(int(OPERATION, what, size)?.into());
    }
    arguments.push(i32::from(C::F32).into());
    let blocks = if kernel.hopper { tiles.min(properties.processors as usize) } else { tiles };
    let launch = Launch {
        kernel: kernel.name,
        grid: [blocks as u32, 1, 1],
        block: [if kernel.hopper { 384 } else { 128 }, 1, 1],
        shared: kernel.shared,
        arguments: &arguments,
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked above.
    unsafe { device.launch(&launch) }
}

// === impl Gemm ===

impl<C: GemmOutput> Gemm<'_, C> {
    fn check(&self) -> Result<(), Error> {
        let bytes = self.element().bytes();
        let unit = 16 / bytes;
        require(
            OPERATION,
            self.k > 0 && self.k.is_multiple_of(unit) && self.a_stride.is_multiple_of(unit),
            || format!("k and a_stride must be multiples of {unit}, not {} and {}", self.k, self.a_stride),
        )?;
        require(OPERATION, self.a_stride >= self.k, || {
            format!("a_stride must be at least k, {}, not {}", self.k, self.a_stride)
        })?;
        let rows = if self.m == 0 { 0 } else { (self.m - 1) * self.a_stride + self.k };
        let ((a, a_at), (b, b_at)) = match &self.factors {
            Factors::Bf16 { a, b } => ((a.len(), a.address()), (b.len(), b.address())),
            Factors::E4m3 { a, b, a_scales, b_scales } => {
                require_len(OPERATION, "a_scales", a_scales.len(), self.m)?;
                require_len(OPERATION, "b_scales", b_scales.len(), self.n)?;
                ((a.len(), a.address()), (b.len(), b.address()))
            }
        };
        require(OPERATION, a >= rows, || format!("a has {a} elements, not {rows}"))?;
        require_len(OPERATION, "b", b, self.n * self.k)?;
        require(OPERATION, self.c_stride >= self.n, || {
            format!("c_stride must be at least n, {}, not {}", self.n, self.c_stride)
        })?;
        let written = if self.m == 0 { 0 } else { (self.m - 1) * self.c_stride + self.n };
        require_len(OPERATION, "c", self.c.len(), written)?;
        if let Some(bias) = &self.bias {
            require_len(OPERATION, "bias", bias.len(), self.n)?;
        }
        let bias = self.bias.map_or(Address(0), |bias| bias.address());
        require_aligned(OPERATION, &[("a", a_at), ("b", b_at), ("c", self.c.address()), ("bias", bias)])
    }

    fn element(&self) -> ElementType {
        match self.factors {
            Factors::Bf16 { .. } => ElementType::Bf16,
            Factors::E4m3 { .. } => ElementType::U8,
        }
    }

    /// A tile that leaves no SM idle while it can, else the largest; all tiles of one instruction give the same bits.
    fn choose(&self, device: &Properties) -> Result<Kernel, Error> {
        let processors = device.processors as usize;
        let busy = |m: usize, n: usize| self.m.div_ceil(m) * self.n.div_ceil(n) >= processors;
        let (whole, e4m3) =
            (self.n.is_multiple_of(8) && self.c_stride.is_multiple_of(8), self.element() == ElementType::U8);
        let hopper = |name, n: usize, stages: usize| Kernel {
            name,
            m: 128,
            n,
            shared: stages * (128 + n) * 128 + 2 * stages * 8,
            hopper: true,
        };
        if device.arch == 90 && whole && (e4m3 || (!self.invariant && self.m > 64)) {
            return Ok(match (e4m3, busy(128, 256)) {
                (false, true) => hopper("gemm_bf16_sm90_128x256", 256, 4),
                (false, false) => hopper("gemm_bf16_sm90_128x128", 128, 6),
                (true, true) => hopper("gemm_e4m3_sm90_128x256", 256, 4),
                (true, false) => hopper("gemm_e4m3_sm90_128x128", 128, 6),
            });
        }
        if e4m3 {
            return Err(Error::Unsupported(
                "products of e4m3 need a Hopper GPU, and n a multiple of 8".into(),
            ));
        }
        let warps = |name, m: usize, n: usize, k: usize| Kernel {
            name,
            m,
            n,
            shared: 4 * (m + n) * k * 2,
            hopper: false,
        };
        Ok(if self.m <= 16 {
            warps("gemm_bf16_16x32", 16, 32, 128)
        } else if whole && busy(128, 128) {
            warps("gemm_bf16_128x128", 128, 128, 32)
        } else {
            warps("gemm_bf16_64x64", 64, 64, 64)
        })
    }

    /// Of a and b, in boxes of 128 bytes × the tile's rows.
    fn maps(&self, device: &dyn Device, kernel: &Kernel) -> Result<[Argument; 2], Error> {
        let element = self.element();
        let (a, b) = match self.factors {
            Factors::Bf16 { a, b } => (a.address(), b.address()),
            Factors::E4m3 { a, b, .. } => (a.address(), b.address()),
        };
        let map = |base, rows, stride: usize, box_rows| {
            device.tensor_map(&Tile {
                base,
                element,
                rows,
                columns: self.k,
                pitch: stride * element.bytes(),
                box_rows,
                box_columns: 128 / element.bytes(),
                swizzle: 128,
            })
        };
        Ok([map(a, self.m, self.a_stride, kernel.m)?.into(), map(b, self.n, self.k, kernel.n)?.into()])
    }
}
