//! The interface between the decoder and a device: coarse, fused operations over a paged KV cache.
//!
//! A step's activations are rows: the tokens of all scheduled sequences, one after another, whatever mix of
//! prompts and decodes. A row's result depends on its own tokens only: never on the rows beside it, on how a
//! prompt was cut into steps, on the number of threads, or on which blocks hold its past. (A backend for which that
//! is too dear says so by having no [`numerics`](Backend::numerics).)

use std::sync::Arc;

use crate::{Drawing, Error, Mirostat, Peers, Penalties, Tensor};

/// Tokens per KV block, on every backend.
pub const BLOCK_TOKENS: usize = 16;

/// Index of a KV block in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// The rows of one step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// The sequences, in row order: together they cover all rows.
    pub sequences: Vec<Sequence>,
    /// Rows whose token the step before is still drawing, and the number of the draw; `tokens` may have anything there.
    /// Only where that step's [`Drawing`] is under way.
    pub drawn: Vec<(usize, usize)>,
}

/// The consecutive rows of one sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// First row in the batch.
    pub first_row: usize,
    /// How many.
    pub rows: usize,
    /// Absolute position of the first row: so many tokens of the sequence are in the cache already.
    pub position: usize,
    /// Its block table: covers `position + rows` tokens at least.
    pub blocks: Vec<BlockId>,
}

/// How a layer's attention is laid out; layers may differ in their windows. A QKV row is `[heads × dim | kv_heads × dim | kv_heads × dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub dim: usize,
    /// Multiplies scores before the softmax (usually `dim^-1/2`).
    pub scale: f32,
    /// Keys that a token sees, itself included; none: all before it.
    pub window: Option<usize>,
    /// Bounds scores before the softmax: `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position of each rotated pair (scaling applied): `rotated dims / 2` of them.
    pub frequencies: Vec<f32>,
    /// Which dimensions make a pair.
    pub pairing: RopePairing,
    /// Multiplies what turns (usually 1).
    pub magnitude: f32,
}

/// Which dimensions rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// `(2i, 2i + 1)`: GGUF's `llama` files.
    Adjacent,
    /// `(i, i + n/2)`: Hugging Face checkpoints, and GGUF's `qwen2`.
    Halves,
}

/// The feed-forward layer's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// GELU, by the error function.
    GeluErf,
}

/// A norm of rows.
#[derive(Clone, Debug)]
pub enum Norm<V> {
    /// `x / √(mean square + ε) · gain`.
    Rms {
        /// Gains, one per column.
        gain: V,
        /// Added to the mean square.
        epsilon: f32,
    },
    /// `(x − mean) / √(variance + ε) · gain + bias`.
    Layer {
        /// Gains, one per column.
        gain: V,
        /// Biases, one per column.
        bias: V,
        /// Added to the variance.
        epsilon: f32,
    },
}

/// RMS norms of queries and keys, before they turn: of each head by itself, or of all heads of a row together.
#[derive(Clone, Debug)]
pub struct HeadNorms<V> {
    /// Gains of the queries: `[dim]` of each head, or `[heads × dim]` of all.
    pub query: V,
    /// Gains of the keys: `[dim]` of each head, or `[kv_heads × dim]` of all.
    pub key: V,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What is done to queries and keys before they meet: the norms of their heads, if any, then the rotation.
#[derive(Debug)]
pub struct Rotary<'a, R, V> {
    /// The rotation; one without frequencies turns nothing.
    pub rope: &'a R,
    /// The norms.
    pub norms: Option<&'a HeadNorms<V>>,
}

/// One draw, or one token to score, from a row of logits. The default is greedy, with nothing to report.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// 0 = greedy: the highest logit, the lowest token among equals.
    pub temperature: f32,
    /// Smallest set of tokens whose probabilities reach this; 1 = off.
    pub top_p: f32,
    /// Only so many best tokens; 0 = off.
    pub top_k: u32,
    /// Only tokens at least this probable relative to the best; 0 = off.
    pub min_p: f32,
    /// Smallest set of tokens nearest to the expected surprise whose probabilities reach this; 1 = off.
    pub typical_p: f32,
    /// In place of the filters above.
    pub mirostat: Option<Mirostat>,
    /// For tokens that were there before.
    pub penalties: Option<Penalties>,
    /// Added to logits, finite: token and bias, each token once.
    pub bias: Arc<[(u32, f32)]>,
    /// Keys the generator, with `choice` and `position`.
    pub seed: u64,
    /// The choice's index.
    pub choice: u32,
    /// Absolute position of the token that is drawn.
    pub position: u32,
    /// Tokens that can't be drawn.
    pub banned: Vec<u32>,
    /// The only tokens that can be drawn, a bit each, lowest first; those beyond its end can't. None: all.
    pub allowed: Option<Vec<u32>>,
    /// Score this token instead of drawing one.
    pub given: Option<u32>,
    /// Report log-probabilities, with this many alternatives.
    pub logprobs: Option<u32>,
}

/// What a [`Draw`] gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    /// The token drawn, or given.
    pub token: u32,
    /// [`Mirostat::bound`] for the next draw, if this one had mirostat.
    pub mirostat: Option<f32>,
    /// Natural log-probabilities of the raw logits, if asked for.
    pub logprobs: Option<Logprobs>,
}

/// The log-probability of a token and the best alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token drawn or given.
    pub logprob: f32,
    /// Best first; equal ones by token.
    pub top: Vec<(u32, f32)>,
}

/// The most that a step can have, and the sizes of its model: what a device allocates once, at the start.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Rows.
    pub rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// Blocks of a sequence.
    pub blocks: usize,
    /// Rows of logits at a time.
    pub draws: usize,
    /// Columns of the residual stream.
    pub width: usize,
    /// Columns between the gated and the down projection.
    pub hidden: usize,
    /// Of every layer, or of those that [`local`](Self::local) is not about.
    pub heads: Heads,
    /// The window of the layers that have another.
    pub local: Option<usize>,
    /// Columns of the logits.
    pub vocab: usize,
}

/// What a buffer is for: a device may hold activations in less than 32 bits, and sums apart until they are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The residual stream, which [`linear_add`](Backend::linear_add) adds to.
    Residual,
    /// What one operation leaves for the next.
    Activations,
    /// Logits: f32 everywhere.
    Logits,
}

/// A device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that nobody has.
    pub free: usize,
    /// All bytes.
    pub total: usize,
}

/// A device that runs steps. Shapes are `[rows, columns]`; what numbers are between operations is the device's own.
///
/// A device may be a rank of a group ([`peers`](Self::peers)). Its weights are then a rank's part: of heads and of what is
/// gated, and of the output matrix. All ranks are asked for the same operations in the same order, and hear at once of
/// one that fails.
///
/// An operation may only start its work. What goes wrong in it shows at the next [`draw`](Self::draw), when its
/// [`Drawing`] is waited for, at [`read`](Self::read) or [`finish`](Self::finish), and operations until then do nothing; after that the backend is
/// of no more use.
pub trait Backend: Send + Sync + 'static {
    /// Stacked weight matrices in the device's own layout.
    type Linear: Send + Sync;
    /// An embedding table.
    type Table: Send + Sync;
    /// A vector of numbers (norm gains and biases).
    type Vector: Send + Sync;
    /// A rotation's frequencies.
    type Rope: Send + Sync;
    /// A matrix of activations, allocated once for the largest step.
    type Buffer: Send;
    /// The paged keys and values of a group of layers.
    type Cache: Send;
    /// The rows of a step as the device wants them, and what it computes with; allocated once for the largest.
    type Step: Send;

    /// Packs matrices of equal `cols`, stacked by outputs, each with an optional bias (`rows` numbers).
    /// May drop pages of the source from memory once packed.
    fn linear(&self, parts: &[(Tensor, Option<Tensor>)]) -> Result<Self::Linear, Error>;
    /// As [`linear`](Self::linear), for the gate and up projections of [`activated_linear`](Self::activated_linear).
    fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Self::Linear, Error>;
    /// Takes an embedding table.
    fn table(&self, tensor: &Tensor) -> Result<Self::Table, Error>;
    /// Takes a vector.
    fn vector(&self, tensor: &Tensor) -> Result<Self::Vector, Error>;
    /// Takes a rotation.
    fn rope(&self, rope: &Rope) -> Result<Self::Rope, Error>;
    /// Allocates a `[rows, cols]` buffer.
    fn buffer(&self, rows: usize, cols: usize, content: Content) -> Result<Self::Buffer, Error>;
    /// Allocates what steps within the limits need besides.
    fn step(&self, limits: &StepLimits) -> Result<Self::Step, Error>;
    /// Reserves `blocks` KV blocks for `layers` layers; memory is touched when a block is first written.
    fn cache(&self, layers: usize, heads: Heads, blocks: usize) -> Result<Self::Cache, Error>;
    /// Bytes that a block of such a cache takes.
    fn block_bytes(&self, layers: usize, heads: Heads) -> usize;
    /// The device's memory, if it has its own.
    fn memory(&self) -> Result<Option<DeviceMemory>, Error>;

    /// Lays out the rows that the operations from here on are about.
    fn begin(&self, step: &mut Self::Step, batch: Batch);
    /// Does `pass`, or what it did in a step of the same kind before: it must ask for the same operations on the same
    /// buffers in every step, whatever the rows.
    fn pass(&self, step: &mut Self::Step, pass: &mut dyn FnMut(&mut Self::Step)) {
        pass(step);
    }
    /// `x[row] = scale · table[tokens[row]]`, plus `positions[position of the row]` where positions are learned.
    fn embed(
        &self,
        step: &mut Self::Step,
        table: &Self::Table,
        scale: f32,
        positions: Option<&Self::Table>,
        x: &mut Self::Buffer,
    );
    /// `out = norm(x) · Wᵀ + b`; without a norm, of `x` itself.
    fn norm_linear(
        &self,
        step: &mut Self::Step,
        x: &mut Self::Buffer,
        norm: Option<&Norm<Self::Vector>>,
        w: &Self::Linear,
        out: &mut Self::Buffer,
    );
    /// Norms and rotates the queries (in place) and keys of `qkv`, and writes keys and values to `layer` of the cache.
    fn rope_and_store(
        &self,
        step: &mut Self::Step,
        layer: usize,
        heads: Heads,
        rotary: Rotary<'_, Self::Rope, Self::Vector>,
        qkv: &mut Self::Buffer,
        cache: &mut Self::Cache,
    );
    /// Causal attention of the queries in `qkv` over `layer` of the cache; `out` is `[rows, heads × dim]`.
    fn attention(
        &self,
        step: &mut Self::Step,
        layer: usize,
        heads: Heads,
        qkv: &Self::Buffer,
        cache: &Self::Cache,
        out: &mut Self::Buffer,
    );
    /// `x += a · Wᵀ + b`; in a group, the sum of that over all ranks, which has the same bits on each. With a norm, what
    /// is added is normed.
    fn linear_add(
        &self,
        step: &mut Self::Step,
        a: &Self::Buffer,
        w: &Self::Linear,
        norm: Option<&Norm<Self::Vector>>,
        x: &mut Self::Buffer,
    );
    /// `out = activation(norm(x) · Gᵀ) ⊙ (norm(x) · Uᵀ)` for `w` from [`gated`](Self::gated), and
    /// `out = activation(norm(x) · Wᵀ + b)` for `w` from [`linear`](Self::linear); without a norm, of `x` itself.
    fn activated_linear(
        &self,
        step: &mut Self::Step,
        x: &mut Self::Buffer,
        norm: Option<&Norm<Self::Vector>>,
        w: &Self::Linear,
        activation: Activation,
        out: &mut Self::Buffer,
    );
    /// `out[i] = norm(x[rows[i]]) · Wᵀ`: logits of the chosen rows. In a group the first rank's `out` has room for the
    /// columns of all ranks, and gets them.
    fn logits(
        &self,
        step: &mut Self::Step,
        rows: &[usize],
        x: &Self::Buffer,
        norm: &Norm<Self::Vector>,
        w: &Self::Linear,
        out: &mut Self::Buffer,
    );
    /// Bounds the first `rows` rows of logits: `cap · tanh(logit / cap)`.
    fn cap_logits(&self, step: &mut Self::Step, cap: f32, rows: usize, logits: &mut Self::Buffer);
    /// Draws from row `i` of `logits` as `draws[i]` says, and may leave other logits behind. When the [`Drawing`] is done,
    /// so is all that was asked before; where it is under way, the next step may begin meanwhile, and the one after that
    /// once it is done.
    fn draw(
        &self,
        step: &mut Self::Step,
        logits: &mut Self::Buffer,
        draws: &[Draw],
    ) -> Result<Drawing, Error>;
    /// Waits until all that was asked is done.
    fn finish(&self, step: &mut Self::Step) -> Result<(), Error>;
    /// Copies whole blocks, in every layer, one after the other.
    fn copy_blocks(&self, cache: &mut Self::Cache, copies: &[(BlockId, BlockId)]);
    /// The first `rows` rows of a buffer, for tests and pooling.
    fn read(&self, buffer: &Self::Buffer, rows: usize) -> Result<Vec<f32>, Error>;
    /// The group that it is a rank of, if it is.
    fn peers(&self) -> Option<&Peers>;
    /// Names everything that decides the bits of a result (instruction sets that agree share a name); none where a
    /// row's bits depend on more than its own tokens.
    fn numerics(&self) -> Option<String>;
}

// === impl Batch ===

impl Batch {
    /// Rows whose tokens are known.
    pub fn new(tokens: Vec<u32>, sequences: Vec<Sequence>) -> Self {
        Self { tokens, sequences, drawn: Vec::new() }
    }

    /// The absolute position of each row.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().flat_map(|sequence| sequence.position..sequence.position + sequence.rows)
    }
}

// === impl Rotary ===

impl<R, V> Clone for Rotary<'_, R, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R, V> Copy for Rotary<'_, R, V> {}

// === impl Draw ===

impl Draw {
    /// Whether tokens are ranked by how surprising they are, for which a GPU's logits are brought here.
    pub fn is_by_surprise(&self) -> bool {
        let typical = self.typical_p < 1.0 && self.temperature > 0.0;
        self.given.is_none() && (self.mirostat.is_some() || typical)
    }
}

impl Default for Draw {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            mirostat: None,
            penalties: None,
            bias: Arc::default(),
            seed: 0,
            choice: 0,
            position: 0,
            banned: Vec::new(),
            allowed: None,
            given: None,
            logprobs: None,
        }
    }
}
