//! Kernels for NVIDIA GPUs, and what launches them.
//!
//! ```text
//! device.rs    the launch trait: memory, kernels by name, events, graphs, timing
//! memory.rs    typed memory on a device, and views of it
//! cublas.rs    matrix products by cublasLt, to compare with
//! driver.rs    the trait over the CUDA driver, found at run time
//! faults.rs    what the driver's errors mean
//! nccl.rs      sums over several GPUs by NCCL, found likewise
//! fatbins.rs   the compiled kernels, built into the binary
//! packed/      quantized weights in the order in which kernels read them
//! ops/         one typed launcher per operation: shapes are checked before anything is launched
//! backend/     the operations as the decoder asks for them
//! ```
//!
//! The kernels' sources stand in `kernels/cuda`, a file per operation. The trait's other implementation is
//! `volley-twin`, which runs the same sources on the CPU in tests. A machine without a driver, a GPU or a library gives
//! an ordinary error when a device is opened.

mod backend;
mod cublas;
mod device;
mod driver;
mod fatbins;
mod faults;
mod memory;
mod nccl;
pub mod ops;
mod packed;

pub use backend::{
    AllReduce, Buffer, Cache, CudaBackend, CudaOptions, Linear, Rotation, Step, Table, Vector,
};
pub use cublas::{CublasLt, MatMul};
pub use device::{Address, Argument, Device, ElementType, Event, Graph, Launch, Properties, TensorMap, Tile};
pub use driver::Cuda;
pub use fatbins::{FATBINS, Fatbin};
pub use memory::{Element, Memory, Pinned, View, ViewMut};
pub use nccl::Nccl;
pub use packed::{GptqTensors, PackedFormat, PackedWeights};
