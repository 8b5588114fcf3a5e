//! Log-probabilities in their two formats.

use std::{borrow::Cow, fmt::Write};

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::parameters::LogprobsFormat;
use crate::{generation::Token, http::json::finite};

/// The tokens of an answer or of a chunk, in the format that was asked for.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    format: LogprobsFormat,
    tokens: &'a [Token],
}

/// `{content: […], refusal: null}`.
#[derive(Serialize)]
struct Content<'a> {
    content: Vec<Entry<'a>>,
    refusal: (),
}

#[derive(Serialize)]
struct Entry<'a> {
    token: Cow<'a, str>,
    logprob: Option<f32>,
    bytes: &'a [u8],
    top_logprobs: Vec<Alternative<'a>>,
    token_id: u32,
    text_offset: u32,
}

#[derive(Serialize)]
struct Alternative<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
    token_id: u32,
}

/// Parallel lists.
#[derive(Serialize)]
struct Legacy<'a> {
    tokens: Vec<Cow<'a, str>>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Best<'a>>>,
    text_offset: Vec<u32>,
    token_ids: Vec<u32>,
}

/// `{token: logprob}`: the alternatives, and always the token itself.
struct Best<'a>(&'a Token);

// === impl View ===

impl<'a> View<'a> {
    /// `None` unless the request asked.
    pub(crate) fn new(format: Option<LogprobsFormat>, tokens: &'a [Token]) -> Option<Self> {
        format.map(|format| Self { format, tokens })
    }
}

impl Serialize for View<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokens = self.tokens;
        match self.format {
            LogprobsFormat::Content => {
                Content { content: tokens.iter().map(Entry::new).collect(), refusal: () }
                    .serialize(serializer)
            }
            LogprobsFormat::Legacy => Legacy {
                tokens: tokens.iter().map(|token| name(&token.bytes, "bytes:")).collect(),
                token_logprobs: tokens.iter().map(|token| token.logprob.map(finite)).collect(),
                top_logprobs: tokens.iter().map(|token| token.logprob.map(|_| Best(token))).collect(),
                text_offset: tokens.iter().map(|token| token.text_offset).collect(),
                token_ids: tokens.iter().map(|token| token.id).collect(),
            }
            .serialize(serializer),
        }
    }
}

impl<'a> Entry<'a> {
    fn new(token: &'a Token) -> Self {
        let alternative = |(id, bytes, logprob): &'a (u32, Vec<u8>, f32)| Alternative {
            token: name(bytes, ""),
            logprob: finite(*logprob),
            bytes,
            token_id: *id,
        };
        Self {
            token: name(&token.bytes, ""),
            logprob: token.logprob.map(finite),
            bytes: &token.bytes,
            top_logprobs: token.top.iter().map(alternative).collect(),
            token_id: token.id,
            text_offset: token.text_offset,
        }
    }
}

impl Serialize for Best<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Token { id, bytes, logprob, top, .. } = self.0;
        let own = logprob.filter(|_| top.iter().all(|(other, ..)| other != id));
        let all = top.iter().map(|(_, bytes, logprob)| (bytes, *logprob)).chain(own.map(|own| (bytes, own)));
        let mut map = serializer.serialize_map(None)?;
        for (bytes, logprob) in all {
            map.serialize_entry(&name(bytes, "bytes:"), &finite(logprob))?;
        }
        map.end()
    }
}

/// A token's text; a part of a character is spelled out as OpenAI does, so that different ones stay different.
fn name<'a>(bytes: &'a [u8], prefix: &str) -> Cow<'a, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut spelled = prefix.to_owned();
    for byte in bytes {
        let _ = write!(spelled, "\\x{byte:02x}");
    }
    Cow::Owned(spelled)
}

/// An upper bound of a token's JSON in either format, bytes.
pub(crate) fn size(token: &Token) -> usize {
    // A byte is at most six in the text and four in the list; the rest are names and numbers.
    let one = |bytes: &Vec<u8>| 120 + 10 * bytes.len();
    one(&token.bytes) + token.top.iter().map(|(_, bytes, _)| one(bytes)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::line;

    fn token(id: u32, bytes: &[u8], logprob: Option<f32>, top: &[(u32, &[u8], f32)]) -> Token {
        let top = top.iter().map(|(id, bytes, logprob)| (*id, bytes.to_vec(), *logprob)).collect();
        Token { id, bytes: bytes.to_vec(), text_offset: 7, echoed: false, logprob, top }
    }

    #[test]
    fn the_content_format_has_every_key_that_typed_clients_require() {
        let tokens = [token(3, b"a", Some(-0.1), &[(3, b"a", -0.1), (4, b"\xe2\x80", f32::NEG_INFINITY)])];
        assert_eq!(
            line(&View::new(Some(LogprobsFormat::Content), &tokens)),
            r#"{"content":[{"token":"a","logprob":-0.1,"bytes":[97],"top_logprobs":[{"token":"a","logprob":-0.1,"bytes":[97],"token_id":3},{"token":"\\xe2\\x80","logprob":-9999.0,"bytes":[226,128],"token_id":4}],"token_id":3,"text_offset":7}],"refusal":null}"#
        );
    }

    #[test]
    fn the_legacy_format_always_has_the_sampled_token_and_no_logprob_for_the_first() {
        let tokens = [
            token(3, b"a", None, &[]),
            token(5, b"\xe2", Some(-2.5), &[(3, b"a", -0.1)]),
            token(6, b"b", Some(-1.0), &[]),
        ];
        assert_eq!(
            line(&View::new(Some(LogprobsFormat::Legacy), &tokens)),
            r#"{"tokens":["a","bytes:\\xe2","b"],"token_logprobs":[null,-2.5,-1.0],"top_logprobs":[null,{"a":-0.1,"bytes:\\xe2":-2.5},{"b":-1.0}],"text_offset":[7,7,7],"token_ids":[3,5,6]}"#
        );
    }

    #[test]
    fn a_size_bounds_the_json() {
        let long = vec![1u8; 128];
        let token = token(u32::MAX, &long, Some(-0.123_456_79), &[(u32::MAX, &long[..], -9999.0); 20]);
        for format in [LogprobsFormat::Content, LogprobsFormat::Legacy] {
            let json = line(&View::new(Some(format), std::slice::from_ref(&token)));
            assert!(json.len() <= size(&token) + 128, "{} > {}", json.len(), size(&token));
        }
    }
}
