//! The CPU backend: quantized weights are computed on directly, by SIMD code chosen at run time.
//!
//! ```text
//! isa.rs       the instruction sets this machine has
//! formats.rs   how storage formats lay out their numbers
//! memory.rs    huge pages for weights; releasing a file's
//! pack.rs      weights in the order in which the kernels read them
//! prepared.rs  activations in the form that a product reads
//! linear.rs    the linear layers
//! pool.rs      threads that share a section of tasks
//! ```

pub mod formats;
pub mod isa;
pub mod linear;
mod memory;
pub mod pack;
pub mod pool;
pub mod prepared;
