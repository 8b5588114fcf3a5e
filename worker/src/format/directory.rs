//! A Hugging Face model directory.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Weights, quantized, read_text, safetensors};
use crate::Error;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files of such a directory, read.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    /// config.json
    pub(crate) config: Value,
    /// The safetensors files.
    pub(crate) shards: Vec<PathBuf>,
    pub(crate) weights: Weights,
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: std::collections::HashMap<String, String>,
}

// === impl Directory ===

impl Directory {
    /// Reads config.json and the headers of the weights.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = path.join("config.json");
        let config = read_json(&file)?.ok_or_else(|| {
            Error::malformed(path, "config.json", "is missing; expected a Hugging Face model directory")
        })?;
        let shards = shards(path)?;
        let scheme = quantized::scheme(&config, &file)?;
        let weights = Weights { scheme, ..safetensors::open(path, &shards)? };
        Ok(Self { path: path.to_owned(), config, shards, weights })
    }

    /// A text file of the directory, if there.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Error> {
        read_text(&self.path.join(name))
    }

    /// A JSON file of the directory, if there.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Value>, Error> {
        read_json(&self.path.join(name))
    }
}

fn shards(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let single = path.join(SINGLE);
    if single.exists() {
        return Ok(vec![single]);
    }
    let index_file = path.join(INDEX);
    let Some(index) = read_json::<Index>(&index_file)? else {
        return Err(Error::malformed(
            path,
            "weights",
            format!("expected {SINGLE}, or {INDEX} and its shards"),
        ));
    };
    let names: BTreeSet<_> = index.weight_map.into_values().collect();
    let mut shards = Vec::new();
    for name in names {
        let mut components = Path::new(&name).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            let problem = format!("names the shard {name:?}; expected a file of the same directory");
            return Err(Error::malformed(&index_file, "key weight_map", problem));
        }
        shards.push(path.join(name));
    }
    Ok(shards)
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Result<Option<T>, Error> {
    let Some(text) = read_text(file)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| Error::malformed(file, "JSON", e.to_string()))
}
