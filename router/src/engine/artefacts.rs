//! A model's files: fetched through a scheduler in chunks, and known by their hash.

use std::collections::BTreeMap;

use volley_proto::{
    files_hash,
    v1::{FetchModelRequest, FileChunk},
};

use super::link::Link;

/// All files of a model together, bytes: tokenizers are 1 to 40 MB.
const MODEL_BYTES: usize = 512 << 20;
const MODEL_FILES: usize = 64;

/// Why a model's files could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}")]
    Status(#[from] Box<tonic::Status>),
    #[error("the model's files are too many or too large")]
    TooLarge,
    #[error("the model's files do not start with a name")]
    Unnamed,
    #[error("the model's files have the hash {0}")]
    WrongHash(String),
}

/// A model's files by name, fetched through the link's scheduler and checked against their hash.
pub(crate) async fn fetch(link: &Link, hash: &str) -> Result<BTreeMap<String, Vec<u8>>, FetchError> {
    let request = FetchModelRequest { hash: hash.to_owned() };
    let mut chunks = link.client.clone().fetch_model(request).await.map_err(Box::new)?.into_inner();
    let mut files = BTreeMap::<String, Vec<u8>>::new();
    let mut current: Option<(String, Vec<u8>)> = None;
    let mut total = 0;
    while let Some(FileChunk { name, data }) = chunks.message().await.map_err(Box::new)? {
        total += data.len();
        if total > MODEL_BYTES || files.len() > MODEL_FILES {
            return Err(FetchError::TooLarge);
        }
        if !name.is_empty() {
            files.extend(current.replace((name, Vec::new())));
        }
        current.as_mut().ok_or(FetchError::Unnamed)?.1.extend(data);
    }
    files.extend(current);
    let found = hash_files(&files);
    if found == hash { Ok(files) } else { Err(FetchError::WrongHash(found)) }
}

/// Their hash, as their model's card has it.
pub(crate) fn hash_files(files: &BTreeMap<String, Vec<u8>>) -> String {
    files_hash(files.iter().map(|(name, content)| (name.as_str(), &content[..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_covers_names_and_contents_and_where_they_end() {
        let files = |list: &[(&str, &str)]| {
            list.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
        };
        let mut bytes = Vec::new();
        for part in ["a", "xy", "b", ""] {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part.as_bytes());
        }
        let hash = hash_files(&files(&[("b", ""), ("a", "xy")]));
        assert_eq!(hash, blake3::hash(&bytes).to_hex().to_string());
        assert_ne!(hash, hash_files(&files(&[("a", "x"), ("b", "y")])));
    }
}
