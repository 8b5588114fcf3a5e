//! The GGUF reader, versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | pairs u64
//! pairs:    key string | type u32 | value                    (string = length u64 + UTF-8)
//! tensors:  name string | dimensions u32 | sizes u64… | type u32 | offset u64
//! padding to general.alignment, then the tensors' data, each at its offset from here
//! ```
//!
//! Sizes are listed fastest first: `[cols, rows]`. Arrays stay undecoded in the map until they are asked for.

mod reader;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use self::reader::{Reader, little_endian, signed};
use super::{Entry, Weights, map};
use crate::Error;

const DEFAULT_ALIGNMENT: u64 = 32;

/// An opened GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) file: PathBuf,
    metadata: HashMap<String, Value>,
    pub(crate) weights: Weights,
}

/// A metadata value.
#[derive(Debug, PartialEq)]
enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    String(String),
    Array { element: Element, count: usize, data: Bytes },
}

/// The type of an array's elements, or of a single value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Element {
    Unsigned(usize), // bytes
    Signed(usize),
    F32,
    F64,
    Bool,
    String,
}

// === impl Gguf ===

impl Gguf {
    /// Maps and reads a file.
    pub(crate) fn open(file: &Path) -> Result<Self, Error> {
        if let Some(name) = file.file_name().and_then(|name| name.to_str())
            && is_split(name)
        {
            let problem =
                "is one part of a split model; expected one file (llama-gguf-split --merge joins them)";
            return Err(Error::unsupported(file, "file name", problem));
        }
        Self::parse(file, &map(file)?)
    }

    /// Reads a file's bytes.
    pub(crate) fn parse(file: &Path, data: &Bytes) -> Result<Self, Error> {
        let mut reader = Reader { file, data, at: 0 };
        let (tensors, pairs) = reader.header()?;
        let metadata = reader.metadata(pairs)?;
        let infos = reader.tensor_infos(tensors)?;

        let mut gguf =
            Self { file: file.to_owned(), metadata, weights: Weights::new(file.to_owned(), HashMap::new()) };
        if let Some(parts) = gguf.u64("split.count")?
            && parts > 1
        {
            let problem = format!("{parts} parts; expected one file (llama-gguf-split --merge joins them)");
            return Err(Error::unsupported(file, "key split.count", problem));
        }
        let alignment = gguf.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
            let problem = format!("{alignment}; expected a power of two from 8 to 2^20");
            return Err(Error::malformed(file, "key general.alignment", problem));
        }
        let start = (reader.at as u64).next_multiple_of(alignment);
        for info in infos {
            let (name, tensor) = info.locate(file, data, start, alignment)?;
            let place = format!("tensor {name}");
            let tensor = tensor.map_or_else(Entry::Unusable, Entry::Tensor);
            if gguf.weights.tensors.insert(name, tensor).is_some() {
                return Err(Error::malformed(file, place, "appears twice"));
            }
        }
        Ok(gguf)
    }

    fn wrong<T>(&self, key: &str, found: &Value, expected: &str) -> Result<T, Error> {
        let problem = format!("found {}, expected {expected}", found.kind());
        Err(Error::malformed(&self.file, format!("key {key}"), problem))
    }

    /// An error about a key that must be there and is not.
    pub(crate) fn missing(&self, key: &str) -> Error {
        Error::malformed(&self.file, format!("key {key}"), "is missing")
    }

    /// A string.
    pub(crate) fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => self.wrong(key, other, "a string"),
        }
    }

    /// An integer that is not negative.
    pub(crate) fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value @ Value::Integer(i)) => match u64::try_from(*i) {
                Ok(i) => Ok(Some(i)),
                Err(_) => self.wrong(key, value, "an integer that is not negative"),
            },
            Some(other) => self.wrong(key, other, "an integer"),
        }
    }

    /// A number.
    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(Value::Integer(value)) => Ok(Some(*value as f64)),
            Some(other) => self.wrong(key, other, "a number"),
        }
    }

    /// A truth value.
    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => self.wrong(key, other, "a truth value"),
        }
    }

    /// An array of strings.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array { element: Element::String, count, data }) => {
                let mut reader = Reader { file: &self.file, data, at: 0 };
                let mut strings = Vec::with_capacity(*count); // at most data.len() / 8: checked when read
                for _ in 0..*count {
                    strings.push(reader.str(&format!("key {key}"))?);
                }
                Ok(Some(strings))
            }
            Some(other) => self.wrong(key, other, "an array of strings"),
        }
    }

    /// An array of integers.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array { element: Element::Unsigned(size), data, .. }) => {
                Ok(Some(data.chunks_exact(*size).map(|bytes| little_endian(bytes) as i64).collect()))
            }
            Some(Value::Array { element: Element::Signed(size), data, .. }) => {
                Ok(Some(data.chunks_exact(*size).map(|bytes| signed(bytes) as i64).collect()))
            }
            Some(other) => self.wrong(key, other, "an array of integers"),
        }
    }

    /// An array of f32.
    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array { element: Element::F32, data, .. }) => Ok(Some(
                data.chunks_exact(4).map(|bytes| f32::from_bits(little_endian(bytes) as u32)).collect(),
            )),
            Some(other) => self.wrong(key, other, "an array of f32"),
        }
    }
}

/// Whether a name is `…-00001-of-00003.gguf`.
fn is_split(name: &str) -> bool {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let Some(stem) = name.strip_suffix(".gguf") else { return false };
    let mut parts = stem.rsplitn(4, '-');
    matches!((parts.next(), parts.next(), parts.next()), (Some(n), Some("of"), Some(i)) if digits(n) && digits(i))
}

// === impl Value ===

impl Value {
    fn kind(&self) -> String {
        match self {
            Self::Integer(value) => format!("the integer {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Bool(value) => format!("{value}"),
            Self::String(_) => "a string".into(),
            Self::Array { element, count, .. } => format!("an array of {count} {element:?}"),
        }
    }
}

// === impl Element ===

impl Element {
    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of an element; of a string, the fewest.
    fn size(self) -> usize {
        match self {
            Self::Unsigned(size) | Self::Signed(size) => size,
            Self::F32 => 4,
            Self::F64 | Self::String => 8,
            Self::Bool => 1,
        }
    }
}
