//! The CPU as a [`Backend`].

use std::sync::Mutex;

use super::attention::{Attention, Step};
use super::cache::{Cache, Precision, Shape};
use super::formats;
use super::isa::Isa;
use super::linear::{Epilogue, matmul};
use super::memory::Region;
use super::norm::{LayerNorm, RmsNorm};
use super::pack::{Activations, Packed, Packer};
use super::pool::Pool;
use super::prepared::Prepared;
use super::rope::{Gains, Rotations};
use super::scratch::{self, Shared};
use super::{sample, simd};
use crate::{
    Activation, Backend, Batch, BlockId, Content, DeviceMemory, Draw, Drawing, Error, Heads, Norm, Peers,
    Rope, Rotary, StepLimits, Tensor,
};

/// Rows that a task normalizes and quantizes.
const TASK_ROWS: usize = 8;
/// Numbers of the residual stream that a task adds to.
const TASK_SUMS: usize = 1024;

/// How the CPU backend computes.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads of a step, the caller's among them; at least 1.
    pub threads: usize,
    /// What linear layers compute with.
    pub activations: Activations,
    /// The instruction set; the machine's best by default. It changes speed only.
    pub isa: Option<Isa>,
}

/// The CPU backend. Operations run on the calling thread and the pool's, and have ended when they return.
pub struct CpuBackend {
    isa: Isa,
    activations: Activations,
    pool: Pool,
    packer: Packer,
    attention: Attention,
    rotations: Rotations,
    peers: Option<Peers>,
    /// The rows that a product reads, and what they have room for.
    prepared: Mutex<Room>,
}

/// A `[rows, cols]` matrix of f32. Memory is touched when it is first written.
pub struct Buffer {
    numbers: Region,
    rows: usize,
    cols: usize,
}

/// An embedding table, as stored: rows are dequantized when they are read.
pub struct Table(Tensor);

/// Norm gains or biases.
pub struct Vector(Vec<f32>);

/// The rows that a product is of.
struct Input<'a> {
    x: &'a Buffer,
    /// Which rows of `x`; the first ones by default.
    rows: Option<&'a [usize]>,
    norm: Option<&'a Norm<Vector>>,
}

/// Prepared rows, and how many there can be.
struct Room {
    rows: usize,
    cols: usize,
    prepared: Prepared,
}

// === impl CpuBackend ===

impl CpuBackend {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the machine lacks the instruction set, or gives no threads or memory.
    pub fn new(options: CpuOptions) -> Result<Self, Error> {
        let CpuOptions { threads, activations, isa } = options;
        let isa = isa.unwrap_or_else(Isa::detect);
        if !Isa::available().contains(&isa) {
            return Err(Error::Unsupported(format!("this machine doesn't have {isa:?}")));
        }
        Ok(Self {
            isa,
            activations,
            pool: Pool::new(threads.max(1))?,
            packer: Packer::new(activations),
            attention: Attention::default(),
            rotations: Rotations::default(),
            peers: None,
            prepared: Mutex::new(Room { rows: 0, cols: 0, prepared: Prepared::new(0, 0)? }),
        })
    }

    /// As a rank of a group.
    pub fn in_group(self, peers: Peers) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads, for work beside the steps.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Keys and values are rounded to halves where activations are rounded too.
    fn shape(&self, layers: usize, heads: Heads) -> Shape {
        let precision = match self.activations {
            Activations::Int8 => Precision::Half,
            Activations::F32 => Precision::Single,
        };
        Shape::new(layers, heads, precision)
    }

    /// Makes room for the products of `rows` rows of `cols` columns.
    fn reserve(&self, rows: usize, cols: usize) -> Result<(), Error> {
        let mut room = scratch::lock(&self.prepared);
        let (rows, cols) = (rows.max(room.rows), cols.max(room.cols));
        if (rows, cols) != (room.rows, room.cols) {
            *room = Room { rows, cols, prepared: Prepared::new(rows, cols)? };
        }
        Ok(())
    }

    /// Product of `rows` rows.
    fn product(&self, rows: usize, input: Input<'_>, w: &Packed, epilogue: Epilogue<'_>) {
        let room = scratch::lock(&self.prepared);
        self.pool.run(rows.div_ceil(TASK_ROWS), &|task| {
            scratch::with(w.inputs(), |memory| {
                for i in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
                    let row = input.row(self.isa, i, &mut memory[..w.inputs()]);
                    // SAFETY: each row is one task's, and the product comes after.
                    unsafe { room.prepared.set_row(self.isa, i, row, w) };
                }
            });
        });
        matmul(&self.pool, self.isa, w, &room.prepared, rows, epilogue);
    }

    /// What goes wrong between ranks shows here.
    fn check(&self) -> Result<(), Error> {
        self.peers.as_ref().map_or(Ok(()), Peers::check)
    }

    /// Adds each rank's part of a sum, in the order of ranks.
    fn add(&self, parts: &[&[f32]], x: &mut [f32]) {
        let (numbers, x) = (x.len(), Shared::new(x));
        self.pool.run(numbers.div_ceil(TASK_SUMS), &|task| {
            let range = task * TASK_SUMS..numbers.min((task + 1) * TASK_SUMS);
            let mut sums = [0.0; TASK_SUMS];
            for part in parts {
                sums.iter_mut().zip(&part[range.clone()]).for_each(|(sum, number)| *sum += number);
            }
            // SAFETY: within the numbers; each is one task's.
            let x = unsafe { std::slice::from_raw_parts_mut(x.at(range.start), range.len()) };
            x.iter_mut().zip(&sums).for_each(|(x, sum)| *x += sum);
        });
    }
}

impl Backend for CpuBackend {
    type Linear = Packed;
    type Table = Table;
    type Vector = Vector;
    type Rope = Rope;
    type Buffer = Buffer;
    type Cache = Cache;
    type Step = Batch;

    fn linear(&self, parts: &[(Tensor, Option<Tensor>)]) -> Result<Packed, Error> {
        let packed = self.packer.linear(&self.pool, parts)?;
        self.reserve(0, packed.inputs())?;
        Ok(packed)
    }

    fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Packed, Error> {
        let packed = self.packer.gated(&self.pool, gate, up)?;
        self.reserve(0, packed.inputs())?;
        Ok(packed)
    }

    fn table(&self, tensor: &Tensor) -> Result<Table, Error> {
        formats::check(tensor)?;
        Ok(Table(tensor.clone()))
    }

    fn vector(&self, tensor: &Tensor) -> Result<Vector, Error> {
        if tensor.rows != 1 {
            let problem = format!("a vector has one row, not {}", tensor.rows);
            return Err(Error::Tensor { name: tensor.name.clone(), problem });
        }
        formats::dequantized(tensor).map(Vector)
    }

    fn rope(&self, rope: &Rope) -> Result<Rope, Error> {
        Ok(rope.clone())
    }

    fn buffer(&self, rows: usize, cols: usize, _: Content) -> Result<Buffer, Error> {
        self.reserve(rows, 0)?;
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(size_of::<f32>()));
        let bytes = bytes.ok_or(Error::Memory { bytes: usize::MAX, what: "activations" })?;
        Ok(Buffer { numbers: Region::alone(bytes, "activations")?, rows, cols })
    }

    fn step(&self, _: &StepLimits) -> Result<Batch, Error> {
        Ok(Batch::default())
    }

    fn cache(&self, layers: usize, heads: Heads, blocks: usize) -> Result<Cache, Error> {
        let Heads { heads: queries, kv_heads, dim, .. } = heads;
        if kv_heads == 0 || !queries.is_multiple_of(kv_heads) || dim == 0 || !dim.is_multiple_of(8) {
            let problem = format!("{queries} heads over {kv_heads} KV heads of {dim} dimensions");
            return Err(Error::Unsupported(format!(
                "attention needs whole groups of multiples of 8: {problem}"
            )));
        }
        Cache::new(self.shape(layers, heads), blocks)
    }

    fn block_bytes(&self, layers: usize, heads: Heads) -> usize {
        self.shape(layers, heads).block_bytes()
    }

    fn memory(&self) -> Result<Option<DeviceMemory>, Error> {
        Ok(None)
    }

    fn begin(&self, step: &mut Batch, batch: Batch) {
        *step = batch;
    }

    fn embed(&self, batch: &mut Batch, table: &Table, positions: Option<&Table>, x: &mut Buffer) {
        let (rows, cols) = (batch.tokens.len(), x.cols);
        let learned = positions.map(|table| (table, batch.positions().collect::<Vec<_>>()));
        let (batch, x) = (&*batch, Shared::new(x.rows_mut(rows)));
        self.pool.run(rows.div_ceil(TASK_ROWS), &|task| {
            for i in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
                // SAFETY: within the first `rows` rows; each is one task's.
                let row = unsafe { std::slice::from_raw_parts_mut(x.at(i * cols), cols) };
                formats::dequantize_row(&table.0, batch.tokens[i] as usize, row);
                if let Some((table, positions)) = &learned {
                    scratch::with(cols, |memory| {
                        formats::dequantize_row(&table.0, positions[i], &mut memory[..cols]);
                        row.iter_mut().zip(memory).for_each(|(x, place)| *x += *place);
                    });
                }
            }
        });
    }

    fn norm_linear(
        &self,
        batch: &mut Batch,
        x: &mut Buffer,
        norm: &Norm<Vector>,
        w: &Packed,
        out: &mut Buffer,
    ) {
        let rows = batch.tokens.len();
        let input = Input { x, rows: None, norm: Some(norm) };
        self.product(rows, input, w, Epilogue::Store(out.product_mut(rows, w)));
    }

    fn rope_and_store(
        &self,
        batch: &mut Batch,
        layer: usize,
        heads: Heads,
        Rotary { rope, norms }: Rotary<'_, Rope, Vector>,
        qkv: &mut Buffer,
        cache: &mut Cache,
    ) {
        let qkv = qkv.rows_mut(batch.tokens.len());
        let gains =
            norms.map(|norms| Gains { query: &norms.query.0, key: &norms.key.0, epsilon: norms.epsilon });
        self.rotations.run(&self.pool, self.isa, batch, layer, heads, rope, gains, qkv, cache);
    }

    fn attention(
        &self,
        batch: &mut Batch,
        layer: usize,
        heads: Heads,
        qkv: &Buffer,
        cache: &Cache,
        out: &mut Buffer,
    ) {
        let rows = batch.tokens.len();
        let step = Step { batch, layer, heads, qkv: qkv.rows(rows), cache };
        self.attention.run(&self.pool, self.isa, step, out.rows_mut(rows));
    }

    fn linear_add(&self, batch: &mut Batch, a: &Buffer, w: &Packed, x: &mut Buffer) {
        let rows = batch.tokens.len();
        let (input, x) = (Input { x: a, rows: None, norm: None }, x.product_mut(rows, w));
        let Some(peers) = &self.peers else {
            return self.product(rows, input, w, Epilogue::Add(x));
        };
        let product = |part: &mut [f32]| {
            self.product(rows, input, w, Epilogue::Store(part));
            Ok(())
        };
        let _ = peers.exchange(x.len(), product, |parts| self.add(parts, x)); // the error stays with the group
    }

    fn activated_linear(
        &self,
        batch: &mut Batch,
        x: &mut Buffer,
        norm: &Norm<Vector>,
        w: &Packed,
        activation: Activation,
        out: &mut Buffer,
    ) {
        let rows = batch.tokens.len();
        let input = Input { x, rows: None, norm: Some(norm) };
        let out = out.product_mut(rows, w);
        let epilogue = match w.is_gated() {
            true => Epilogue::Gated(activation, out),
            false => Epilogue::Activated(activation, out),
        };
        self.product(rows, input, w, epilogue);
    }

    fn logits(
        &self,
        _: &mut Batch,
        rows: &[usize],
        x: &Buffer,
        norm: &Norm<Vector>,
        w: &Packed,
        out: &mut Buffer,
    ) {
        let (count, input) = (rows.len(), Input { x, rows: Some(rows), norm: Some(norm) });
        let Some(peers) = &self.peers else {
            return self.product(count, input, w, Epilogue::Store(out.product_mut(count, w)));
        };
        let product = |part: &mut [f32]| {
            self.product(count, input, w, Epilogue::Store(part));
            Ok(())
        };
        let gather = |parts: &[&[f32]]| {
            if peers.rank() == 0 {
                out.gather(count, parts);
            }
        };
        let _ = peers.exchange(count * w.outputs(), product, gather); // the error stays with the group
    }

    fn draw(&self, _: &mut Batch, logits: &mut Buffer, draws: &[Draw]) -> Result<Drawing, Error> {
        self.check()?;
        let rows = logits.rows(draws.len());
        Ok(Drawing::done(sample::draw(&self.pool, self.isa, rows, logits.cols, draws)))
    }

    fn finish(&self, _: &mut Batch) -> Result<(), Error> {
        self.check()
    }

    fn copy_blocks(&self, cache: &mut Cache, copies: &[(BlockId, BlockId)]) {
        cache.copy_blocks(copies);
    }

    fn read(&self, buffer: &Buffer, rows: usize) -> Result<Vec<f32>, Error> {
        self.check()?;
        Ok(buffer.rows(rows).to_vec())
    }

    fn peers(&self) -> Option<&Peers> {
        self.peers.as_ref()
    }

    fn numerics(&self) -> Option<String> {
        // All instruction sets agree, so none is named.
        let class = match self.activations {
            Activations::Int8 => "cpu-f16kv-int8act-v1",
            Activations::F32 => "cpu-f32kv-f32act-v1",
        };
        Some(class.to_owned())
    }
}

// === impl Input ===

impl Input<'_> {
    /// Row `i`, in `memory` if it is computed.
    fn row<'a>(&'a self, isa: Isa, i: usize, memory: &'a mut [f32]) -> &'a [f32] {
        let x = self.x.row(self.rows.map_or(i, |rows| rows[i]));
        let out = &mut *memory;
        match self.norm {
            None => return x,
            Some(Norm::Rms { gain, epsilon }) => {
                let norm = RmsNorm { x, gain: &gain.0, epsilon: *epsilon, out };
                // SAFETY: the norm asks for nothing but the instructions; it checks the lengths.
                unsafe { simd::run(isa, norm) };
            }
            Some(Norm::Layer { gain, bias, epsilon }) => {
                let norm = LayerNorm { x, gain: &gain.0, bias: &bias.0, epsilon: *epsilon, out };
                // SAFETY: as above.
                unsafe { simd::run(isa, norm) };
            }
        }
        memory
    }
}

// === impl Buffer ===

impl Buffer {
    fn rows(&self, rows: usize) -> &[f32] {
        assert!(rows <= self.rows, "{rows} rows of a buffer of {}", self.rows);
        // SAFETY: the region has so many numbers, zero if never written, on a cache line.
        unsafe { std::slice::from_raw_parts(self.numbers.pointer().cast(), rows * self.cols) }
    }

    fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        assert!(rows <= self.rows, "{rows} rows of a buffer of {}", self.rows);
        // SAFETY: as above; the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.numbers.pointer().cast(), rows * self.cols) }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.rows(row + 1)[row * self.cols..]
    }

    /// Puts `rows` rows together of what each rank has of them.
    fn gather(&mut self, rows: usize, parts: &[&[f32]]) {
        let (cols, numbers) = (self.cols, self.rows_mut(rows));
        for (i, row) in numbers.chunks_exact_mut(cols).enumerate() {
            let mut rest = row;
            for part in parts {
                let part = &part[part.len() / rows * i..part.len() / rows * (i + 1)];
                let (here, after) = rest.split_at_mut(part.len());
                here.copy_from_slice(part);
                rest = after;
            }
        }
    }

    /// The rows that a product with `w` writes.
    fn product_mut(&mut self, rows: usize, w: &Packed) -> &mut [f32] {
        assert_eq!(self.cols, w.outputs(), "the buffer's columns are not the layer's outputs");
        self.rows_mut(rows)
    }
}
