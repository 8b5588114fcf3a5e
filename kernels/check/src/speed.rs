//! One timing on a GPU.

use std::sync::Arc;

use volley_kernels::{Error, cuda::Device};

/// What is launched, and what it is held against.
pub struct Speed {
    /// The shape, for people.
    pub label: String,
    /// What the device does in one step.
    pub work: Work,
    /// The least fraction of the measured limit; see [`Work`].
    pub goal: f64,
    /// Steps in a graph.
    pub steps: usize,
    /// Another implementation, timed in the same run.
    pub peer: Option<Peer>,
    /// Allocates, and gives what launches one step.
    pub set_up: Box<SetUp>,
}

/// Allocates on a device, and gives what launches one step.
pub type SetUp = dyn Fn(&Arc<dyn Device>) -> Result<Box<Step>, Error> + Send + Sync;

/// Launches step `i`: steps rotate over several sets of inputs where one fits in the cache.
pub type Step = dyn FnMut(usize) -> Result<(), Error>;

/// What bounds a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Bytes read and written: the limit is a device copy's bandwidth.
    Bytes(f64),
    /// Operations: the limit is the rate of cublasLt's bf16 product at 8192³.
    Operations(f64),
}

/// Another implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// cublasLt: `[m, k] × [n, k]ᵀ` in bf16.
    MatMul {
        /// Rows of the activations.
        m: usize,
        /// Outputs.
        n: usize,
        /// Inputs.
        k: usize,
    },
    /// PyTorch's `scaled_dot_product_attention` in bf16 over contiguous keys and values.
    Attention {
        /// Sequences.
        batch: usize,
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
        /// Query tokens of each sequence; causal when there is more than one.
        queries: usize,
        /// Key tokens of each sequence.
        keys: usize,
        /// Of a head.
        dim: usize,
    },
}

// === impl Speed ===

impl Speed {
    /// A timing without a peer, 20 steps to the graph.
    pub fn new(
        label: impl Into<String>,
        work: Work,
        goal: f64,
        set_up: impl Fn(&Arc<dyn Device>) -> Result<Box<Step>, Error> + Send + Sync + 'static,
    ) -> Self {
        Self { label: label.into(), work, goal, steps: 20, peer: None, set_up: Box::new(set_up) }
    }

    /// Timed beside another implementation.
    pub fn beside(self, peer: Peer) -> Self {
        Self { peer: Some(peer), ..self }
    }

    /// With so many steps to the graph.
    pub fn steps(self, steps: usize) -> Self {
        Self { steps, ..self }
    }
}
