//! Model files: GGUF, and the Hugging Face directory (config.json, safetensors, tokenizer files).
//!
//! Weights are memory-mapped; a tensor is a slice of the map. Every count and length is checked against what
//! is left of the file before anything is allocated, so a damaged file gives an error and nothing else.

pub(crate) mod directory;
pub(crate) mod gguf;
pub(crate) mod safetensors;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use volley_kernels::Tensor;

use crate::Error;

/// The largest JSON or template file that is read (a tokenizer.json takes tens of megabytes).
const MAX_TEXT: u64 = 256 << 20;

/// The tensors of a model, by their names in the file.
#[derive(Debug)]
pub(crate) struct Weights {
    /// Named in errors: the GGUF file, or the directory.
    file: PathBuf,
    /// What is there; for a tensor that no operation takes, why.
    tensors: HashMap<String, Result<Tensor, String>>,
}

// === impl Weights ===

impl Weights {
    /// The tensor of that name, which must have this shape.
    pub(crate) fn get(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor, Error> {
        self.find(name, rows, cols)?
            .ok_or_else(|| Error::malformed(&self.file, format!("tensor {name}"), "is missing"))
    }

    /// The tensor of that name, if there is one; it must have this shape.
    pub(crate) fn find(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Tensor>, Error> {
        let place = || format!("tensor {name}");
        match self.tensors.get(name) {
            None => Ok(None),
            Some(Err(problem)) => Err(Error::unsupported(&self.file, place(), problem)),
            Some(Ok(tensor)) if (tensor.rows, tensor.cols) == (rows, cols) => Ok(Some(tensor.clone())),
            Some(Ok(Tensor { rows: r, cols: c, .. })) => {
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

    /// Those that a test made up.
    #[cfg(test)]
    pub(crate) fn of(tensors: Vec<Tensor>) -> Self {
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), Ok(tensor))).collect();
        Self { file: PathBuf::from("made up"), tensors }
    }

    /// Whether there is a tensor of that name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The usable tensors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values().filter_map(|tensor| tensor.as_ref().ok())
    }
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
