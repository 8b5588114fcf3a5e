//! The checked-in fatbins are those of the checked-in sources. (That the sources give these very bytes is for
//! `kernels/cuda/build --check`, which needs the compiler.)

#![allow(clippy::unwrap_used)] // in what the tests share

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use volley_kernels::cuda::FATBINS;
use volley_twin::Twin;

fn cuda() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda")
}

fn sources() -> Vec<PathBuf> {
    let entries = fs::read_dir(cuda()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "cu")).collect()
}

/// The quoted includes of a file, and theirs.
fn includes(source: &Path, seen: &mut BTreeSet<PathBuf>) {
    for line in fs::read_to_string(source).unwrap().lines() {
        let Some(rest) = line.strip_prefix("#include \"") else { continue };
        let path = cuda().join("include").join(rest.split('"').next().unwrap());
        if path.exists() && seen.insert(path.clone()) {
            includes(&path, seen);
        }
    }
}

/// As `kernels/cuda/build` computes it.
fn hash(source: &Path) -> String {
    let mut headers = BTreeSet::new();
    includes(source, &mut headers);
    let mut digest = Sha256::new();
    for path in [cuda().join("toolchain"), source.to_owned()].into_iter().chain(headers) {
        digest.update(path.file_name().unwrap().as_encoded_bytes());
        digest.update([0]);
        digest.update(fs::read(path).unwrap());
        digest.update([0]);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn no_fatbin_is_stale() {
    let mut stale = Vec::new();
    for source in sources() {
        let name = source.file_stem().unwrap().to_str().unwrap();
        let fatbin = FATBINS.iter().find(|fatbin| fatbin.source == name);
        if fatbin.is_none_or(|fatbin| fatbin.hash != hash(&source)) {
            stale.push(name.to_owned());
        }
    }
    assert!(stale.is_empty(), "run kernels/cuda/build: {stale:?} changed since");
    assert_eq!(FATBINS.len(), sources().len(), "run kernels/cuda/build: a source is gone");
}

#[test]
fn the_fatbins_hold_the_kernels_that_the_twin_runs() {
    let compiled: BTreeSet<_> = FATBINS.iter().flat_map(|fatbin| fatbin.kernels).copied().collect();
    let twin = Twin::kernels().into_iter().filter(|name| !name.starts_with("bug_")).collect();
    assert_eq!(compiled, twin);
}

#[test]
fn all_fatbins_together_stay_under_8_mib() {
    let bytes: usize = FATBINS.iter().map(|fatbin| fatbin.image.len()).sum();
    assert!(bytes < 8 << 20, "{bytes} bytes");
}
