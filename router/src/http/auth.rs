//! API keys: who may ask, and as which tenant. Off when there are no keys.

use std::{collections::HashSet, path::Path, sync::Arc};

use http::{HeaderMap, header};

use super::error::ApiError;

/// The keys that open the API.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    // Hashes, not keys: a comparison's time says nothing about a key, and no dump of memory shows one.
    hashes: Arc<HashSet<blake3::Hash>>,
}

/// Who asks: separates caches, queues, rates and what is kept. A key's fingerprint, or `anonymous`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant(pub String);

const INVALID: &str = "The API key you provided is invalid.";
const MISSING: &str = "No API key was provided. Send one in the header \"Authorization: Bearer <key>\".";

// === impl Keys ===

impl Keys {
    /// Everyone may ask.
    pub fn none() -> Self {
        Self::default()
    }

    /// These keys; blank entries are skipped.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        let keys = keys.into_iter().map(str::trim).filter(|key| !key.is_empty());
        Self { hashes: Arc::new(keys.map(|key| blake3::hash(key.as_bytes())).collect()) }
    }

    /// One key a line; blank lines and those that begin with `#` are skipped.
    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Ok(Self::new(text.lines().filter(|line| !line.trim_start().starts_with('#'))))
    }

    /// Whether a key is asked for.
    pub fn required(&self) -> bool {
        !self.hashes.is_empty()
    }

    /// The tenant behind a request's headers: `Authorization: Bearer`, else `x-api-key`, else `api-key`.
    pub fn check(&self, headers: &HeaderMap) -> Result<Tenant, ApiError> {
        if !self.required() {
            return Ok(Tenant("anonymous".into()));
        }
        let hash = blake3::hash(presented(headers).map_err(ApiError::Unauthorized)?);
        // A set would leave a lookup's timing; of a hash it tells nothing, but equality is cheap to do right.
        let known = self.hashes.iter().fold(false, |known, one| known | (*one == hash));
        if !known {
            return Err(ApiError::Unauthorized(INVALID));
        }
        Ok(Tenant(hash.to_hex()[..16].to_string()))
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.hashes.len())
    }
}

/// The one key that a request presents.
fn presented(headers: &HeaderMap) -> Result<&[u8], &'static str> {
    for (name, bearer) in [(header::AUTHORIZATION.as_str(), true), ("x-api-key", false), ("api-key", false)] {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else { continue };
        if values.next().is_some() {
            return Err(INVALID);
        }
        let key = if bearer { bearer_token(value.as_bytes()).ok_or(INVALID)? } else { value.as_bytes() };
        let key = key.trim_ascii();
        return if key.is_empty() { Err(MISSING) } else { Ok(key) };
    }
    Err(MISSING)
}

/// What follows `Bearer` and at least one space; the scheme's case doesn't matter.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let (scheme, token) = value.split_at_checked(6)?;
    let spaced = token.is_empty() || token.starts_with(b" ");
    (scheme.eq_ignore_ascii_case(b"bearer") && spaced).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn without_keys_everyone_is_anonymous() {
        let tenant = Keys::none().check(&headers(&[("authorization", "Bearer whatever")])).unwrap();
        assert_eq!(tenant.0, "anonymous");
    }

    #[test]
    fn a_key_opens_by_each_of_its_headers_and_gives_one_tenant() {
        let keys = Keys::new(["one", " two "]);
        let mut tenants = Vec::new();
        for pair in [
            ("authorization", "Bearer two"),
            ("authorization", "bearer   two"),
            ("authorization", "BEARER two "),
            ("x-api-key", "two"),
            ("api-key", "two"),
        ] {
            tenants.push(keys.check(&headers(&[pair])).unwrap());
        }
        tenants.dedup();
        assert_eq!(tenants.len(), 1);
        assert!(!tenants[0].0.contains("two"));
        assert_ne!(keys.check(&headers(&[("api-key", "one")])).unwrap(), tenants[0]);
    }

    #[test]
    fn anything_else_is_refused() {
        let keys = Keys::new(["one"]);
        for pairs in [
            &[][..],
            &[("authorization", "Bearer three")],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Basic one")],
            &[("authorization", "Bearerone")],
            &[("authorization", "one")],
            &[("authorization", "Bearer one"), ("authorization", "Bearer one")],
            &[("x-api-key", "")],
        ] {
            assert!(keys.check(&headers(pairs)).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn a_file_has_a_key_a_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# ours\n\n one \ntwo\n").unwrap();
        let keys = Keys::from_file(file.path()).unwrap();
        assert!(keys.check(&headers(&[("api-key", "one")])).is_ok());
        assert!(keys.check(&headers(&[("api-key", "# ours")])).is_err());
        assert_eq!(format!("{keys:?}"), "Keys(2)");
    }
}
