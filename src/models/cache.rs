//! The folder that keeps downloaded models, and what is known of them.
//!
//! ```text
//! VOLLEY_HOME/models/<name>/<file>           weights, complete: they got here by a rename
//! VOLLEY_HOME/models/<name>/<file>.sha256    their hash, recorded then, so that a start reads nothing twice
//! VOLLEY_HOME/models/<name>/.incoming-…/     a download under way; a stale one is removed under the lock
//! VOLLEY_HOME/models/<name>.lock             held while downloading
//! VOLLEY_HOME/weights/…                      the worker's record of the hashes of other weights
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::Error;

const INCOMING: &str = ".incoming-";
/// How often a waiting process looks whether the lock is free: file locks can't be awaited and cancelled.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// The cache folder.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    home: PathBuf,
}

/// A model in the cache.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    /// Folder name: a catalogue name, or `org--name`.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Size of all its files.
    pub bytes: u64,
}

/// Holds a model's download lock until dropped.
pub(super) struct Lock {
    _file: File,
}

// === impl Cache ===

impl Cache {
    /// A cache at `home`; `None` is the user's cache directory.
    pub(crate) fn new(home: Option<PathBuf>) -> Self {
        let user = || dirs::cache_dir().unwrap_or_else(std::env::temp_dir).join("volley");
        Self { home: home.unwrap_or_else(user) }
    }

    /// The cache folder itself.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Where a model's files are, or will be.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.home.join("models").join(name)
    }

    /// Takes the download lock of `name`; `waiting` is called once if another process has it.
    pub(super) fn lock(
        &self,
        name: &str,
        cancel: &CancellationToken,
        waiting: impl FnOnce(),
    ) -> Result<Lock, Error> {
        let folder = self.folder(name);
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let path = self.home.join("models").join(format!("{name}.lock"));
        let file = File::create(&path).map_err(failed("create", &path))?;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::Error(e)) => return Err(failed("lock", &path)(e)),
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            if cancel.is_cancelled() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    /// A folder for a download, on the file system of its destination; it goes when dropped. Under the lock
    /// nobody else downloads, so what an interrupted download left is removed.
    pub(super) fn incoming(&self, name: &str, _lock: &Lock) -> Result<tempfile::TempDir, Error> {
        let folder = self.folder(name);
        for stale in folder.read_dir().map_err(failed("read", &folder))?.flatten() {
            if stale.file_name().to_string_lossy().starts_with(INCOMING) {
                let path = stale.path();
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        tempfile::Builder::new().prefix(INCOMING).tempdir_in(&folder).map_err(failed("write to", &folder))
    }

    /// Moves a complete file into the folder of `name`, with its hash beside it.
    pub(super) fn install(&self, name: &str, from: &Path, file: &str, hash: &str) -> Result<PathBuf, Error> {
        let path = self.folder(name).join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("create", parent))?;
        }
        File::open(from).and_then(|f| f.sync_all()).map_err(failed("write", from))?;
        // The record first: it counts only once the file is there, and then it must not be missing.
        let (record, draft) = (record_of(&path), record_of(from));
        let line = format!("{hash}  {}\n", Path::new(file).file_name().unwrap_or_default().to_string_lossy());
        fs::write(&draft, line).map_err(failed("write", &draft))?;
        fs::rename(&draft, &record).map_err(failed("write", &record))?;
        fs::rename(from, &path).map_err(failed("write", &path))?;
        Ok(path)
    }

    /// The hash recorded beside a file of the cache.
    pub(super) fn recorded(&self, path: &Path) -> Option<String> {
        let record = fs::read_to_string(record_of(path)).ok()?;
        path.is_file().then(|| record.split_whitespace().next().map(str::to_owned))?
    }

    /// Every model in the cache, by name.
    pub(crate) fn list(&self) -> Vec<Cached> {
        let Ok(listing) = self.home.join("models").read_dir() else { return Vec::new() };
        let mut models: Vec<_> = listing
            .flatten()
            .filter(|f| f.path().is_dir())
            .map(|f| Cached {
                name: f.file_name().to_string_lossy().into_owned(),
                path: f.path(),
                bytes: folder_size(&f.path()),
            })
            .filter(|m| m.bytes > 0)
            .collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }
}

/// Size of all files under a folder, those of unfinished downloads excepted.
pub(super) fn folder_size(folder: &Path) -> u64 {
    let Ok(listing) = folder.read_dir() else { return 0 };
    let size = |file: fs::DirEntry| match file.file_type() {
        Ok(kind) if kind.is_dir() && !file.file_name().to_string_lossy().starts_with(INCOMING) => {
            folder_size(&file.path())
        }
        Ok(kind) if kind.is_file() => file.metadata().map_or(0, |m| m.len()),
        _ => 0,
    };
    listing.flatten().map(size).sum()
}

fn record_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".sha256");
    path.with_file_name(name)
}

/// Names the path and what was being done to it.
pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Cache { doing, path, source }
}
