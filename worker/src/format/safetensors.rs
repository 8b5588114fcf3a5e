//! The safetensors reader.
//!
//! ```text
//! length u64 | JSON: name → { dtype, shape, data_offsets: [from, to] } | data
//! ```
//!
//! Our own rather than the `safetensors` crate's: its errors name neither the tensor nor the expected size,
//! and a crafted header can overflow its size check.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::Deserialize;
use volley_kernels::{DType, Tensor};

use super::{Entry, Raw, Weights, map};
use crate::Error;

/// The largest header, as the format's authors bound it.
const MAX_HEADER: u64 = 100_000_000;

/// One entry of the header; `__metadata__` has other fields and is skipped by name.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Maps and reads the shards of a model that lies in `directory`.
pub(crate) fn open(directory: &Path, shards: &[PathBuf]) -> Result<Weights, Error> {
    let mut tensors = HashMap::new();
    for shard in shards {
        for (name, tensor) in parse(shard, &map(shard)?)? {
            let place = format!("tensor {name}");
            if tensors.insert(name, tensor).is_some() {
                return Err(Error::malformed(shard, place, "is in another shard too"));
            }
        }
    }
    Ok(Weights::new(directory.to_owned(), tensors))
}

/// Reads a file's bytes.
pub(crate) fn parse(file: &Path, data: &Bytes) -> Result<HashMap<String, Entry>, Error> {
    let header_error = |problem: String| Error::malformed(file, "header", problem);
    let Some((length, rest)) = data.split_first_chunk::<8>() else {
        return Err(header_error(format!("the file has {} bytes, expected 8 for its length", data.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        let problem = format!("{length} bytes; expected at most {}", MAX_HEADER.min(rest.len() as u64));
        return Err(header_error(problem));
    }
    let (header, _) = rest.split_at(length as usize);
    let header: HashMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|e| header_error(format!("expected a JSON object: {e}")))?;

    let body = data.slice(8 + length as usize..);
    let mut tensors = HashMap::new();
    for (name, info) in header {
        if name == "__metadata__" {
            continue;
        }
        let place = format!("tensor {name}");
        let info: Info = serde_json::from_value(info).map_err(|e| {
            Error::malformed(file, &place, format!("expected dtype, shape and data_offsets: {e}"))
        })?;
        let tensor = info.locate(&name, &body).map_err(|problem| Error::malformed(file, place, problem))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

// === impl Info ===

impl Info {
    /// Cuts the tensor out of the file's data. One that no operation takes (such as an index buffer that an old
    /// checkpoint carries) is no fault until something asks for it.
    fn locate(self, name: &str, body: &Bytes) -> Result<Entry, String> {
        let (from, to) = self.data_offsets;
        if from > to || to > body.len() as u64 {
            return Err(format!(
                "data at {from}..{to}, but the file holds {} bytes of data (is it complete?)",
                body.len()
            ));
        }
        let data = body.slice(from as usize..to as usize);
        let sizes = self.shape.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>();
        let shape = sizes.map_err(|_| format!("shape {:?} is too large", self.shape))?;
        let dtype = match self.dtype.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            _ => return Ok(Entry::Raw(Raw { dtype: self.dtype, shape, data })),
        };
        let (rows, cols) = match shape[..] {
            [] => (1, 1),
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => {
                let problem = format!("has shape {shape:?}; expected a vector or a matrix");
                return Ok(Entry::Unusable(problem));
            }
        };
        match Tensor::new(name, dtype, rows, cols, data) {
            Ok(tensor) => Ok(Entry::Tensor(tensor)),
            Err(volley_kernels::Error::Tensor { problem, .. }) => Err(problem),
            Err(other) => Err(other.to_string()),
        }
    }
}
