//! The weights' hash: SHA-256, as catalogues and hubs publish it. Reading all weights takes seconds for a
//! large model, so a hash is kept beside the size and time of its file and not computed again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, format};

/// What is kept of a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    size: u64,
    modified_ns: u64,
    sha256: String,
}

/// The hash of a model's weight files; of several, the hash of their names and hashes.
pub(crate) fn hash(files: &[PathBuf], cache: Option<&Path>) -> Result<String, Error> {
    let hashes = files.iter().map(|file| file_hash(file, cache)).collect::<Result<Vec<_>, _>>()?;
    if let [hash] = &hashes[..] {
        return Ok(hash.clone());
    }
    let mut all = Sha256::new();
    for (file, hash) in files.iter().zip(hashes) {
        let name = file.file_name().unwrap_or_default();
        all.update(format!("{hash}  {}\n", name.to_string_lossy()));
    }
    Ok(hex(&all.finalize()))
}

fn file_hash(file: &Path, cache: Option<&Path>) -> Result<String, Error> {
    let failed = |e| Error::read(file, e);
    let metadata = fs::metadata(file).map_err(failed)?;
    let modified = metadata.modified().map_err(failed)?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (size, modified_ns) = (metadata.len(), modified.as_nanos() as u64);
    let file = fs::canonicalize(file).map_err(failed)?;
    let entry = cache.map(|cache| {
        let key = blake3::hash(file.as_os_str().as_encoded_bytes()).to_hex();
        cache.join("weights").join(format!("{key}.json"))
    });
    let kept = entry.as_ref().and_then(|entry| serde_json::from_slice::<Kept>(&fs::read(entry).ok()?).ok());
    if let Some(kept) = kept
        && (kept.size, kept.modified_ns) == (size, modified_ns)
    {
        return Ok(kept.sha256);
    }
    let sha256 = hex(&Sha256::digest(format::map(&file)?));
    if let Some(entry) = entry {
        let kept = Kept { size, modified_ns, sha256: sha256.clone() };
        if let Err(error) = keep(&entry, &kept) {
            tracing::warn!(file = %entry.display(), %error, "the weights' hash is not kept");
        }
    }
    Ok(sha256)
}

/// Written aside and renamed: another process reads the whole or nothing.
fn keep(entry: &Path, kept: &Kept) -> std::io::Result<()> {
    let folder = entry.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let aside = entry.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&aside, serde_json::to_vec(kept)?)?;
    fs::rename(aside, entry)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_hash_is_kept_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, cache) = (folder.path().join("w"), folder.path().join("cache"));
        fs::write(&file, "abc").unwrap();
        let files = [file.clone()];
        let hash_of = || hash(&files, Some(&cache)).unwrap();
        assert_eq!(hash_of(), ABC);

        // What is kept is believed, which shows that the file is not read again…
        let entry = fs::read_dir(cache.join("weights")).unwrap().next().unwrap().unwrap().path();
        let kept = fs::read_to_string(&entry).unwrap();
        fs::write(&entry, kept.replace(ABC, "kept")).unwrap();
        assert_eq!(hash_of(), "kept");
        // …until its size or time is another.
        fs::write(&file, "").unwrap();
        assert_ne!(hash_of(), "kept");
        fs::write(&file, "abc").unwrap();
        assert_eq!(hash_of(), ABC);
    }

    #[test]
    fn several_files_have_one_hash_that_depends_on_all() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&files[0], "abc").unwrap();
        fs::write(&files[1], "abc").unwrap();
        let before = hash(&files, None).unwrap();
        fs::write(&files[1], "abd").unwrap();
        assert_ne!(hash(&files, None).unwrap(), before);
    }
}
