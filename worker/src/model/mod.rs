//! What a model is: its sizes, its rotation, its tensors' names, all as data for the one decoder.
//!
//! ```text
//! family.rs   the families, a row of a table each
//! names.rs    what their files call tensors
//! gguf.rs     a description from GGUF metadata
//! hf.rs       a description from config.json
//! rope.rs     rotation frequencies and their scalings
//! ```

mod family;
mod gguf;
mod hf;
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
    pub(crate) heads: Heads,
    pub(crate) vocab: usize,
    /// Tokens that a sequence can have.
    pub(crate) context: usize,
    /// Positions that are learned, where they are.
    pub(crate) positions: Option<usize>,
    pub(crate) norm: NormKind,
    pub(crate) epsilon: f32,
    pub(crate) rope: Rope,
    pub(crate) activation: Activation,
    pub(crate) qkv_bias: Bias,
    pub(crate) output_bias: Bias,
    pub(crate) mlp_bias: Bias,
    /// Whether the output matrix is the embedding table.
    pub(crate) tied: bool,
    pub(crate) names: &'static Names,
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

/// How the residual stream is normed before each part of a layer, and at the end.
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

// === impl Model ===

impl Model {
    /// Opens a GGUF file or a Hugging Face directory.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            let directory = Directory::open(path)?;
            let description = hf::describe(&directory)?;
            let text = text::directory::read(&directory)?;
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

    /// Query heads, key/value heads, their scale and what they see.
    fn heads(&self, window: Option<u64>) -> Heads {
        Heads {
            heads: self.heads as usize,
            kv_heads: self.kv_heads as usize,
            dim: self.head_dim as usize,
            scale: (self.head_dim as f32).powf(-0.5),
            window: window.filter(|window| *window < self.context).map(|window| window as usize),
        }
    }
}

/// Where only some layers have a window: sequences stay within it, where it makes no difference.
fn cap_to_window(context: u64, window: Option<u64>) -> u64 {
    match window {
        Some(window) if window < context => {
            tracing::warn!(
                context,
                window,
                "some of the model's layers see less than its context; sequences are kept within their window"
            );
            window
        }
        _ => context,
    }
}
