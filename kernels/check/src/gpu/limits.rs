//! What the device can do, measured in the same run as what is held against it.

use std::{fmt, sync::Arc};

use anyhow::Result;
use half::bf16;
use volley_kernels::cuda::{CublasLt, Cuda, Device, Memory};

use super::timing;
use crate::Random;

const COPY: usize = 2 << 30;
const SIDE: usize = 8192;

/// The limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes read and written per second by a copy of 2 GiB.
    pub(super) bandwidth: f64,
    /// Operations per second of cublasLt's bf16 product at 8192³, where the library is there.
    pub(super) operations: Option<f64>,
}

pub(super) fn measure(cuda: &Arc<Cuda>, device: &Arc<dyn Device>) -> Result<Limits> {
    let bandwidth = {
        let from = Memory::<u8>::filled(device, COPY, 0x5a)?;
        let mut to = Memory::<u8>::new(device, COPY)?;
        let seconds = timing::median(device, 4, |_| to.copy_from(from.view()))?;
        2.0 * COPY as f64 / seconds
    };
    let operations = CublasLt::open(cuda).and_then(|library| {
        let plan = library.plan(SIDE, SIDE, SIDE)?;
        // Random numbers: products of zeros run faster than real ones.
        let mut random = Random::new(1);
        let block = random.bf16(1 << 20, 1.0);
        let values: Vec<bf16> = block.iter().copied().cycle().take(SIDE * SIDE).collect();
        let (x, w) = (Memory::from_slice(device, &values)?, Memory::from_slice(device, &values)?);
        let mut out = Memory::<bf16>::new(device, SIDE * SIDE)?;
        let seconds = timing::median(device, 4, |_| plan.run(x.view(), w.view(), &out.view_mut()))?;
        Ok(2.0 * (SIDE as f64).powi(3) / seconds)
    });
    if let Err(error) = &operations {
        println!("cublasLt is left out: {error}");
    }
    Ok(Limits { bandwidth, operations: operations.ok() })
}

// === impl Limits ===

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limits: device copy {:.2} TB/s", self.bandwidth / 1e12)?;
        match self.operations {
            Some(rate) => write!(f, ", cublasLt at {SIDE}³ {:.0} TFLOP/s", rate / 1e12),
            None => write!(f, ", matrix rate not measured"),
        }
    }
}
