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

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use volley_kernels::{DType, Tensor};

use super::{Weights, map};
use crate::Error;

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// The fewest bytes that a key–value pair and a tensor's description can take: these bound the counts.
const MIN_PAIR: u64 = 8 + 4 + 1;
const MIN_TENSOR: u64 = 8 + 4 + 4 + 8;
const SUPPORTED: &str = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K";

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

/// Reads forward; every step is checked against the end of the file.
struct Reader<'a> {
    file: &'a Path,
    data: &'a Bytes,
    at: usize,
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

        let mut gguf = Self {
            file: file.to_owned(),
            metadata,
            weights: Weights { file: file.to_owned(), tensors: HashMap::new() },
        };
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

/// Up to eight bytes as an unsigned integer.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Up to eight bytes as a signed integer.
fn signed(bytes: &[u8]) -> i128 {
    let unused = 64 - 8 * bytes.len().min(8) as u32;
    i128::from(((little_endian(bytes) << unused) as i64) >> unused)
}

// === impl Reader ===

const ARRAY: u32 = 9;

/// A tensor as the header describes it.
struct TensorInfo {
    name: String,
    dtype: Result<DType, String>,
    sizes: Vec<u64>,
    offset: u64,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        (self.data.len() - self.at) as u64
    }

    /// The next `n` bytes, as a range of the file.
    fn range(&mut self, n: u64, place: &str) -> Result<std::ops::Range<usize>, Error> {
        if n > self.left() {
            let problem =
                format!("the file ends at byte {}, expected {n} more after {}", self.data.len(), self.at);
            return Err(Error::malformed(self.file, place, problem));
        }
        let range = self.at..self.at + n as usize;
        self.at = range.end;
        Ok(range)
    }

    fn take(&mut self, n: u64, place: &str) -> Result<&'a [u8], Error> {
        let range = self.range(n, place)?;
        Ok(&self.data[range])
    }

    fn u32(&mut self, place: &str) -> Result<u32, Error> {
        Ok(little_endian(self.take(4, place)?) as u32)
    }

    fn u64(&mut self, place: &str) -> Result<u64, Error> {
        Ok(little_endian(self.take(8, place)?))
    }

    fn str(&mut self, place: &str) -> Result<&'a str, Error> {
        let length = self.u64(place)?;
        let bytes = self.take(length, place)?;
        std::str::from_utf8(bytes)
            .map_err(|e| Error::malformed(self.file, place, format!("expected UTF-8: {e}")))
    }

    /// Returns the numbers of tensors and of metadata pairs.
    fn header(&mut self) -> Result<(u64, u64), Error> {
        if self.take(4, "header")? != MAGIC {
            return Err(Error::malformed(
                self.file,
                "header",
                "expected a GGUF file (it starts with `GGUF`)",
            ));
        }
        match self.u32("header")? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err(Error::unsupported(self.file, "header", "big-endian; expected little-endian"));
            }
            version => {
                let problem = format!("GGUF version {version}; expected 2 or 3");
                return Err(Error::unsupported(self.file, "header", problem));
            }
        }
        let (tensors, pairs) = (self.u64("header")?, self.u64("header")?);
        for (count, min, what) in [(tensors, MIN_TENSOR, "tensors"), (pairs, MIN_PAIR, "metadata pairs")] {
            if count > self.left() / min {
                let problem = format!("{count} {what} do not fit in {} bytes", self.left());
                return Err(Error::malformed(self.file, "header", problem));
            }
        }
        Ok((tensors, pairs))
    }

    fn metadata(&mut self, pairs: u64) -> Result<HashMap<String, Value>, Error> {
        let mut metadata = HashMap::new();
        for index in 0..pairs {
            let key = self.str(&format!("metadata pair {index}"))?.to_owned();
            let place = format!("key {key}");
            let value = self.value(&place)?;
            if metadata.insert(key, value).is_some() {
                return Err(Error::malformed(self.file, place, "appears twice"));
            }
        }
        Ok(metadata)
    }

    fn element(&self, code: u32, place: &str) -> Result<Element, Error> {
        Element::from_code(code).ok_or_else(|| {
            Error::malformed(
                self.file,
                place,
                format!("value type {code}; expected a scalar, a string or an array"),
            )
        })
    }

    fn value(&mut self, place: &str) -> Result<Value, Error> {
        let code = self.u32(place)?;
        if code == ARRAY {
            return self.array(place);
        }
        let element = self.element(code, place)?;
        if element == Element::String {
            return Ok(Value::String(self.str(place)?.to_owned()));
        }
        let bytes = self.take(element.size() as u64, place)?;
        Ok(match element {
            Element::Signed(_) => Value::Integer(signed(bytes)),
            Element::F32 => Value::Float(f32::from_bits(little_endian(bytes) as u32).into()),
            Element::F64 => Value::Float(f64::from_bits(little_endian(bytes))),
            Element::Bool => Value::Bool(bytes != [0]),
            Element::Unsigned(_) | Element::String => Value::Integer(little_endian(bytes).into()),
        })
    }

    fn array(&mut self, place: &str) -> Result<Value, Error> {
        let code = self.u32(place)?;
        let element = self.element(code, place)?;
        let count = self.u64(place)?;
        let start = self.at;
        if element == Element::String {
            if count > self.left() / 8 {
                let problem = format!("{count} strings do not fit in {} bytes", self.left());
                return Err(Error::malformed(self.file, place, problem));
            }
            for _ in 0..count {
                let length = self.u64(place)?;
                self.range(length, place)?;
            }
        } else {
            self.range(count.saturating_mul(element.size() as u64), place)?;
        }
        Ok(Value::Array { element, count: count as usize, data: self.data.slice(start..self.at) })
    }

    fn tensor_infos(&mut self, tensors: u64) -> Result<Vec<TensorInfo>, Error> {
        let mut infos = Vec::new();
        for index in 0..tensors {
            let name = self.str(&format!("tensor {index}"))?.to_owned();
            let place = format!("tensor {name}");
            let dimensions = self.u32(&place)?;
            if !(1..=4).contains(&dimensions) {
                let problem = format!("{dimensions} dimensions; expected 1 to 4");
                return Err(Error::malformed(self.file, place, problem));
            }
            let mut sizes = Vec::new();
            for _ in 0..dimensions {
                sizes.push(self.u64(&place)?);
            }
            let dtype = dtype(self.u32(&place)?);
            infos.push(TensorInfo { name, dtype, sizes, offset: self.u64(&place)? });
        }
        Ok(infos)
    }
}

fn dtype(code: u32) -> Result<DType, String> {
    Ok(match code {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        30 => DType::BF16,
        other => {
            let name = match other {
                10 => "Q2_K",
                11 => "Q3_K",
                16..=23 | 29 => "an IQ type",
                34 | 35 => "a ternary type",
                39 => "MXFP4",
                _ => "unknown",
            };
            return Err(format!("stored as type {other} ({name}); supported: {SUPPORTED}"));
        }
    })
}

// === impl TensorInfo ===

impl TensorInfo {
    /// Cuts the tensor out of the file; the inner error is for a tensor that no operation takes.
    fn locate(
        self,
        file: &Path,
        data: &Bytes,
        start: u64,
        alignment: u64,
    ) -> Result<(String, Result<Tensor, String>), Error> {
        let Self { name, dtype, sizes, offset } = self;
        let malformed = |problem| Error::malformed(file, format!("tensor {name}"), problem);
        if !offset.is_multiple_of(alignment) {
            return Err(malformed(format!("offset {offset}; expected a multiple of {alignment}")));
        }
        let dtype = match dtype {
            Ok(dtype) => dtype,
            Err(problem) => return Ok((name, Err(problem))),
        };
        let rows = sizes[1..].iter().try_fold(1, |product: u64, size| product.checked_mul(*size));
        let shape =
            rows.and_then(|rows| Some((usize::try_from(rows).ok()?, usize::try_from(sizes[0]).ok()?)));
        let bytes = shape.and_then(|(rows, cols)| dtype.row_bytes(cols)?.checked_mul(rows));
        let (Some((rows, cols)), Some(bytes)) = (shape, bytes) else {
            return Err(malformed(format!("sizes {sizes:?} are too large, or not whole {dtype:?} blocks")));
        };
        let from = start.checked_add(offset).and_then(|from| usize::try_from(from).ok());
        let range = from.and_then(|from| Some(from..from.checked_add(bytes)?));
        let Some(range) = range.filter(|range| range.end <= data.len()) else {
            let problem = format!(
                "{bytes} bytes at {start} + {offset}, but the file has {} (is it complete?)",
                data.len()
            );
            return Err(malformed(problem));
        };
        let tensor = Tensor::new(name.clone(), dtype, rows, cols, data.slice(range))?;
        Ok((name, Ok(tensor)))
    }
}
