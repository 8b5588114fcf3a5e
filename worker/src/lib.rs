//! The worker: weights, KV cache memory, step execution, sampling. It runs the plans of one scheduler at a
//! time and never decides what runs next.
//!
//! ```text
//! model file ─▶ format ─▶ model (a description) ─▶ decoder ◀─ engine ◀── Job ── service ◀══ gRPC ══ scheduler
//!                 └─────▶ text (files for routers) ────────────────────────────▶ FetchModel
//!
//! config.rs   what a worker is told            format/   GGUF, safetensors, Hugging Face directories
//! worker.rs   loading and serving              model/    families and their descriptions
//! card.rs     the model card                   text/     tokenizer.json and its relatives
//! weights.rs  the weights' hash                decoder   one forward pass for all backends and families
//! device.rs   the CPU or a GPU                 engine/   the step thread: slots, plans, results
//! group.rs    several decoders as one          shard.rs  what each has of the model
//! plan.rs     what goes where in its memory    memory.rs how much memory is free
//! step_size.rs   how much one step computes
//! ```

mod card;
mod config;
mod decoder;
mod device;
mod engine;
mod error;
mod format;
mod group;
mod memory;
mod model;
mod plan;
mod service;
mod shard;
mod step_size;
#[cfg(test)]
mod testing;
mod text;
mod weights;
mod worker;

pub use config::{Config, Device, Pooling, Quantization};
pub use device::{Gpu, Machine, gpus};
pub use error::Error;
pub use memory::available as available_memory;
pub use step_size::StepSize;
pub use volley_kernels::{cpu::pack::Activations, end_process};
pub use worker::Worker;
