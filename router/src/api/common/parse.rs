//! From a body's bytes to typed fields: strict about what is there, precise about where it is wrong.
//!
//! ```text
//!  bytes ─ object() ─▶ JSON object ─ typed::<T>() ─▶ T + the paths that T does not know
//! ```
//!
//! A request is read as two types, the endpoint's own and the [`Parameters`] that all share; a field is
//! unknown when neither knows it.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{later, parameters::Parameters};
use crate::{config::UnknownFields, http::error::ApiError};

/// The deepest nesting of a body, and where it holds schemas. (serde_json's own limit is just above.)
const DEPTH: usize = 64;
const SCHEMA_DEPTH: usize = 127;
/// The fields that hold schemas.
const SCHEMAS: [&str; 4] = ["response_format", "guided_json", "tools", "functions"];
/// Bodies above this are parsed off the async threads, bytes.
const INLINE: usize = 64 << 10;
/// How much of a client's own text a message repeats, bytes.
const QUOTED: usize = 64;

/// A request: what all endpoints share, and what is the endpoint's own.
#[derive(Debug)]
pub(crate) struct Parsed<T> {
    pub parameters: Parameters,
    pub own: T,
}

/// Parses the body of a text endpoint, on another thread if it is large.
pub(crate) async fn request<T: DeserializeOwned + Send + 'static>(
    body: Bytes,
    unknown: UnknownFields,
) -> Result<Parsed<T>, ApiError> {
    aside(body, move |body| parse(body, unknown)).await
}

/// Parses a body that has none of the [`Parameters`], on another thread if it is large.
pub(crate) async fn only<T: DeserializeOwned + Send + 'static>(
    body: Bytes,
    unknown: UnknownFields,
) -> Result<T, ApiError> {
    let parse = move |body: &[u8]| {
        let object = Value::Object(object(body)?);
        let (own, strangers) = typed(&object)?;
        refuse(&object, strangers.iter(), unknown)?;
        Ok(own)
    };
    aside(body, parse).await
}

async fn aside<T: Send + 'static>(
    body: Bytes,
    parse: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if body.len() <= INLINE {
        return parse(&body);
    }
    match tokio::task::spawn_blocking(move || parse(&body)).await {
        Ok(parsed) => parsed,
        Err(panic) => Err(ApiError::Internal(panic.to_string())),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8], unknown: UnknownFields) -> Result<Parsed<T>, ApiError> {
    let mut object = object(body)?;
    later::refuse(&mut object)?;
    let object = Value::Object(object);
    let (parameters, shared_ignored) = typed(&object)?;
    let (own, own_ignored) = typed(&object)?;
    for (mine, theirs) in [(&own_ignored, &shared_ignored), (&shared_ignored, &own_ignored)] {
        // A whole field that the other type reads is no stranger; inside a field there is one owner.
        let strangers = mine.iter().filter(|path| path.len() > 1 || theirs.contains(path));
        refuse(&object, strangers, unknown)?;
    }
    Ok(Parsed { parameters, own })
}

/// Treats fields that nobody knows as the server is told to.
fn refuse<'a>(
    object: &Value,
    mut strangers: impl Iterator<Item = &'a Path>,
    unknown: UnknownFields,
) -> Result<(), ApiError> {
    if unknown == UnknownFields::Ignore {
        return Ok(());
    }
    let Some(path) = strangers.next() else { return Ok(()) };
    let error = stray(object, path);
    match unknown {
        UnknownFields::Error => return Err(error),
        _ => tracing::warn!(%error, "served despite an unknown field"),
    }
    Ok(())
}

// === Bytes to JSON ===

/// The JSON object in a body.
fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let text = std::str::from_utf8(body).map_err(|error| {
        ApiError::body("invalid_utf8", format!("Invalid UTF-8 at byte {}", error.valid_up_to()))
    })?;
    if text.trim_ascii().is_empty() {
        return Err(ApiError::body("invalid_json", "Request body is empty; expected a JSON object"));
    }
    let deep =
        |levels| ApiError::body("json_too_deep", format!("JSON is nested deeper than {levels} levels"));
    if too_deep(text.as_bytes(), SCHEMA_DEPTH) {
        return Err(deep(SCHEMA_DEPTH));
    }
    let hardly_deep = !too_deep(text.as_bytes(), DEPTH);
    // serde_json's own messages tell a line and a column, and repeat nothing of the text.
    let value = serde_json::from_str(&pair_surrogates(text))
        .map_err(|error| ApiError::body("invalid_json", format!("Invalid JSON: {error}")))?;
    match value {
        Value::Object(object) => {
            let plain = |(name, _): &(&String, &Value)| !SCHEMAS.contains(&name.as_str());
            if !hardly_deep && object.iter().filter(plain).any(|(_, value)| depth(value) >= DEPTH) {
                return Err(deep(DEPTH));
            }
            Ok(object)
        }
        other => {
            let message = format!("Expected a JSON object, got {}", kind(&other));
            Err(ApiError::body("invalid_type", message))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Levels of a value that is known not to be very deep.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn too_deep(text: &[u8], levels: usize) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                if depth > levels {
                    return true;
                }
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Replaces `\uD800`-style escapes that have no partner by `\uFFFD`: Python's `json` writes them for broken
/// text, and strict parsers refuse the whole body.
fn pair_surrogates(text: &str) -> Cow<'_, str> {
    if !text.contains("\\ud") && !text.contains("\\uD") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match escaped_unit(rest) {
            Some(0xd800..=0xdbff) if matches!(escaped_unit(&rest[6..]), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => {
                out.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            // The escaped character may be any; a malformed escape is the parser's to report.
            _ => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The UTF-16 unit of the `\uXXXX` that `text` begins with.
fn escaped_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.as_bytes().get(..4)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

// === JSON to types ===

/// A path into a JSON document.
type Path = Vec<Step>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Reads `T` and notes the paths that it does not know.
fn typed<T: DeserializeOwned>(object: &Value) -> Result<(T, Vec<Path>), ApiError> {
    let mut ignored = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let read =
        serde_ignored::deserialize(serde_path_to_error::Deserializer::new(object, &mut track), |path| {
            ignored.push(steps(&path))
        });
    match read {
        Ok(value) => {
            // Null is as good as nothing: SDKs that write their own objects out send every field that they know.
            ignored.retain(|path| !at(object, path).is_some_and(Value::is_null));
            Ok((value, ignored))
        }
        Err(error) => Err(mistyped(&track.path().to_string(), &error.to_string())),
    }
}

/// A value of the wrong type, or one that its type rejects.
fn mistyped(path: &str, reason: &str) -> ApiError {
    let code = if reason.starts_with("invalid type") { "invalid_type" } else { "invalid_value" };
    // Serde names our type.
    let object =
        reason.rsplit_once(", expected struct ").map(|(found, _)| format!("{found}, expected an object"));
    let reason = object.as_deref().unwrap_or(reason);
    // Serde quotes the value, which may be megabytes.
    ApiError::with_code(code, path, format!("{path}: {}", shortened(reason, 4 * QUOTED)))
}

fn at<'a>(object: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    })
}

fn stray(object: &Value, path: &[Step]) -> ApiError {
    let value = at(object, path).map(Value::to_string).unwrap_or_default();
    let field = shortened(&dotted(path), 4 * QUOTED).into_owned();
    let message =
        format!("Extra inputs are not permitted, field: '{field}', value: {}", shortened(&value, QUOTED));
    ApiError::with_code("unknown_parameter", field, message)
}

fn steps(path: &serde_ignored::Path<'_>) -> Path {
    use serde_ignored::Path as P;
    let (parent, step) = match path {
        P::Root => return Vec::new(),
        P::Seq { parent, index } => (parent, Some(Step::Index(*index))),
        P::Map { parent, key } => (parent, Some(Step::Key(key.clone()))),
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => (parent, None),
    };
    let mut steps = steps(parent);
    steps.extend(step);
    steps
}

/// Such as `messages[1].name`.
fn dotted(path: &[Step]) -> String {
    path.iter().fold(String::new(), |path, step| match step {
        Step::Key(key) if path.is_empty() => key.clone(),
        Step::Key(key) => format!("{path}.{key}"),
        Step::Index(index) => format!("{path}[{index}]"),
    })
}

/// At most `limit` bytes of `text`.
fn shortened(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", crate::http::json::split(text, limit).0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_surrogate_escapes_become_replacement_characters() {
        for (from, to) in [
            (r#""\ud83c\udf89""#, "🎉"),
            (r#""a\ud83cb""#, "a\u{fffd}b"),
            (r#""\udf89\ud83c""#, "\u{fffd}\u{fffd}"),
            (r#""\ud83c\ud83c\udf89""#, "\u{fffd}🎉"),
            (r#""\\ud83c""#, "\\ud83c"),
            (r#""\\\uD83C""#, "\\\u{fffd}"),
            (r#""\ud83c\n\"""#, "\u{fffd}\n\""),
        ] {
            assert_eq!(serde_json::from_str::<String>(&pair_surrogates(from)).unwrap(), to, "{from}");
        }
        assert_eq!(pair_surrogates(r#""\uD8"#), r#""\uD8"#);
        assert_eq!(pair_surrogates("\"\\ud83\u{e9}\\"), "\"\\ud83\u{e9}\\");
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        assert!(!too_deep("[".repeat(DEPTH).as_bytes(), DEPTH));
        assert!(too_deep("[".repeat(DEPTH + 1).as_bytes(), DEPTH));
        assert!(!too_deep(format!("\"\\\"{}\"", "[".repeat(1000)).as_bytes(), DEPTH));
        assert!(!too_deep("[]".repeat(1000).as_bytes(), DEPTH));
        let nested = |field: &str, levels: usize| {
            let value = "[".repeat(levels) + &"]".repeat(levels);
            object(format!("{{\"{field}\":{value}}}").as_bytes()).is_ok()
        };
        assert!(nested("metadata", DEPTH - 1) && !nested("metadata", DEPTH), "the body is a level itself");
        assert!(nested("tools", SCHEMA_DEPTH - 1) && !nested("tools", SCHEMA_DEPTH));
    }

    #[test]
    fn messages_never_repeat_a_large_value() {
        let error = stray(&serde_json::json!({"x": "é".repeat(5000)}), &[Step::Key("x".into())]);
        assert!(error.to_string().len() < 200, "{error}");
    }
}
