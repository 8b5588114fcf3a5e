//! JSON as it goes out: one line, with the characters that some clients take for line ends escaped.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;

/// The most text in an event, bytes: escaped it may be six times as long, and old clients fail at long lines.
const PIECE: usize = 4 << 10;

/// Compact JSON in which U+0085, U+2028 and U+2029 are `\uXXXX`: valid JSON either way, but line readers such
/// as httpx-sse split an event there.
struct LineSafe;

impl Formatter for LineSafe {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        // All three begin with one of two bytes that plain text hardly has.
        while let Some(at) = rest.find(['\u{85}', '\u{2028}', '\u{2029}']) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let (escape, length): (&[u8], _) = match rest.as_bytes()[at..] {
                [0xc2, ..] => (b"\\u0085", 2),
                [_, _, 0xa8, ..] => (b"\\u2028", 3),
                _ => (b"\\u2029", 3),
            };
            writer.write_all(escape)?;
            rest = &rest[at + length..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Appends `value` to `out`.
pub(crate) fn write(out: impl Write, value: &impl Serialize) {
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(out, LineSafe));
    // Memory takes every write, and our own types have string keys and no failing serializers.
    debug_assert!(written.is_ok(), "{written:?}");
}

/// `value` as a string.
pub(crate) fn line(value: &impl Serialize) -> String {
    let mut out = Vec::with_capacity(256);
    write(&mut out, value);
    String::from_utf8(out).unwrap_or_default()
}

/// A number of seconds or a probability, as `f32` prints it; JSON has no infinities.
pub(crate) fn finite(value: f32) -> f32 {
    if value.is_finite() { value.max(-9999.0) } else { -9999.0 }
}

/// Splits `text` at a character's start, with at most `limit` bytes before it.
pub(crate) fn split(text: &str, limit: usize) -> (&str, &str) {
    let fits = |at: &usize| text.is_char_boundary(*at);
    text.split_at((0..=limit.min(text.len())).rev().find(fits).unwrap_or(0))
}

/// A text in pieces of an event each.
pub(crate) fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = split(text, PIECE);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_of_every_kind_are_escaped_and_nothing_else() {
        assert_eq!(
            line(&"a\u{85}b\u{2028}\u{2029}c\n\"\\é日🎉\u{7f}"),
            r#""a\u0085b\u2028\u2029c\n\"\\é日🎉"#.to_owned() + "\u{7f}\""
        );
        let text = "\u{85}\u{84}\u{2027}\u{202a}\u{2028}";
        assert_eq!(serde_json::from_str::<String>(&line(&text)).unwrap(), text);
        assert!(!line(&text).contains('\u{2028}'));
    }

    #[test]
    fn a_split_keeps_characters_whole() {
        assert_eq!(split("aé日", 2), ("a", "é日"));
        assert_eq!(split("aé日", 3), ("aé", "日"));
        assert_eq!(split("aé日", 100), ("aé日", ""));
    }

    #[test]
    fn probabilities_stay_numbers() {
        assert_eq!(finite(f32::NEG_INFINITY), -9999.0);
        assert_eq!(finite(f32::NAN), -9999.0);
        assert_eq!(line(&finite(-0.1)), "-0.1");
    }
}
