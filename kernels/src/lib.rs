//! The operations of a transformer step, as our own kernels.
//!
//! ```text
//! tensor.rs    weights as they lie in a model file
//! scaled.rs    those whose scales lie apart from their codes; making plain ones into such
//! backend.rs   the coarse, fused operations that the decoder is written against
//! peers.rs     tensor-parallel groups: what ranks tell each other
//! draw.rs      what a draw can ask for besides the filters
//! drawing.rs   draws that a device may still be at
//! cpu/         the CPU backend: quantized weights computed on directly, SIMD chosen at run time
//! cuda/        launching the kernels of kernels/cuda on a GPU
//! threads.rs   what several threads of the host do at a start
//! ```
//!
//! Knows nothing of requests: a batch is rows, positions and block tables.

#![allow(unsafe_code)] // SIMD, kernel threads that borrow from their caller, device memory

mod backend;
pub mod cpu;
pub mod cuda;
mod draw;
mod drawing;
mod error;
mod peers;
mod scaled;
mod tensor;
pub mod threads;

pub use backend::*;
pub use draw::{History, Mirostat, Penalties, Seen};
pub use drawing::{Drawing, Waiter};
pub use error::Error;
pub use peers::Peers;
pub use scaled::Scales;
pub use tensor::{DType, Tensor};

/// Ends this process, without what libraries want to do at its end: the CUDA driver would wait for its kernels, and one
/// that hangs never ends.
pub fn end_process(status: u8) -> ! {
    // SAFETY: only ends the process; the system takes back what it had, a GPU's memory too.
    unsafe { libc::_exit(status.into()) }
}
