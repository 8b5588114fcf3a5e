//! Model files: GGUF, and the Hugging Face directory (config.json, safetensors, tokenizer files).
//!
//! Weights are memory-mapped; a tensor is a slice of the map. Every count and length is checked against what
//! is left of the file before anything is allocated, so a damaged file gives an error and nothing else.

pub(crate) mod directory;
pub(crate) mod gguf;
mod quantized;
pub(crate) mod safetensors;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use volley_kernels::{DType, Tensor};

use self::quantized::Scheme;
use crate::Error;

/// The largest JSON or template file that is read (a tokenizer.json takes tens of megabytes).
const MAX_TEXT: u64 = 256 << 20;

/// The tensors of a model, by their names in the file.
#[derive(Debug)]
pub(crate) struct Weights {
    /// Named in errors: the GGUF file, or the directory.
    file: PathBuf,
    tensors: HashMap<String, Entry>,
    /// How layers are quantized, where they are.
    scheme: Option<Scheme>,
    /// What plain layers are made on their way to a device, if that was asked for.
    conversion: Option<DType>,
}

/// What is stored under a name.
#[derive(Debug)]
pub(crate) enum Entry {
    /// What operations take.
    Tensor(Tensor),
    /// A part of something quantized.
    Raw(Raw),
    /// Nothing takes it, and why.
    Unusable(String),
}

/// Numbers of a type that only quantized layers have.
#[derive(Debug)]
pub(crate) struct Raw {
    /// As safetensors calls it.
    dtype: String,
    shape: Vec<usize>,
    data: Bytes,
}

// === impl Weights ===

impl Weights {
    fn new(file: PathBuf, tensors: HashMap<String, Entry>) -> Self {
        Self { file, tensors, scheme: None, conversion: None }
    }

    /// The tensor of that name, which must have this shape.
    pub(crate) fn get(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor, Error> {
        self.find(name, rows, cols)?
            .ok_or_else(|| Error::malformed(&self.file, format!("tensor {name}"), "is missing"))
    }

    /// The tensor of that name, if there is one; it must have this shape.
    pub(crate) fn find(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Tensor>, Error> {
        let place = || format!("tensor {name}");
        let unsupported = |problem: &str| Err(Error::unsupported(&self.file, place(), problem));
        if let Some((scheme, layer)) = self.quantized(name) {
            return scheme.matrix(self, layer, (rows, cols));
        }
        match self.tensors.get(name) {
            None => Ok(None),
            Some(Entry::Unusable(problem)) => unsupported(problem),
            Some(Entry::Raw(raw)) => {
                unsupported(&format!("stored as {}; supported: F32 F16 BF16", raw.dtype))
            }
            Some(Entry::Tensor(tensor)) if (tensor.rows, tensor.cols) == (rows, cols) => {
                Ok(Some(tensor.clone()))
            }
            Some(Entry::Tensor(Tensor { rows: r, cols: c, .. })) => {
                let problem = format!("has {r} rows of {c} numbers, expected {rows} of {cols}");
                Err(Error::malformed(&self.file, place(), problem))
            }
        }
    }

    /// Keeps the tensors whose names begin so, under the rest of their names.
    pub(crate) fn keep(&mut self, prefix: &str) {
        let all = std::mem::take(&mut self.tensors).into_iter();
        let stripped = |(name, tensor): (String, _)| Some((name.strip_prefix(prefix)?.to_owned(), tensor));
        self.tensors = all.filter_map(stripped).collect();
    }

    /// How many inputs of such a tensor can't be parted, if there is one.
    pub(crate) fn inseparable(&self, name: &str, rows: usize, cols: usize) -> Result<Option<usize>, Error> {
        match self.quantized(name) {
            // The codes of some would be put in order for this.
            Some((scheme, layer)) => {
                let scales = scheme.scales(self, layer, (rows, cols))?;
                Ok(scales.map(|scales| if scales.group < cols { scales.group } else { 2 }))
            }
            None => Ok(self.find(name, rows, cols)?.map(|tensor| tensor.inseparable())),
        }
    }

    /// The layer that a matrix is of, if it is quantized.
    fn quantized<'a>(&self, name: &'a str) -> Option<(&Scheme, &'a str)> {
        let (scheme, layer) = (self.scheme.as_ref()?, name.strip_suffix(".weight")?);
        scheme.has(self, layer).then_some((scheme, layer))
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    fn raw(&self, name: &str) -> Option<&Raw> {
        match self.tensors.get(name) {
            Some(Entry::Raw(raw)) => Some(raw),
            _ => None,
        }
    }

    /// Those that a test made up.
    #[cfg(test)]
    pub(crate) fn of(tensors: Vec<Tensor>) -> Self {
        let tensors =
            tensors.into_iter().map(|tensor| (tensor.name.clone(), Entry::Tensor(tensor))).collect();
        Self::new(PathBuf::from("made up"), tensors)
    }

    /// Whether there is a tensor of that name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.quantized(name).is_some()
    }

    /// The tensors that operations take as they are.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values().filter_map(|entry| match entry {
            Entry::Tensor(tensor) => Some(tensor),
            _ => None,
        })
    }

    /// Has layers with plain weights made such on their way to a device.
    pub(crate) fn converted(self, to: DType) -> Self {
        Self { conversion: Some(to), ..self }
    }

    /// A layer's weights as they go to a device.
    pub(crate) fn made(&self, tensor: Tensor) -> Result<Tensor, Error> {
        match self.conversion {
            Some(dtype) if tensor.is_plain() || in_blocks(&tensor) => Ok(tensor.quantized(dtype)?),
            _ => Ok(tensor),
        }
    }

    /// The storage format of most of the layers' weights on a device, where it isn't that of the tensors.
    pub(crate) fn format(&self) -> Option<DType> {
        let stored = self.scheme.as_ref();
        let makes = stored.map_or_else(|| self.tensors().all(Tensor::is_plain), Scheme::unpacked_on_gpu);
        self.conversion.filter(|_| makes).or(stored.map(|scheme| scheme.format))
    }

    /// What plain layers are made.
    pub(crate) fn conversion(&self) -> Option<DType> {
        self.conversion
    }

    /// About the bytes that all takes on a GPU, where `tables` are of 16 bits in any case.
    pub(crate) fn bytes_on_gpu(&self, tables: &[&str]) -> u64 {
        let of = |tensor: &Tensor| {
            let numbers = (tensor.rows * tensor.cols) as u64;
            match tensor.dtype {
                _ if tables.contains(&tensor.name.as_str()) || tensor.rows == 1 => 2 * numbers,
                dtype if dtype.is_plain() => {
                    if self.conversion.is_some() {
                        numbers
                    } else {
                        2 * numbers
                    }
                }
                // With a scale and an offset for each 32.
                DType::Q4_0 | DType::Q4_1 | DType::Q4K => numbers / 2 + numbers / 8,
                _ => numbers + numbers / 8,
            }
        };
        let unpacked = self.conversion.is_none() && self.scheme.as_ref().is_some_and(Scheme::unpacked_on_gpu);
        self.tensors().map(of).sum::<u64>() + self.raw_bytes() * if unpacked { 2 } else { 1 }
    }

    /// Bytes of all that can be of use.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.data.len() as u64).sum::<u64>() + self.raw_bytes()
    }

    /// Of these, what is part of quantized layers.
    fn raw_bytes(&self) -> u64 {
        let bytes = |entry: &Entry| match entry {
            Entry::Raw(raw) => raw.data.len() as u64,
            _ => 0,
        };
        self.scheme.as_ref().map_or(0, |_| self.tensors.values().map(bytes).sum())
    }
}

/// Whether a matrix is of 8-bit floats with several scales a row: what no kernel of a GPU reads.
fn in_blocks(tensor: &Tensor) -> bool {
    tensor.dtype == DType::E4m3 && tensor.inseparable() > 1
}

/// Maps a file into memory, read-only.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> Result<Bytes, Error> {
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    let size = file.metadata().map_err(|e| Error::read(path, e))?.len();
    if size == 0 {
        return Ok(Bytes::new()); // an empty map is an error on some systems
    }
    // SAFETY: the map is read-only and private. Its bytes stay what they are as long as nobody rewrites or
    // truncates the file in place; downloads never do (they rename a finished file), and a user who does it
    // to a model in use gets what any program with mapped weights gives.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::read(path, e))?;
    Ok(Bytes::from_owner(map))
}

/// Reads a text file of bounded size; `None` if there is none.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, Error> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::read(path, e)),
    };
    if size > MAX_TEXT {
        return Err(Error::malformed(path, "size", format!("{size} bytes, expected at most {MAX_TEXT}")));
    }
    std::fs::read_to_string(path).map(Some).map_err(|e| Error::read(path, e))
}
