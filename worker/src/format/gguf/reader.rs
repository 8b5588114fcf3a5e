//! Reads a GGUF file from front to back; every step is checked against what is left of the file.

use std::{collections::HashMap, path::Path};

use bytes::Bytes;
use volley_kernels::{DType, Tensor};

use super::{Element, Value};
use crate::Error;

const MAGIC: &[u8] = b"GGUF";
/// The fewest bytes that a key–value pair and a tensor's description can take: these bound the counts.
const MIN_PAIR: u64 = 8 + 4 + 1;
const MIN_TENSOR: u64 = 8 + 4 + 4 + 8;
/// Tensor types that have kernels.
const SUPPORTED: &str = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K";

/// The type code of an array.
const ARRAY: u32 = 9;

/// Reads forward; every step is checked against the end of the file.
pub(super) struct Reader<'a> {
    pub(super) file: &'a Path,
    pub(super) data: &'a Bytes,
    /// The next byte.
    pub(super) at: usize,
}

/// A tensor as the header describes it.
pub(super) struct TensorInfo {
    name: String,
    dtype: Result<DType, String>,
    sizes: Vec<u64>,
    offset: u64,
}

// === impl Reader ===

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

    pub(super) fn str(&mut self, place: &str) -> Result<&'a str, Error> {
        let length = self.u64(place)?;
        let bytes = self.take(length, place)?;
        std::str::from_utf8(bytes)
            .map_err(|e| Error::malformed(self.file, place, format!("expected UTF-8: {e}")))
    }

    /// Returns the numbers of tensors and of metadata pairs.
    pub(super) fn header(&mut self) -> Result<(u64, u64), Error> {
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

    pub(super) fn metadata(&mut self, pairs: u64) -> Result<HashMap<String, Value>, Error> {
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

    pub(super) fn tensor_infos(&mut self, tensors: u64) -> Result<Vec<TensorInfo>, Error> {
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
    pub(super) fn locate(
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

/// Up to eight bytes as an unsigned integer.
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Up to eight bytes as a signed integer.
pub(super) fn signed(bytes: &[u8]) -> i128 {
    let unused = 64 - 8 * bytes.len().min(8) as u32;
    i128::from(((little_endian(bytes) << unused) as i64) >> unused)
}
