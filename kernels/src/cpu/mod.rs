//! The CPU backend: quantized weights are computed on directly, by SIMD code chosen at run time.
//!
//! ```text
//! pool.rs      threads that share a section of tasks
//! ```

pub mod pool;
