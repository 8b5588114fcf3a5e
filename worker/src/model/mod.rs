//! What a model is: its sizes, its rotation, its tensors' names, all as data for the one decoder.
//!
//! ```text
//! family.rs   the families, a row of a table each
//! names.rs    what their files call tensors
//! gguf.rs     a description from GGUF metadata
//! hf.rs       a description from config.json
//! rope.rs     rotation frequencies and their scalings, out of hf_rope.rs or gguf_rope.rs
//! ```

mod family;
mod gguf;
mod gguf_rope;
mod hf;
mod hf_rope;
mod names;
mod rope;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use volley_kernels::{Activation, DType, Heads, Rope};

pub(crate) use self::names::{Mlp, Names, Qkv};
use crate::{
    Error,
    format::{Weights, directory::Directory, gguf::Gguf},
    text::{self, Text},
};

/// Everything that the decoder needs to know about a model beside its weights.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Description {
    /// As model files name it: llama, qwen2, …
    pub(crate) architecture: String,
    pub(crate) layers: usize,
    /// Columns of the residual stream.
    pub(crate) width: usize,
    /// Columns before the down projection.
    pub(crate) hidden: usize,
    /// Of all layers, or of those that [`local`](Self::local) doesn't name.
    pub(crate) heads: Heads,
    /// The layers that see no further back than others.
    pub(crate) local: Option<Local>,
    pub(crate) vocab: usize,
    /// Tokens that a sequence can have.
    pub(crate) context: usize,
    /// Positions that are learned, where they are.
    pub(crate) positions: Option<usize>,
    pub(crate) norm: NormKind,
    pub(crate) epsilon: f32,
    /// Added to gains as the file has them: Gemma's checkpoints leave out a 1.
    pub(crate) gain_offset: f32,
    /// Whether the norms of queries and keys are of all heads together.
    pub(crate) joint_norms: bool,
    /// Multiplies embeddings.
    pub(crate) embedding_scale: f32,
    /// Bounds logits: `cap · tanh(logit / cap)`.
    pub(crate) softcap: Option<f32>,
    pub(crate) rope: Rope,
    pub(crate) activation: Activation,
    pub(crate) qkv_bias: Bias,
    pub(crate) output_bias: Bias,
    pub(crate) mlp_bias: Bias,
    /// Whether the output matrix is the embedding table.
    pub(crate) tied: bool,
    pub(crate) names: &'static Names,
}

/// Layers with a window, among others without, and how they turn.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Local {
    /// Keys that a token sees there, itself included.
    pub(crate) window: usize,
    pub(crate) rope: Rope,
    /// Which they are.
    pub(crate) layers: Vec<bool>,
}

/// Whether a projection has biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    /// It must not: one in the file is not looked at.
    Never,
    /// Those that the file has.
    IfPresent,
    /// It must.
    Always,
}

/// How the residual stream, or what is added to it, is normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// By its root mean square.
    Rms,
    /// By mean and variance, with a bias.
    Layer,
}

/// A model's files, opened and described; the weights are mapped, not loaded.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) description: Description,
    pub(crate) weights: Weights,
    pub(crate) text: Text,
    /// The files that hold the weights.
    pub(crate) files: Vec<PathBuf>,
}

// === impl Description ===

impl Description {
    /// The layer's window and rotation, if it is one of those that have their own.
    pub(crate) fn local(&self, layer: usize) -> Option<&Local> {
        self.local.as_ref().filter(|local| local.layers.get(layer) == Some(&true))
    }

    /// How the layer's attention is laid out.
    pub(crate) fn heads_of(&self, layer: usize) -> Heads {
        match self.local(layer) {
            None => self.heads,
            Some(local) => Heads { window: Some(local.window), ..self.heads },
        }
    }
}

// === impl Model ===

impl Model {
    /// Opens a GGUF file or a Hugging Face directory.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            let mut directory = Directory::open(path)?;
            let text = text::directory::read(&directory)?;
            hf::only_text(&mut directory);
            let description = hf::describe(&directory)?;
            let Directory { shards: files, weights, .. } = directory;
            return Ok(Self { description, weights, text, files });
        }
        let gguf = Gguf::open(path)?;
        let description = gguf::describe(&gguf)?;
        let text = text::gguf::build(&gguf, description.vocab)?;
        Ok(Self { description, weights: gguf.weights, text, files: vec![path.to_owned()] })
    }

    /// Has layers with plain weights made such on their way to a device.
    pub(crate) fn converted(self, to: DType) -> Self {
        Self { weights: self.weights.converted(to), ..self }
    }

    /// About the bytes of the weights on a GPU.
    pub(crate) fn bytes_on_gpu(&self) -> u64 {
        let names = self.description.names;
        let tables = [Some(names.embedding), names.positions, Some(names.output)];
        self.weights.bytes_on_gpu(&tables.into_iter().flatten().collect::<Vec<_>>())
    }

    /// The storage format of most of the weights.
    pub(crate) fn weight_format(&self) -> DType {
        if let Some(format) = self.weights.format() {
            return format;
        }
        let mut bytes: Vec<(DType, usize)> = Vec::new();
        for tensor in self.weights.tensors() {
            match bytes.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype) {
                Some((_, sum)) => *sum += tensor.data.len(),
                None => bytes.push((tensor.dtype, tensor.data.len())),
            }
        }
        bytes.into_iter().max_by_key(|(_, sum)| *sum).map_or(DType::F32, |(dtype, _)| dtype)
    }
}

/// Sizes as a file states them, before they are believed.
struct Sizes {
    layers: u64,
    width: u64,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    vocab: u64,
    context: u64,
}

// === impl Sizes ===

impl Sizes {
    /// Refuses what no model has, so that nothing later multiplies or allocates without bound.
    fn check(&self, file: &Path) -> Result<(), Error> {
        let sizes = [
            ("layers", self.layers, 1 << 12),
            ("embedding length", self.width, 1 << 20),
            ("feed-forward length", self.hidden, 1 << 22),
            ("attention heads", self.heads, 1 << 12),
            ("key/value heads", self.kv_heads, 1 << 12),
            ("head dimension", self.head_dim, 1 << 12),
            ("vocabulary", self.vocab, 1 << 24),
            ("context length", self.context, 1 << 30),
        ];
        for (what, size, max) in sizes {
            if size == 0 || size > max {
                return Err(Error::malformed(file, what, format!("{size}; expected 1 to {max}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem =
                format!("{}; expected a divisor of the {} attention heads", self.kv_heads, self.heads);
            return Err(Error::malformed(file, "key/value heads", problem));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::malformed(
                file,
                "head dimension",
                format!("{}; expected an even one", self.head_dim),
            ));
        }
        Ok(())
    }

    /// Query heads, key/value heads and their scale, with `windows` as the layers have them.
    fn heads(&self, windows: &Windows) -> Heads {
        let all = windows.layers.iter().all(|local| *local);
        Heads {
            heads: self.heads as usize,
            kv_heads: self.kv_heads as usize,
            dim: self.head_dim as usize,
            scale: (self.head_dim as f32).powf(-0.5),
            window: self.window(windows).filter(|_| all),
            softcap: None,
        }
    }

    /// The layers that have a window, where others have none.
    fn local(
        &self,
        windows: &Windows,
        rope: impl FnOnce() -> Result<Rope, Error>,
    ) -> Result<Option<Local>, Error> {
        let mixed = windows.layers.contains(&true) && windows.layers.contains(&false);
        let Some(window) = self.window(windows).filter(|_| mixed) else { return Ok(None) };
        Ok(Some(Local { window, rope: rope()?, layers: windows.layers.clone() }))
    }

    /// One that a sequence can't fill is none.
    fn window(&self, windows: &Windows) -> Option<usize> {
        windows.window.filter(|window| *window > 0 && *window < self.context).map(|window| window as usize)
    }
}

/// A window as a file states it, and which layers have it.
struct Windows {
    window: Option<u64>,
    layers: Vec<bool>,
}

// === impl Windows ===

impl Windows {
    /// In all layers, or in all but every `pattern`th.
    fn every(window: Option<u64>, layers: u64, pattern: Option<u64>) -> Self {
        let local = |layer: u64| pattern.is_none_or(|pattern| !(layer + 1).is_multiple_of(pattern));
        Self { window, layers: (0..layers).map(local).collect() }
    }
}
