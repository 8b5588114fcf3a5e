//! Compressed request bodies. What they hold is bounded before it is there: a few bytes can claim to be gigabytes.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, header};
use ruzstd::decoding::StreamingDecoder;

use super::error::ApiError;

/// How much larger than its compressed form a body may be, once it is larger than [`PLAIN`]: JSON compresses by
/// ten or thirty, a bomb by a thousand.
const RATIO: usize = 200;
/// Bytes that may be any number of times larger than their compressed form.
const PLAIN: usize = 1 << 20;
/// The largest window of a zstd frame, which is memory that its decoder takes: HTTP's own bound (RFC 9659).
const WINDOW: u64 = 8 << 20;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
}

// === impl Coding ===

impl Coding {
    /// What the headers say.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Ok(Self::Identity) };
        let name = String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase();
        match (name.as_str(), values.next()) {
            ("identity" | "", None) => Ok(Self::Identity),
            ("gzip" | "x-gzip", None) => Ok(Self::Gzip),
            ("deflate", None) => Ok(Self::Deflate),
            ("zstd", None) => Ok(Self::Zstd),
            _ => Err(ApiError::UnsupportedMediaType(format!("content-encoding {name}"))),
        }
    }

    /// The body itself, of at most `limit` bytes. Off the async threads: it may take a while.
    pub(super) async fn decode(self, body: Bytes, limit: usize) -> Result<Bytes, ApiError> {
        if self == Self::Identity {
            return Ok(body);
        }
        match tokio::task::spawn_blocking(move || self.read(&body, limit)).await {
            Ok(read) => read,
            Err(panic) => Err(ApiError::Internal(panic.to_string())),
        }
    }

    fn read(self, body: &[u8], limit: usize) -> Result<Bytes, ApiError> {
        let limit = limit.min(PLAIN.max(body.len().saturating_mul(RATIO)));
        let mut out = Vec::new();
        let read = match self {
            Self::Identity => body.take(limit as u64 + 1).read_to_end(&mut out),
            Self::Gzip => MultiGzDecoder::new(body).take(limit as u64 + 1).read_to_end(&mut out),
            // By its definition in a zlib wrapper, which some clients leave away.
            Self::Deflate if is_zlib(body) => {
                ZlibDecoder::new(body).take(limit as u64 + 1).read_to_end(&mut out)
            }
            Self::Deflate => DeflateDecoder::new(body).take(limit as u64 + 1).read_to_end(&mut out),
            Self::Zstd => zstd(body, limit as u64 + 1, &mut out),
        };
        if out.len() > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        match read {
            Ok(_) => Ok(out.into()),
            Err(error) => {
                let message = format!("The body is not what its content-encoding says: {error}");
                Err(ApiError::body("invalid_encoding", message))
            }
        }
    }
}

/// RFC 1950: method 8, and a check of the first two bytes.
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [a, b, ..] if a & 15 == 8 && (usize::from(*a) << 8 | usize::from(*b)).is_multiple_of(31))
}

/// Reads all frames, up to `limit` bytes.
fn zstd(mut body: &[u8], limit: u64, out: &mut Vec<u8>) -> io::Result<usize> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    while !body.is_empty() && (out.len() as u64) < limit {
        if window(body).is_none_or(|window| window > WINDOW) {
            return Err(invalid(format!("a zstd frame with a window of at most {WINDOW} bytes is expected")));
        }
        let frame = StreamingDecoder::new(&mut body).map_err(|error| invalid(error.to_string()))?;
        frame.take(limit - out.len() as u64).read_to_end(out)?;
    }
    Ok(out.len())
}

/// The window of the frame that `body` begins with (RFC 8878, 3.1.1.1): of a single segment, its whole size.
fn window(body: &[u8]) -> Option<u64> {
    let rest = body.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (descriptor, rest) = rest.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let byte = u64::from(*rest.first()?);
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * (byte & 7));
    }
    let skipped = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut field = [0; 8];
    field[..size].copy_from_slice(rest.get(skipped..skipped + size)?);
    Some(u64::from_le_bytes(field) + if size == 2 { 256 } else { 0 })
}
