//! The Hugging Face hub, through the hf-hub crate.
//!
//! hf-hub has no timeouts and can't be cancelled, so it works on a thread of its own that reports what moves,
//! and is left behind when it doesn't: its files are in a folder that then goes.

use std::{
    fmt, fs, io,
    path::{Component, Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};

use super::{
    cache::failed,
    download::{Failure, Sources, Watch},
};

/// How often silence and Ctrl-C are looked for.
const POLL: Duration = Duration::from_millis(100);

/// What a repository's directory of safetensors needs, beside the weights.
const COMPANIONS: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// `org/name`, or `org/name/path.gguf` for one file of a repository that has several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    org: String,
    pub(super) name: String,
    pub(super) file: Option<String>,
}

/// A downloaded file.
pub(super) struct Fetched {
    /// Its path in the repository.
    pub(super) name: String,
    /// Where it is now.
    pub(super) path: PathBuf,
    /// What the hub says its SHA-256 is; it does so for large files.
    pub(super) sha256: Option<String>,
}

/// What the working thread reports.
enum Event {
    Answered,
    Moved { done: u64, total: u64 },
    Ended(Result<Vec<Fetched>, Failure>),
}

/// hf-hub's view of our progress.
struct Report {
    events: mpsc::Sender<Event>,
    done: u64,
    total: u64,
}

// === impl Id ===

impl Id {
    /// Reads an id; `None` when it can't be one.
    pub(super) fn parse(spec: &str) -> Option<Self> {
        let plain = |part: &str| {
            let ok = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(ok)
        };
        let mut parts = spec.split('/');
        let (org, name) = (parts.next()?, parts.next()?);
        let rest: Vec<_> = parts.collect();
        let file = (!rest.is_empty()).then(|| rest.join("/"));
        let file_ok = file.as_ref().is_none_or(|f| f.ends_with(".gguf") && rest.iter().all(|p| plain(p)));
        (plain(org) && plain(name) && file_ok).then(|| Self { org: org.into(), name: name.into(), file })
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// The folder in the cache.
    pub(super) fn cache_name(&self) -> String {
        format!("{}--{}", self.org, self.name)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository())?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, "/{file}"))
    }
}

// === impl Report ===

impl hf_hub::api::Progress for Report {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
        // Nobody listens any more once the watch has given up; so below.
        let _ = self.events.send(Event::Answered);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        let _ = self.events.send(Event::Moved { done: self.done, total: self.total });
    }

    fn finish(&mut self) {}
}

/// One file of a repository, under `incoming`.
pub(super) fn file(
    repository: &str,
    file: &str,
    sources: &Sources,
    incoming: &Path,
    watch: &mut Watch<'_>,
) -> Result<PathBuf, Failure> {
    let (repository, file) = (repository.to_owned(), file.to_owned());
    let fetched = watched(&repository, sources, incoming, watch, move |repo, target, events| {
        fetch(repo, &file, target, events).map(|f| vec![f])
    })?;
    let first = fetched.into_iter().next().map(|f| f.path);
    first.ok_or_else(|| Failure::Refused("it sent nothing".into()))
}

/// All that a model needs of a repository, under `incoming`.
pub(super) fn repository(
    id: &Id,
    sources: &Sources,
    incoming: &Path,
    watch: &mut Watch<'_>,
) -> Result<Vec<Fetched>, Failure> {
    let wanted = id.clone();
    watched(&id.repository(), sources, incoming, watch, move |repo, target, events| {
        let names = match &wanted.file {
            Some(file) => vec![file.clone()],
            None => {
                let info = repo.info().map_err(refused)?;
                let _ = events.send(Event::Answered);
                choose(&wanted, info.siblings.into_iter().map(|s| s.rfilename).collect())?
            }
        };
        names.iter().map(|name| fetch(repo, name, target, events)).collect()
    })
}

/// Which of a repository's files to get.
fn choose(id: &Id, names: Vec<String>) -> Result<Vec<String>, Failure> {
    let safe = |name: &String| Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    let names: Vec<_> = names.into_iter().filter(safe).collect();
    let top = |name: &String| !name.contains('/');
    let weights =
        |n: &String| top(n) && (n.ends_with(".safetensors") || n.ends_with(".safetensors.index.json"));
    if names.iter().any(weights) {
        let needed = |n: &String| weights(n) || COMPANIONS.contains(&n.as_str());
        return Ok(names.into_iter().filter(needed).collect());
    }
    let files: Vec<_> = names.into_iter().filter(|n| n.ends_with(".gguf")).collect();
    match files.as_slice() {
        [] => Err(Failure::Refused("the repository has neither safetensors nor a GGUF file".into())),
        [_] => Ok(files),
        several => {
            let choices: Vec<_> = several.iter().map(|file| format!("{id}/{file}")).collect();
            Err(Failure::Refused(format!("it has several GGUF files: name one of {}", choices.join(", "))))
        }
    }
}

/// Runs `work` on a thread of its own until it ends or `watch` has had enough.
fn watched(
    repository: &str,
    sources: &Sources,
    incoming: &Path,
    watch: &mut Watch<'_>,
    work: impl FnOnce(&ApiRepo, &Path, &mpsc::Sender<Event>) -> Result<Vec<Fetched>, Failure> + Send + 'static,
) -> Result<Vec<Fetched>, Failure> {
    let mut builder =
        ApiBuilder::from_env().with_progress(false).with_user_agent("volley", env!("CARGO_PKG_VERSION"));
    if let Some(endpoint) = &sources.hub_endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if let Some(token) = &sources.hub_token {
        builder = builder.with_token(Some(token.clone()));
    }
    let api = builder.with_cache_dir(incoming.join("hub")).build().map_err(refused)?;
    let repo = api.model(repository.to_owned());
    let target = incoming.to_owned();
    let (events, reported) = mpsc::channel();
    std::thread::Builder::new()
        .name("hub".into())
        .spawn(move || {
            let ended = work(&repo, &target, &events);
            let _ = events.send(Event::Ended(ended));
        })
        .map_err(|e| Failure::Refused(format!("cannot start a thread: {e}")))?;
    loop {
        match reported.recv_timeout(POLL) {
            Ok(Event::Answered) => watch.answered(),
            Ok(Event::Moved { done, total }) => watch.moved(done, total),
            Ok(Event::Ended(result)) => return result,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::Refused("it sent an answer that the client can't read".into()));
            }
        }
        watch.check()?;
    }
}

fn fetch(
    repo: &ApiRepo,
    name: &str,
    incoming: &Path,
    events: &mpsc::Sender<Event>,
) -> Result<Fetched, Failure> {
    let report = Report { events: events.clone(), done: 0, total: 0 };
    let pointer = repo.download_with_progress(name, report).map_err(refused)?;
    // hf-hub leaves a link to a blob that is named by its etag: of a large file, that is its SHA-256.
    let blob = pointer.canonicalize().map_err(failed("read", &pointer))?;
    let etag = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_sha256 = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    let path = incoming.join("files").join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("create", parent))?;
    }
    fs::rename(&blob, &path).map_err(failed("write", &path))?;
    Ok(Fetched { name: name.to_owned(), path, sha256: is_sha256.then_some(etag) })
}

/// hf-hub's error: the machine's own fault, or the source's.
fn refused(error: ApiError) -> Failure {
    match error {
        ApiError::IoError(e)
            if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
        {
            failed("write to", Path::new("the cache folder"))(e).into()
        }
        other => Failure::Refused(other.to_string()),
    }
}
