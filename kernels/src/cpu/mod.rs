//! The CPU backend: quantized weights are computed on directly, by SIMD code chosen at run time.
//!
//! ```text
//! attention    causal attention over the paged cache
//! rope.rs      rotary positions; keys and values on their way to the cache
//! norm.rs      RMS norm of a row
//! cache.rs     the paged cache of keys and values
//! scratch.rs   memory for intermediate results
//! isa.rs       instruction sets, and which of them the machine has
//! simd.rs      sixteen-lane vectors with the same results on all of them
//! pool.rs      threads that share a section of tasks
//! ```

mod attention;
mod cache;
pub mod isa;
mod norm;
pub mod pool;
mod rope;
mod scratch;
mod simd;

pub use cache::Cache;
