//! The decoder: one forward pass over the rows of a step, written once for every backend and family.
//!
//! ```text
//! tokens ─▶ embed ─▶ x ─┬─▶ norm_linear ─▶ qkv ─▶ rope_and_store ─▶ attention ─▶ linear_add ─▶ x   ┐ each
//!                       └─▶ activated_linear ─▶ hidden ────────────────────────▶ linear_add ─▶ x   ┘ layer
//! x[chosen rows] ─▶ logits ─▶ draw
//! ```
//!
//! Families norm what they read of `x`, what they add to it, or both. Some layers may see less than others, and turn
//! otherwise.
//!
//! A decoder is one rank's: where its device is in a tensor-parallel group, it has its shard of heads, of hidden columns
//! and of the output matrix, and `linear_add` and `logits` are where ranks meet.

mod loader;
#[cfg(test)]
mod tests;

use std::ops::Range;

use volley_kernels::{
    BLOCK_TOKENS, Backend, Batch, BlockId, Content, Draw, Drawing, HeadNorms, Norm, Rotary, StepLimits,
    cpu::formats::dequantized,
};

use self::loader::Loader;
pub(crate) use self::loader::{Part, in_layer};
use crate::{Error, format::Weights, model::Description, shard::Shard};

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
    /// Of layers that see less than others.
    local_rope: Option<B::Rope>,
    cache: B::Cache,
    capacity: Capacity,
    step: B::Step,
    buffers: Buffers<B>,
}

struct Layer<B: Backend> {
    attention_norm: Option<Norm<B::Vector>>,
    qkv: B::Linear,
    head_norms: Option<HeadNorms<B::Vector>>,
    attention_output: B::Linear,
    attention_post_norm: Option<Norm<B::Vector>>,
    mlp_norm: Option<Norm<B::Vector>>,
    mlp: B::Linear,
    down: B::Linear,
    mlp_post_norm: Option<Norm<B::Vector>>,
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
        let total = weights.bytes();
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
        let local_rope = model.local.as_ref().map(|local| backend.rope(&local.rope)).transpose()?;
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
            local_rope,
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
    /// after it is about this batch, up to [`draw`](Self::draw).
    pub(crate) fn forward(&mut self, batch: Batch) {
        let Self { backend, model, cache, step, buffers, rope, local_rope, .. } = self;
        let Buffers { x, qkv, attention, hidden, .. } = buffers;
        backend.begin(step, batch);
        backend.pass(step, &mut |step| {
            backend.embed(step, &self.embedding, model.embedding_scale, self.positions.as_ref(), x);
            for (index, layer) in self.layers.iter().enumerate() {
                let heads = model.heads_of(index);
                let rope = local_rope.as_ref().filter(|_| model.local(index).is_some()).unwrap_or(rope);
                let rotary = Rotary { rope, norms: layer.head_norms.as_ref() };
                let [before, after] = [&layer.attention_norm, &layer.attention_post_norm].map(Option::as_ref);
                backend.norm_linear(step, x, before, &layer.qkv, qkv);
                backend.rope_and_store(step, index, heads, rotary, qkv, cache);
                backend.attention(step, index, heads, qkv, cache, attention);
                backend.linear_add(step, attention, &layer.attention_output, after, x);
                let [before, after] = [&layer.mlp_norm, &layer.mlp_post_norm].map(Option::as_ref);
                backend.activated_linear(step, x, before, &layer.mlp, model.activation, hidden);
                backend.linear_add(step, hidden, &layer.down, after, x);
            }
        });
    }

    /// Draws from, or scores, rows of the last forward pass: `draws[i]` belongs to row `rows[i]`. When they are done, so is
    /// the step.
    pub(crate) fn draw(&mut self, rows: &[usize], draws: &[Draw]) -> Result<Drawing, Error> {
        let slice = self.draws_at_once();
        let (first_rows, rows) = rows.split_at(slice.min(rows.len()));
        let (first_draws, draws) = draws.split_at(slice.min(draws.len()));
        let mut drawing = self.draw_slice(first_rows, first_draws)?;
        for (rows, draws) in rows.chunks(slice).zip(draws.chunks(slice)) {
            drawing = drawing.and(self.draw_slice(rows, draws)?);
        }
        Ok(drawing)
    }

    fn draw_slice(&mut self, rows: &[usize], draws: &[Draw]) -> Result<Drawing, Error> {
        self.compute_logits(rows);
        Ok(self.backend.draw(&mut self.step, &mut self.buffers.logits, draws)?)
    }

    /// Draws whose tokens the next step may take while they are under way.
    pub(crate) fn draws_at_once(&self) -> usize {
        self.capacity.logits_rows()
    }

    /// What another rank does while the first draws.
    pub(crate) fn join_logits(&mut self, rows: &[usize]) {
        rows.chunks(self.draws_at_once()).for_each(|rows| self.compute_logits(rows));
    }

    /// Waits for the step's end. After an error the device is of no more use.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        Ok(self.backend.finish(&mut self.step)?)
    }

    fn compute_logits(&mut self, rows: &[usize]) {
        let Self { backend, model, step, final_norm, output, buffers, .. } = self;
        backend.logits(step, rows, &buffers.x, final_norm, output, &mut buffers.logits);
        if let Some(cap) = model.softcap {
            backend.cap_logits(step, cap, rows.len(), &mut buffers.logits);
        }
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
        let slice = self.draws_at_once();
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
            local: model.local.as_ref().map(|local| local.window),
            vocab: model.vocab,
        }
    }
}
