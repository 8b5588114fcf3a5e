//! GPUs as a [`Backend`].
//!
//! ```text
//! step.rs      a step's rows on the device, the plans of its attention, its workspace
//! layers.rs    the operations of a forward pass
//! graphs.rs    passes of steps that only decode, kept to be launched as one
//! group.rs     what ranks of a group add up and gather
//! draws.rs     drawing tokens: on the device where it can, else here
//! weights.rs   weights as the device has them
//! transfer.rs  their way there, through two pieces of pinned memory
//! unpacked.rs  products of many rows with packed weights before Hopper
//! buffer.rs    activations, and the cache of keys and values
//! staging.rs   what the host tells the device, copied at once
//! ```
//!
//! Activations are bf16, logits f32, keys and values bf16. Nothing is allocated on the device once a step, its buffers
//! and its cache are there. The twin runs the same code.

mod buffer;
mod draws;
mod graphs;
mod group;
mod layers;
mod staging;
mod step;
mod transfer;
mod unpacked;
mod weights;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize};

pub use self::{
    buffer::{Buffer, Cache},
    group::AllReduce,
    step::Step,
    weights::{Linear, Rotation, Table, Vector},
};
use self::{draws::Rows, transfer::Transfer, weights::Tables};
use super::{Device, Element, Memory, ops};
use crate::{
    Activation, Backend, Batch, BlockId, Content, DeviceMemory, Draw, Drawing, Error, Heads, Norm, Peers,
    Rope, Rotary, StepLimits, Tensor,
};

/// How a GPU computes.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// A row's bits depend on its own sequence only: every product by the kernels for few rows, which sum in one order
    /// whatever the number of rows, and attention whose sums restart at fixed positions. Long prompts take longer.
    pub deterministic: bool,
    /// Layers of steps that only decode are launched as one graph, from the second step of a size on.
    pub graphs: bool,
    /// Bytes of each of the two pieces of pinned memory through which weights go.
    pub staging: usize,
    /// The most bytes of packed weights, as bf16, that a large product takes at a time where it takes them so.
    pub unpacked: usize,
}

/// A GPU, or its twin. Operations start their work in the order in which they are called.
pub struct CudaBackend {
    device: Arc<dyn Device>,
    options: CudaOptions,
    tables: Tables,
    /// Numbers of the largest packed matrix.
    largest_packed: AtomicUsize,
    /// While weights are loaded.
    transfer: Mutex<Option<Transfer>>,
    peers: Option<Peers>,
    /// Sums over the group without a detour, where they may be in any order.
    sums: Option<Box<dyn AllReduce>>,
    /// The first error of an operation that could not give it back.
    failed: Mutex<Option<Error>>,
}

// === impl CudaOptions ===

impl Default for CudaOptions {
    fn default() -> Self {
        Self { deterministic: false, graphs: true, staging: 32 << 20, unpacked: 64 << 20 }
    }
}

// === impl CudaBackend ===

impl CudaBackend {
    /// Over an open device.
    pub fn new(device: Arc<dyn Device>, options: CudaOptions) -> Self {
        Self {
            device,
            options,
            tables: Tables::default(),
            largest_packed: AtomicUsize::default(),
            transfer: Mutex::default(),
            peers: None,
            sums: None,
            failed: Mutex::default(),
        }
    }

    /// As a rank of a group.
    pub fn in_group(self, peers: Peers) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// With sums that GPUs take among themselves. A deterministic device doesn't use them: their order is not ours.
    pub fn reducing(self, sums: Box<dyn AllReduce>) -> Self {
        Self { sums: Some(sums).filter(|_| !self.options.deterministic), ..self }
    }

    /// Over the same device, for another model, alone.
    pub fn another(&self) -> Self {
        Self::new(self.device.clone(), self.options)
    }

    /// Fills `memory` with rows that several threads make.
    fn load<T: Element>(
        &self,
        memory: &mut Memory<T>,
        columns: usize,
        make: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<(), Error> {
        let mut transfer = lock(&self.transfer);
        if transfer.is_none() {
            *transfer = Some(Transfer::new(&self.device, self.options.staging)?);
        }
        transfer.as_mut().map_or(Ok(()), |transfer| transfer.fill(memory, columns, make))
    }

    fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Starts work, unless earlier work failed; keeps its error.
    fn start(&self, work: impl FnOnce() -> Result<(), Error>) {
        let mut failed = lock(&self.failed);
        if failed.is_none() {
            *failed = work().inspect_err(|error| self.tell(error)).err();
        }
    }

    /// Whether all work so far could be started.
    fn works(&self) -> Result<(), Error> {
        match &*lock(&self.failed) {
            Some(error) => Err(Error::Device(error.to_string())),
            None => Ok(()),
        }
    }

    /// Other ranks hear of an error at once: they would wait for this one.
    fn tell(&self, error: &Error) {
        if let Some(peers) = &self.peers {
            peers.fail(&error.to_string());
        }
        if let Some(sums) = &self.sums {
            sums.abort();
        }
    }

    /// Does work that gives its error back, or that of work before it.
    fn give<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let mut failed = lock(&self.failed);
        let given = failed.take().map_or_else(work, Err);
        given.inspect_err(|error| {
            self.tell(error);
            *failed = Some(Error::Device(error.to_string()));
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for CudaBackend {
    type Linear = Linear;
    type Table = Table;
    type Vector = Vector;
    type Rope = Rotation;
    type Buffer = Buffer;
    type Cache = Cache;
    type Step = Step;

    fn linear(&self, parts: &[(Tensor, Option<Tensor>)]) -> Result<Linear, Error> {
        Linear::new(self, parts, false)
    }

    fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Linear, Error> {
        Linear::new(self, &[(gate.clone(), None), (up.clone(), None)], true)
    }

    fn table(&self, tensor: &Tensor) -> Result<Table, Error> {
        Table::new(self, tensor)
    }

    fn vector(&self, tensor: &Tensor) -> Result<Vector, Error> {
        Vector::new(&self.device, tensor)
    }

    fn rope(&self, rope: &Rope) -> Result<Rotation, Error> {
        Rotation::new(&self.device, rope)
    }

    fn buffer(&self, rows: usize, cols: usize, content: Content) -> Result<Buffer, Error> {
        Buffer::new(&self.device, rows, cols, content)
    }

    fn step(&self, limits: &StepLimits) -> Result<Step, Error> {
        *lock(&self.transfer) = None; // the weights are there
        let (grouped, unpacked) = (self.peers.is_some() && self.sums.is_none(), self.unpacked(limits.rows));
        Step::new(&self.device, limits, grouped, unpacked)
    }

    fn cache(&self, layers: usize, heads: Heads, blocks: usize) -> Result<Cache, Error> {
        Cache::new(&self.device, layers, heads, blocks)
    }

    fn block_bytes(&self, layers: usize, heads: Heads) -> usize {
        layers * 2 * buffer::block_numbers(heads) * size_of::<half::bf16>()
    }

    fn memory(&self) -> Result<Option<DeviceMemory>, Error> {
        self.device.memory().map(Some)
    }

    fn begin(&self, step: &mut Step, batch: Batch) {
        let CudaOptions { deterministic, graphs, .. } = self.options;
        // Ranks of a group wait for each other on this side.
        let graphs = graphs && self.peers.is_none();
        self.start(|| step.begin(self.device(), &batch, deterministic, graphs));
    }

    fn pass(&self, step: &mut Step, pass: &mut dyn FnMut(&mut Step)) {
        self.run_pass(step, pass);
    }

    fn embed(&self, step: &mut Step, table: &Table, scale: f32, positions: Option<&Table>, x: &mut Buffer) {
        self.start(|| self.run_embed(step, table, scale, positions, x));
    }

    fn norm_linear(
        &self,
        step: &mut Step,
        x: &mut Buffer,
        norm: Option<&Norm<Vector>>,
        w: &Linear,
        out: &mut Buffer,
    ) {
        self.start(|| self.run_norm_linear(step, x, norm, w, out));
    }

    fn rope_and_store(
        &self,
        step: &mut Step,
        layer: usize,
        heads: Heads,
        rotary: Rotary<'_, Rotation, Vector>,
        qkv: &mut Buffer,
        cache: &mut Cache,
    ) {
        self.start(|| self.run_rope_and_store(step, layer, heads, rotary, qkv, cache));
    }

    fn attention(
        &self,
        step: &mut Step,
        layer: usize,
        heads: Heads,
        qkv: &Buffer,
        cache: &Cache,
        out: &mut Buffer,
    ) {
        self.start(|| self.run_attention(step, layer, heads, qkv, cache, out));
    }

    fn linear_add(
        &self,
        step: &mut Step,
        a: &Buffer,
        w: &Linear,
        norm: Option<&Norm<Vector>>,
        x: &mut Buffer,
    ) {
        self.start(|| self.run_linear_add(step, a, w, norm, x));
    }

    fn activated_linear(
        &self,
        step: &mut Step,
        x: &mut Buffer,
        norm: Option<&Norm<Vector>>,
        w: &Linear,
        activation: Activation,
        out: &mut Buffer,
    ) {
        self.start(|| self.run_activated_linear(step, x, norm, w, activation, out));
    }

    fn logits(
        &self,
        step: &mut Step,
        rows: &[usize],
        x: &Buffer,
        norm: &Norm<Vector>,
        w: &Linear,
        out: &mut Buffer,
    ) {
        self.start(|| self.run_logits(step, rows, x, norm, w, out));
    }

    fn cap_logits(&self, _: &mut Step, cap: f32, rows: usize, logits: &mut Buffer) {
        self.start(|| {
            let numbers = rows * logits.stride;
            ops::logits_cap(self.device(), logits.logits_mut()?.slice_mut(0..numbers), cap)
        });
    }

    fn draw(&self, step: &mut Step, logits: &mut Buffer, draws: &[Draw]) -> Result<Drawing, Error> {
        self.give(|| {
            let (vocab, stride) = (logits.cols, logits.stride);
            let mut rows = Rows { logits: logits.logits_mut()?, vocab, stride };
            step.draws.draw(&self.device, &mut rows, draws)
        })
    }

    fn finish(&self, _: &mut Step) -> Result<(), Error> {
        self.give(|| {
            self.device.synchronize()?;
            self.peers.as_ref().map_or(Ok(()), Peers::check)
        })
    }

    fn copy_blocks(&self, cache: &mut Cache, copies: &[(BlockId, BlockId)]) {
        self.start(|| cache.copy(copies));
    }

    fn read(&self, buffer: &Buffer, rows: usize) -> Result<Vec<f32>, Error> {
        self.give(|| buffer.read(rows))
    }

    fn peers(&self) -> Option<&Peers> {
        self.peers.as_ref()
    }

    fn numerics(&self) -> Option<String> {
        // How sums are cut up follows from the number of multiprocessors.
        let properties = self.device.properties();
        self.options
            .deterministic
            .then(|| format!("cuda-sm{}x{}-bf16-v1", properties.arch, properties.processors))
    }
}
