//! Where a request goes: every spelling of a path that clients produce, brought to one.
//!
//! Clients put the API under `/inference/v1`, `/v1`, nothing at all, or (SDKs that append `/v1` to whatever
//! base address they were given) under a doubled `/v1/v1`; they add slashes; the first OpenAI SDKs put the
//! model into the path. The routes themselves are written once, bare.

use std::borrow::Cow;

/// A path as the routes know it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Canonical {
    /// Such as `/chat/completions`: no prefix, no double or trailing slash. Still percent-encoded.
    pub path: String,
    /// The model of `/engines/<model>/…`, decoded.
    pub engine: Option<String>,
}

/// Brings `path` to its canonical form; `None` if it tries to climb (`..`) or carries a NUL.
pub(crate) fn canonical(path: &str) -> Option<Canonical> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    for segment in &segments {
        let decoded = decode(segment);
        if decoded.contains('\0') || decoded.split('/').any(|part| part == ".." || part == ".") {
            return None;
        }
    }
    let rest = match segments.as_slice() {
        ["inference", "v1", "v1", rest @ ..] | ["inference", "v1", rest @ ..] => rest,
        ["v1", "v1", rest @ ..] | ["v1", rest @ ..] => rest,
        rest => rest,
    };
    let (rest, engine) = match rest {
        ["engines"] => (&["models"][..], None),
        ["engines", engine @ .., "chat", "completions"] if !engine.is_empty() => {
            (&["chat", "completions"][..], Some(engine))
        }
        ["engines", engine @ .., "completions"] if !engine.is_empty() => (&["completions"][..], Some(engine)),
        ["engines", engine @ .., "embeddings"] if !engine.is_empty() => (&["embeddings"][..], Some(engine)),
        rest => (rest, None),
    };
    Some(Canonical {
        path: rest.iter().fold(String::new(), |path, segment| path + "/" + segment),
        engine: engine.map(|segments| decode_form(&segments.join("/"))),
    })
}

/// Percent-decoded; what is no UTF-8 becomes U+FFFD.
pub(crate) fn decode(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}

/// As the first OpenAI SDKs encode `engine=`: like a form's value, with `+` for a space.
fn decode_form(text: &str) -> String {
    decode(&text.replace('+', " ")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> String {
        canonical(path).unwrap().path
    }

    #[test]
    fn every_prefix_and_slash_reaches_the_same_route() {
        for prefix in ["/inference/v1", "/v1", "", "/inference/v1/v1", "/v1/v1", "//v1", "/v1//v1/"] {
            for suffix in ["", "/", "//"] {
                assert_eq!(path(&format!("{prefix}/chat/completions{suffix}")), "/chat/completions");
                assert_eq!(path(&format!("{prefix}/models{suffix}")), "/models");
            }
        }
        assert_eq!(path("/v1//chat///completions"), "/chat/completions");
    }

    #[test]
    fn other_paths_stay_apart() {
        assert_eq!(path("/V1/models"), "/V1/models");
        assert_eq!(path("/inference/models"), "/inference/models");
        assert_eq!(path("/v1/v1/v1/models"), "/v1/models");
        assert_eq!(path("/"), "");
    }

    #[test]
    fn model_ids_keep_their_encoding_for_the_route_to_decode_once() {
        assert_eq!(path("/v1/models/accounts%2Fa%2Fmodels%2Fm%23d"), "/models/accounts%2Fa%2Fmodels%2Fm%23d");
        assert_eq!(path("/v1/models/accounts/a/models/m/"), "/models/accounts/a/models/m");
    }

    #[test]
    fn the_first_sdks_name_the_model_in_the_path() {
        for (from, to, engine) in [
            ("/v1/engines/m/completions", "/completions", "m"),
            ("/v1/engines/a%2Fb/chat/completions", "/chat/completions", "a/b"),
            ("/v1/engines/accounts/a/models/m/completions", "/completions", "accounts/a/models/m"),
            ("/v1/engines/my+model/completions", "/completions", "my model"),
            ("/v1/engines/m/embeddings", "/embeddings", "m"),
        ] {
            assert_eq!(canonical(from), Some(Canonical { path: to.into(), engine: Some(engine.into()) }));
        }
        assert_eq!(canonical("/v1/engines"), Some(Canonical { path: "/models".into(), engine: None }));
        assert_eq!(path("/v1/engines/completions"), "/engines/completions");
    }

    #[test]
    fn climbing_paths_and_nul_are_refused() {
        for bad in ["/v1/%2e%2e/x", "/v1/../x", "/v1/models/a%2F..%2Fb", "/v1/models/a%00", "/v1/./x"] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
        assert!(canonical("/v1/models/a..b").is_some());
    }
}
