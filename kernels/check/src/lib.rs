//! The proof of the CUDA kernels: for each operation the shapes at which it is held against a float64 reference, and
//! what is timed.
//!
//! ```text
//! case.rs      one shape: inputs, the reference's outputs, the launch
//! compare.rs   how far from the reference an output may be
//! speed.rs     one timing: what is launched, how many bytes it moves, what it is held against
//! ops/         the operations, one file each: cases(), speeds()
//! gpu/         the check on a machine with a GPU (the binary `kernel-check`)
//! tests/       the same cases on the CPU twin, under every schedule; the state of the compiled kernels
//! ```

mod case;
mod compare;
pub mod gpu;
pub mod ops;
mod random;
mod speed;

pub use case::{Case, Outcome, Output, Size, Trial, unwritten};
pub use ops::{Operation, operations};
pub use random::Random;
pub use speed::{Peer, SetUp, Speed, Step, Work};
