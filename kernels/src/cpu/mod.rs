//! The CPU backend: quantized weights are computed on directly, by SIMD code chosen at run time.
//!
//! ```text
//! backend.rs   the operations of a step, over the parts below
//! buffer.rs    activations
//! linear.rs    the linear layers
//! pack.rs      weights in the order in which the kernels read them
//! reblock.rs   codes with scales beside them, as blocks that it packs
//! prepared.rs  activations in the form that a product reads
//! formats.rs   how storage formats lay out their numbers
//! attention.rs causal attention over the paged cache
//! rope.rs      rotary positions; keys and values on their way to the cache
//! cache.rs     the paged cache of keys and values
//! norm.rs      RMS norm of a row
//! softcap.rs   soft bounds of scores and logits
//! sample.rs    drawing tokens from logits
//! rng.rs       counter-based random numbers
//! isa.rs       the instruction sets this machine has
//! simd.rs      sixteen-lane vectors with the same results on all of them
//! memory.rs    huge pages for weights; releasing a file's
//! scratch.rs   memory for intermediate results
//! pool.rs      threads that share a section of tasks
//! ```

mod attention;
mod backend;
mod buffer;
mod cache;
pub mod formats;
pub mod isa;
pub mod linear;
mod memory;
mod norm;
pub mod pack;
pub mod pool;
pub mod prepared;
mod reblock;
pub mod rng;
mod rope;
mod sample;
mod scratch;
mod simd;
mod softcap;

pub use backend::{CpuBackend, CpuOptions, Table, Vector};
pub use buffer::Buffer;
pub use cache::Cache;
pub use isa::Isa;
pub use pack::Activations;
pub use pool::{Pool, lower_priority};
pub(crate) use sample::draw;
