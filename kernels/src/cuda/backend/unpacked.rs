//! Products of many rows with packed weights where no kernel multiplies them in large tiles: before Hopper, and after. The
//! weights are written as bf16, some rows of them at a time, and multiplied as such.

use std::sync::{Arc, atomic::Ordering};

use half::bf16;

use super::{
    CudaBackend,
    weights::{Linear, Weights},
};
use crate::{
    Error,
    cuda::{
        Device, Memory, View, ViewMut,
        ops::{self, Factors, Gemm, GemmOutput, SkinnyScratch},
    },
};

/// From so many rows on this should pay (see [`skinny`](crate::cuda::ops::skinny())).
const MANY_ROWS: usize = 512;
/// Outputs in the tile of a large product: slices are of whole ones where they can be; and in a tile of packed weights.
const TILE: usize = 128;
const PACKED_TILE: usize = 16;

/// What products compute with beside their factors.
pub(super) struct Scratch {
    pub(super) skinny: SkinnyScratch,
    pub(super) unpacked: Unpacked,
}

/// Room for weights as bf16; none where they are never written so.
pub(super) struct Unpacked(Memory<bf16>);

// === impl CudaBackend ===

impl CudaBackend {
    /// How many numbers of packed weights a step of so many rows has to have room for.
    pub(super) fn unpacked(&self, rows: usize) -> usize {
        let hopper = self.device.properties().arch == 90;
        match self.largest_packed.load(Ordering::Relaxed) {
            _ if rows < MANY_ROWS || hopper || self.options.deterministic => 0,
            largest => largest.min(self.options.unpacked / size_of::<bf16>()),
        }
    }
}

// === impl Scratch ===

impl Scratch {
    /// For products of up to `outputs` columns, and with so many numbers of packed weights at a time.
    pub(super) fn new(device: &Arc<dyn Device>, outputs: usize, unpacked: usize) -> Result<Self, Error> {
        let unpacked = Unpacked(Memory::new(device, unpacked)?);
        Ok(Self { skinny: SkinnyScratch::new(device, outputs)?, unpacked })
    }
}

// === impl Unpacked ===

impl Unpacked {
    /// Whether a product of so many rows is to be taken here.
    pub(super) fn pays(&self, rows: usize) -> bool {
        rows >= MANY_ROWS && !self.0.is_empty()
    }

    /// `c = a · Wᵀ + b`, of packed weights.
    pub(super) fn product<C: GemmOutput>(
        &mut self,
        device: &dyn Device,
        m: usize,
        a: View<'_, bf16>,
        w: &Linear,
        mut c: ViewMut<'_, C>,
    ) -> Result<(), Error> {
        let Weights::Packed(weights) = &w.weights else { return Err(misfit("weights that are not packed")) };
        let (k, c_stride) = (w.inputs, w.outputs);
        let slice = match self.0.len() / k {
            room if room >= w.outputs => w.outputs,
            room if room >= TILE => room / TILE * TILE,
            room => room / PACKED_TILE * PACKED_TILE,
        };
        if slice == 0 {
            return Err(misfit("inputs that there is no room for"));
        }
        for first in (0..w.outputs).step_by(slice) {
            let n = slice.min(w.outputs - first);
            ops::dequantize(device, weights, first..first + n, self.0.slice_mut(0..n * k))?;
            let op = Gemm {
                factors: Factors::Bf16 { a, b: self.0.slice(0..n * k) },
                bias: w.bias.as_ref().map(|bias| bias.slice(first..first + n)),
                add: false,
                c: c.slice(first..first + (m - 1) * c_stride + n),
                c_stride,
                m,
                n,
                k,
                a_stride: k,
                invariant: false,
            };
            ops::gemm(device, &op)?;
        }
        Ok(())
    }
}

fn misfit(problem: &str) -> Error {
    Error::Arguments { operation: "a product of packed weights", problem: problem.into() }
}
