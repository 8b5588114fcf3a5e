//! The decoder: one forward pass over the rows of a step, written once for every backend and family.
//!
//! ```text
//! tokens ─▶ embed ─▶ x ─┬─▶ norm_linear ─▶ qkv ─▶ rope_and_store ─▶ attention ─▶ linear_add ─▶ x   ┐ each
//!                       └─▶ gated_linear ─▶ hidden ────────────────────────────▶ linear_add ─▶ x   ┘ layer
//! x[chosen rows] ─▶ logits ─▶ draw
//! ```

#[cfg(test)]
mod tests;

use std::ops::Range;

use volley_kernels::{Backend, Batch, BlockId, Draw, Drawn, Norm, Tensor, cpu::formats::dequantized};

use crate::{
    Error,
    format::Weights,
    model::{Bias, Description},
};

/// Rows of logits held at once: bounds the largest buffer (vocabulary × 4 bytes a row). Each further slice
/// reads the output matrix again.
const LOGITS_ROWS: usize = 64;

/// A loaded model with the buffers of a step.
pub(crate) struct Decoder<B: Backend> {
    backend: B,
    model: Description,
    embedding: B::Table,
    layers: Vec<Layer<B>>,
    final_norm: Norm<B::Vector>,
    /// The final norm's gains, on this side: embeddings are few, and normed here.
    final_gain: Vec<f32>,
    output: B::Linear,
    cache: B::Cache,
    capacity: Capacity,
    buffers: Buffers<B>,
}

struct Layer<B: Backend> {
    attention_norm: Norm<B::Vector>,
    qkv: B::Linear,
    attention_output: B::Linear,
    mlp_norm: Norm<B::Vector>,
    gated: B::Linear,
    down: B::Linear,
}

/// Activations of a step, `max_batch_tokens` rows each; logits [`LOGITS_ROWS`].
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
    /// KV blocks.
    pub(crate) blocks: usize,
}

/// Takes tensors out of the file by their role, and reports how far loading is.
struct Loader<'a, B> {
    backend: &'a B,
    model: &'a Description,
    weights: &'a Weights,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

// === impl Decoder ===

impl<B: Backend> Decoder<B> {
    /// Loads the weights. `progress` is told the bytes done and in total.
    pub(crate) fn load(
        backend: B,
        model: Description,
        weights: &Weights,
        capacity: Capacity,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let total = weights.tensors().map(|tensor| tensor.data.len() as u64).sum();
        let mut loader = Loader { backend: &backend, model: &model, weights, progress, done: 0, total };
        let names = model.names;
        let embedding = loader.tensor(names.embedding, 0, model.vocab, model.width)?;
        let table = backend.table(&embedding)?;
        let layers = (0..model.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
        let final_norm = loader.norm(names.final_norm, 0)?;
        let final_gain = dequantized(&weights.get(names.final_norm, 1, model.width)?)?;
        let output = match model.tied {
            true => embedding,
            false => loader.tensor(names.output, 0, model.vocab, model.width)?,
        };
        let output = backend.linear(&[(output, None)])?;
        (loader.progress)(total, total);

        let heads = model.heads;
        let (query, key) = (heads.heads * heads.dim, heads.kv_heads * heads.dim);
        let buffers = Buffers {
            x: backend.buffer(capacity.rows, model.width)?,
            qkv: backend.buffer(capacity.rows, query + 2 * key)?,
            attention: backend.buffer(capacity.rows, query)?,
            hidden: backend.buffer(capacity.rows, model.hidden)?,
            logits: backend.buffer(capacity.logits_rows(), model.vocab)?,
        };
        let cache = backend.cache(model.layers, heads, capacity.blocks)?;
        let embedding = table;
        Ok(Self {
            backend,
            model,
            embedding,
            layers,
            final_norm,
            final_gain,
            output,
            cache,
            capacity,
            buffers,
        })
    }

    /// The most tokens of a sequence.
    pub(crate) fn context(&self) -> usize {
        self.model.context
    }

    /// Copies KV blocks.
    pub(crate) fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) {
        self.backend.copy_blocks(&mut self.cache, copies);
    }

    /// Runs all layers over the rows of `batch`: at most [`Capacity::rows`], with blocks for all of them.
    pub(crate) fn forward(&mut self, batch: &Batch) {
        let Self { backend, model, cache, buffers, .. } = self;
        let Buffers { x, qkv, attention, hidden, .. } = buffers;
        let (rows, heads) = (batch.tokens.len(), model.heads);
        backend.embed(batch, &self.embedding, x);
        for (index, layer) in self.layers.iter().enumerate() {
            backend.norm_linear(rows, x, &layer.attention_norm, &layer.qkv, qkv);
            backend.rope_and_store(batch, index, heads, &model.rope, qkv, cache);
            backend.attention(batch, index, heads, qkv, cache, attention);
            backend.linear_add(rows, attention, &layer.attention_output, x);
            backend.gated_linear(rows, x, &layer.mlp_norm, &layer.gated, model.activation, hidden);
            backend.linear_add(rows, hidden, &layer.down, x);
        }
    }

    /// Draws from, or scores, rows of the last forward pass: `draws[i]` belongs to row `rows[i]`.
    pub(crate) fn draw(&mut self, rows: &[usize], draws: &[Draw]) -> Vec<Drawn> {
        let mut drawn = Vec::with_capacity(draws.len());
        let slice = self.capacity.logits_rows();
        for (rows, draws) in rows.chunks(slice).zip(draws.chunks(slice)) {
            let Buffers { x, logits, .. } = &mut self.buffers;
            self.backend.logits(rows, x, &self.final_norm, &self.output, logits);
            drawn.extend(self.backend.draw(logits, draws));
        }
        drawn
    }
}

impl<B: Backend> Decoder<B> {
    /// The final hidden states, normed, of rows of the last forward pass: `[rows, width]` for each range.
    pub(crate) fn hidden(&self, ranges: Vec<Range<usize>>) -> Vec<Vec<f32>> {
        let width = self.model.width;
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let x = self.backend.read(&self.buffers.x, end);
        let rows = |range: Range<usize>| x[range.start * width..range.end * width].chunks_exact(width);
        ranges.into_iter().map(|range| rows(range).flat_map(|row| self.normed(row)).collect()).collect()
    }

    /// The final norm of a row. One addition after the other in f64: the same bits on every machine.
    fn normed<'a>(&'a self, row: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let scale = 1.0 / (squares / row.len() as f64 + f64::from(self.model.epsilon)).sqrt();
        row.iter().zip(&self.final_gain).map(move |(x, gain)| (f64::from(*x) * scale) as f32 * gain)
    }
}

#[cfg(test)]
impl<B: Backend> Decoder<B> {
    /// Logits of rows of the last forward pass.
    fn logits(&mut self, rows: &[usize]) -> Vec<f32> {
        let Buffers { x, logits, .. } = &mut self.buffers;
        self.backend.logits(rows, x, &self.final_norm, &self.output, logits);
        self.backend.read(logits, rows.len())
    }
}

// === impl Capacity ===

impl Capacity {
    fn logits_rows(self) -> usize {
        LOGITS_ROWS.min(self.rows)
    }
}

// === impl Loader ===

impl<B: Backend> Loader<'_, B> {
    fn layer(&mut self, layer: usize) -> Result<Layer<B>, Error> {
        let (model, names) = (self.model, self.model.names);
        let (query, key) = (model.heads.heads * model.heads.dim, model.heads.kv_heads * model.heads.dim);
        let mut part = |name, rows, cols, bias| -> Result<_, Error> {
            Ok((self.tensor(name, layer, rows, cols)?, self.bias(name, layer, rows, bias)?))
        };
        let qkv = [
            part(names.query, query, model.width, model.qkv_bias)?,
            part(names.key, key, model.width, model.qkv_bias)?,
            part(names.value, key, model.width, model.qkv_bias)?,
        ];
        let attention_output = part(names.attention_output, model.width, query, model.output_bias)?;
        let (gate, _) = part(names.gate, model.hidden, model.width, Bias::Never)?;
        let (up, _) = part(names.up, model.hidden, model.width, Bias::Never)?;
        let down = part(names.down, model.width, model.hidden, Bias::Never)?;
        Ok(Layer {
            attention_norm: self.norm(names.attention_norm, layer)?,
            qkv: self.backend.linear(&qkv)?,
            attention_output: self.backend.linear(&[attention_output])?,
            mlp_norm: self.norm(names.mlp_norm, layer)?,
            gated: self.backend.gated(&gate, &up)?,
            down: self.backend.linear(&[down])?,
        })
    }

    fn norm(&mut self, name: &str, layer: usize) -> Result<Norm<B::Vector>, Error> {
        let gain = self.tensor(name, layer, 1, self.model.width)?;
        Ok(Norm { gain: self.backend.vector(&gain)?, epsilon: self.model.epsilon })
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

fn in_layer(name: &str, layer: usize) -> String {
    name.replace("{}", &layer.to_string())
}
