//! The decoder: one forward pass over the rows of a step, written once for every backend and family.
//!
//! ```text
//! tokens ─▶ embed ─▶ x ─┬─▶ norm_linear ─▶ qkv ─▶ rope_and_store ─▶ attention ─▶ linear_add ─▶ x   ┐ each
//!                       └─▶ activated_linear ─▶ hidden ────────────────────────▶ linear_add ─▶ x   ┘ layer
//! x[chosen rows] ─▶ logits ─▶ draw
//! ```
//!
//! A decoder is one rank's: where its device is in a tensor-parallel group, it has its shard of heads, of hidden columns
//! and of the output matrix, and `linear_add` and `logits` are where ranks meet.

#[cfg(test)]
mod tests;

use std::ops::Range;

use volley_kernels::{
    BLOCK_TOKENS, Backend, Batch, BlockId, Content, Draw, Drawn, HeadNorms, Norm, Rotary, StepLimits, Tensor,
    cpu::formats::dequantized,
};

use crate::{
    Error,
    format::Weights,
    model::{Bias, Description, Mlp, NormKind, Qkv},
    shard::Shard,
};

/// Rows of logits held at once, or as many as there are sequences: bounds the largest buffer (vocabulary × 4 bytes a
/// row). Each further slice reads the output matrix again.
const LOGITS_ROWS: usize = 64;

/// A loaded model with the buffers of a step.
pub(crate) struct Decoder<B: Backend> {
    backend: B,
    /// The rank's part of it.
    model: Description,
    embedding: B::Table,
    /// Learned positions.
    positions: Option<B::Table>,
    layers: Vec<Layer<B>>,
    final_norm: Norm<B::Vector>,
    /// The same on this side: embeddings are few, and normed here.
    final_norm_here: Norm<Vec<f32>>,
    output: B::Linear,
    rope: B::Rope,
    cache: B::Cache,
    capacity: Capacity,
    step: B::Step,
    buffers: Buffers<B>,
}

struct Layer<B: Backend> {
    attention_norm: Norm<B::Vector>,
    qkv: B::Linear,
    head_norms: Option<HeadNorms<B::Vector>>,
    attention_output: B::Linear,
    mlp_norm: Norm<B::Vector>,
    mlp: B::Linear,
    down: B::Linear,
}

/// Activations of a step, `max_batch_tokens` rows each; logits as many as [`Capacity::logits_rows`].
struct Buffers<B: Backend> {
    x: B::Buffer,
    qkv: B::Buffer,
    attention: B::Buffer,
    hidden: B::Buffer,
    logits: B::Buffer,
}

/// Sizes that the configuration decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    /// Rows of a step.
    pub(crate) rows: usize,
    /// Sequences of a step.
    pub(crate) sequences: usize,
}

/// A matrix, and its bias if it has one.
pub(crate) type Part = (Tensor, Option<Tensor>);

/// Takes tensors out of the file by their role, and reports how far loading is.
struct Loader<'a, B> {
    backend: &'a B,
    model: &'a Description,
    shard: Shard,
    weights: &'a Weights,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

// === impl Decoder ===

impl<B: Backend> Decoder<B> {
    /// Loads the weights. `progress` is told the bytes done and in total; `blocks` says how many KV blocks to
    /// reserve once all else has its memory.
    pub(crate) fn load(
        backend: B,
        model: Description,
        weights: &Weights,
        capacity: Capacity,
        progress: &mut dyn FnMut(u64, u64),
        blocks: impl FnOnce(&B) -> Result<usize, Error>,
    ) -> Result<Self, Error> {
        let total = weights.tensors().map(|tensor| tensor.data.len() as u64).sum();
        let shard = Shard::of(&backend);
        let mut loader =
            Loader { backend: &backend, model: &model, shard, weights, progress, done: 0, total };
        let names = model.names;
        let embedding = loader.tensor(names.embedding, 0, model.vocab, model.width)?;
        let table = backend.table(&embedding)?;
        let positions = loader.positions()?;
        let layers = (0..model.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
        let final_norm = loader.norm(names.final_norm, 0, |tensor| Ok(backend.vector(tensor)?))?;
        let final_norm_here = loader.norm(names.final_norm, 0, |tensor| Ok(dequantized(tensor)?))?;
        let output = match model.tied {
            true => embedding,
            false => loader.tensor(names.output, 0, model.vocab, model.width)?,
        };
        let output = backend.linear(&[(shard.outputs(output)?, None)])?;
        (loader.progress)(total, total);

        let model = shard.description(&model);
        let rope = backend.rope(&model.rope)?;
        let step = backend.step(&capacity.limits(&model))?;
        let buffers = Buffers::new(&backend, &model, capacity)?;
        let blocks = blocks(&backend)?;
        let cache = backend.cache(model.layers, model.heads, blocks)?;
        let embedding = table;
        Ok(Self {
            backend,
            model,
            embedding,
            positions,
            layers,
            final_norm,
            final_norm_here,
            output,
            rope,
            cache,
            capacity,
            step,
            buffers,
        })
    }

    /// The most tokens of a sequence.
    pub(crate) fn context(&self) -> usize {
        self.model.context
    }

    /// What computes.
    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// Copies KV blocks.
    pub(crate) fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) {
        self.backend.copy_blocks(&mut self.cache, copies);
    }

    /// Runs all layers over the rows of `batch`: at most [`Capacity::rows`], with blocks for all of them. What comes
    /// after it is about this batch, up to [`finish`](Self::finish).
    pub(crate) fn forward(&mut self, batch: Batch) {
        let Self { backend, model, cache, step, buffers, rope, .. } = self;
        let Buffers { x, qkv, attention, hidden, .. } = buffers;
        let heads = model.heads;
        backend.begin(step, batch);
        backend.embed(step, &self.embedding, self.positions.as_ref(), x);
        for (index, layer) in self.layers.iter().enumerate() {
            backend.norm_linear(step, x, &layer.attention_norm, &layer.qkv, qkv);
            let rotary = Rotary { rope: &*rope, norms: layer.head_norms.as_ref() };
            backend.rope_and_store(step, index, heads, rotary, qkv, cache);
            backend.attention(step, index, heads, qkv, cache, attention);
            backend.linear_add(step, attention, &layer.attention_output, x);
            backend.activated_linear(step, x, &layer.mlp_norm, &layer.mlp, model.activation, hidden);
            backend.linear_add(step, hidden, &layer.down, x);
        }
    }

    /// Draws from, or scores, rows of the last forward pass: `draws[i]` belongs to row `rows[i]`.
    pub(crate) fn draw(&mut self, rows: &[usize], draws: &[Draw]) -> Result<Vec<Drawn>, Error> {
        let mut drawn = Vec::with_capacity(draws.len());
        let slice = self.capacity.logits_rows();
        for (rows, draws) in rows.chunks(slice).zip(draws.chunks(slice)) {
            self.compute_logits(rows);
            drawn.extend(self.backend.draw(&mut self.step, &mut self.buffers.logits, draws)?);
        }
        Ok(drawn)
    }

    /// What another rank does while the first draws.
    pub(crate) fn join_logits(&mut self, rows: &[usize]) {
        rows.chunks(self.capacity.logits_rows()).for_each(|rows| self.compute_logits(rows));
    }

    /// Waits for the step's end. After an error the device is of no more use.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        Ok(self.backend.finish(&mut self.step)?)
    }

    fn compute_logits(&mut self, rows: &[usize]) {
        let Self { backend, step, final_norm, output, buffers, .. } = self;
        backend.logits(step, rows, &buffers.x, final_norm, output, &mut buffers.logits);
    }
}

impl<B: Backend> Decoder<B> {
    /// The final hidden states, normed, of rows of the last forward pass: `[rows, width]` for each range.
    pub(crate) fn hidden(&self, ranges: Vec<Range<usize>>) -> Result<Vec<Vec<f32>>, Error> {
        let width = self.model.width;
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let x = self.backend.read(&self.buffers.x, end)?;
        let rows = |range: Range<usize>| x[range.start * width..range.end * width].chunks_exact(width);
        Ok(ranges.into_iter().map(|range| rows(range).flat_map(|row| self.normed(row)).collect()).collect())
    }

    /// The final norm of a row. One addition after the other in f64: the same bits on every machine.
    fn normed(&self, row: &[f32]) -> Vec<f32> {
        let mean = |numbers: &mut dyn Iterator<Item = f64>| numbers.sum::<f64>() / row.len() as f64;
        let (middle, gain, bias) = match &self.final_norm_here {
            Norm::Rms { gain, .. } => (0.0, gain, None),
            Norm::Layer { gain, bias, .. } => {
                (mean(&mut row.iter().copied().map(f64::from)), gain, Some(bias))
            }
        };
        let off = |x: &f32| f64::from(*x) - middle;
        let square = mean(&mut row.iter().map(|x| off(x) * off(x)));
        let scale = 1.0 / (square + f64::from(self.model.epsilon)).sqrt();
        let scaled = row.iter().zip(gain).map(|(x, gain)| (off(x) * scale) as f32 * gain);
        match bias {
            None => scaled.collect(),
            Some(bias) => scaled.zip(bias).map(|(x, bias)| x + bias).collect(),
        }
    }
}

#[cfg(test)]
impl<B: Backend> Decoder<B> {
    /// Logits of rows of the last forward pass.
    pub(crate) fn logits(&mut self, rows: &[usize]) -> Vec<f32> {
        let slice = self.capacity.logits_rows();
        let mut logits = |rows: &[usize]| {
            self.compute_logits(rows);
            self.backend.read(&self.buffers.logits, rows.len()).unwrap()
        };
        rows.chunks(slice).flat_map(&mut logits).collect()
    }
}

// === impl Buffers ===

impl<B: Backend> Buffers<B> {
    fn new(backend: &B, model: &Description, capacity: Capacity) -> Result<Self, Error> {
        let heads = model.heads;
        let (query, key) = (heads.heads * heads.dim, heads.kv_heads * heads.dim);
        let activations = |cols| backend.buffer(capacity.rows, cols, Content::Activations);
        Ok(Self {
            x: backend.buffer(capacity.rows, model.width, Content::Residual)?,
            qkv: activations(query + 2 * key)?,
            attention: activations(query)?,
            hidden: activations(model.hidden)?,
            logits: backend.buffer(capacity.logits_rows(), model.vocab, Content::Logits)?,
        })
    }
}

// === impl Capacity ===

impl Capacity {
    fn logits_rows(self) -> usize {
        LOGITS_ROWS.max(self.sequences).min(self.rows)
    }

    fn limits(self, model: &Description) -> StepLimits {
        StepLimits {
            rows: self.rows,
            sequences: self.sequences,
            blocks: model.context.div_ceil(BLOCK_TOKENS),
            draws: self.logits_rows(),
            width: model.width,
            hidden: model.hidden,
            heads: model.heads,
            vocab: model.vocab,
        }
    }
}

// === impl Loader ===

impl<B: Backend> Loader<'_, B> {
    fn layer(&mut self, layer: usize) -> Result<Layer<B>, Error> {
        let (backend, model, names) = (self.backend, self.model, self.model.names);
        let (query, key) = (model.heads.heads * model.heads.dim, model.heads.kv_heads * model.heads.dim);
        let qkv = self.qkv(layer, [query, key, key])?;
        let attention_output = self.inputs(names.attention_output, layer, query, model.output_bias)?;
        let mlp = self.mlp(layer)?;
        let down = self.inputs(names.down, layer, model.hidden, model.mlp_bias)?;
        let vector = |tensor: &Tensor| Ok(backend.vector(tensor)?);
        Ok(Layer {
            attention_norm: self.norm(names.attention_norm, layer, vector)?,
            qkv: backend.linear(&qkv)?,
            head_norms: names.head_norms.map(|names| self.head_norms(names, layer)).transpose()?,
            attention_output: backend.linear(&[attention_output])?,
            mlp_norm: self.norm(names.mlp_norm, layer, vector)?,
            mlp,
            down: backend.linear(&[down])?,
        })
    }

    /// Queries, keys and values: so many rows each in the whole model.
    fn qkv(&mut self, layer: usize, rows: [usize; 3]) -> Result<Vec<Part>, Error> {
        let bias = self.model.qkv_bias;
        match self.model.names.qkv {
            Qkv::Apart(names) => {
                let parts = names.into_iter().zip(rows);
                parts.map(|(name, rows)| self.outputs(name, layer, rows, bias)).collect()
            }
            Qkv::Stacked(name) => self.stacked(name, layer, &rows, bias),
        }
    }

    fn mlp(&mut self, layer: usize) -> Result<B::Linear, Error> {
        let (backend, hidden) = (self.backend, self.model.hidden);
        let linear = match self.model.names.mlp {
            Mlp::Gated([gate, up]) => {
                let (gate, _) = self.outputs(gate, layer, hidden, Bias::Never)?;
                backend.gated(&gate, &self.outputs(up, layer, hidden, Bias::Never)?.0)?
            }
            Mlp::Stacked(name) => {
                let parts = self.stacked(name, layer, &[hidden, hidden], Bias::Never)?;
                backend.gated(&parts[0].0, &parts[1].0)?
            }
            Mlp::Plain(up) => backend.linear(&[self.outputs(up, layer, hidden, self.model.mlp_bias)?])?,
        };
        Ok(linear)
    }

    /// The rank's outputs of a matrix over the residual stream.
    fn outputs(&mut self, name: &str, layer: usize, rows: usize, bias: Bias) -> Result<Part, Error> {
        let part = self.part(name, layer, rows, self.model.width, bias)?;
        self.shard.outputs_of(part)
    }

    /// The rank's inputs of a matrix whose products are added to the residual stream.
    fn inputs(&mut self, name: &str, layer: usize, cols: usize, bias: Bias) -> Result<Part, Error> {
        let (matrix, bias) = self.part(name, layer, self.model.width, cols, bias)?;
        Ok((self.shard.inputs(matrix)?, self.shard.once(bias)))
    }

    /// The rank's outputs of matrices that the file keeps below each other, so many rows each, with their biases.
    fn stacked(&mut self, name: &str, layer: usize, rows: &[usize], bias: Bias) -> Result<Vec<Part>, Error> {
        let (matrix, bias) = self.part(name, layer, rows.iter().sum(), self.model.width, bias)?;
        let mut first = 0;
        let mut cut = |rows: &usize| -> Option<Part> {
            let range = first..first + rows;
            first += rows;
            let bias = match &bias {
                Some(bias) => Some(bias.inputs(range.clone())?),
                None => None,
            };
            Some((matrix.outputs(range)?, bias))
        };
        let parts = rows.iter().map(&mut cut).collect::<Option<Vec<_>>>();
        // A quantized bias may have blocks that belong to two parts.
        let parts = parts.ok_or_else(|| {
            let problem = "its parts' biases are not whole blocks".to_owned();
            Error::Kernel(volley_kernels::Error::Tensor { name: matrix.name.clone(), problem })
        })?;
        parts.into_iter().map(|part| self.shard.outputs_of(part)).collect()
    }

    /// A matrix and its bias.
    fn part(
        &mut self,
        name: &str,
        layer: usize,
        rows: usize,
        cols: usize,
        bias: Bias,
    ) -> Result<Part, Error> {
        Ok((self.tensor(name, layer, rows, cols)?, self.bias(name, layer, rows, bias)?))
    }

    fn positions(&mut self) -> Result<Option<B::Table>, Error> {
        let (Some(name), Some(rows)) = (self.model.names.positions, self.model.positions) else {
            return Ok(None);
        };
        let table = self.tensor(name, 0, rows, self.model.width)?;
        Ok(Some(self.backend.table(&table)?))
    }

    /// A norm whose vectors are made so.
    fn norm<V>(
        &mut self,
        name: &str,
        layer: usize,
        vector: impl Fn(&Tensor) -> Result<V, Error>,
    ) -> Result<Norm<V>, Error> {
        let (width, epsilon) = (self.model.width, self.model.epsilon);
        let gain = vector(&self.tensor(name, layer, 1, width)?)?;
        match self.model.norm {
            NormKind::Rms => Ok(Norm::Rms { gain, epsilon }),
            NormKind::Layer => {
                let bias = vector(&self.tensor(&name.replace(".weight", ".bias"), layer, 1, width)?)?;
                Ok(Norm::Layer { gain, bias, epsilon })
            }
        }
    }

    fn head_norms(&mut self, names: [&str; 2], layer: usize) -> Result<HeadNorms<B::Vector>, Error> {
        let (dim, epsilon) = (self.model.heads.dim, self.model.epsilon);
        let query = self.backend.vector(&self.tensor(names[0], layer, 1, dim)?)?;
        let key = self.backend.vector(&self.tensor(names[1], layer, 1, dim)?)?;
        Ok(HeadNorms { query, key, epsilon })
    }

    fn tensor(&mut self, name: &str, layer: usize, rows: usize, cols: usize) -> Result<Tensor, Error> {
        let tensor = self.weights.get(&in_layer(name, layer), rows, cols)?;
        (self.progress)(self.done, self.total);
        self.done += tensor.data.len() as u64;
        Ok(tensor)
    }

    fn bias(&mut self, name: &str, layer: usize, rows: usize, bias: Bias) -> Result<Option<Tensor>, Error> {
        let name = in_layer(name, layer).replace(".weight", ".bias");
        match bias {
            Bias::Never => Ok(None),
            Bias::IfPresent => self.weights.find(&name, 1, rows),
            Bias::Always => self.weights.get(&name, 1, rows).map(Some),
        }
    }
}

/// The name of a layer's tensor.
pub(crate) fn in_layer(name: &str, layer: usize) -> String {
    name.replace("{}", &layer.to_string())
}
