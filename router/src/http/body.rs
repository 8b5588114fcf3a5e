//! Request bodies: read whole, within bounds of size and time, and decompressed.

use std::time::Duration;

use axum::{body::Body, extract::Request};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::{decode::Coding, error::ApiError};
use crate::config::Config;

/// The slowest body, bytes per second, beyond [`Config::client_timeout`].
const SLOWEST: u64 = 1024;
/// How much is still read of a body that was refused, bytes.
const DRAIN: u64 = 64 << 20;
/// And for how long.
const DRAIN_FOR: Duration = Duration::from_secs(10);

/// The body of `request`, within the bounds of `config`, compressed or not.
pub(crate) async fn read(request: Request, config: &Config) -> Result<Bytes, ApiError> {
    let (limit, idle) = (config.body_limit, config.client_timeout);
    let (parts, mut body) = request.into_parts();
    let read = match check(&parts.headers, &body, limit) {
        Ok(coding) => collect(&mut body, limit, idle).await.map(|bytes| (bytes, coding)),
        Err(refusal) => Err(refusal),
    };
    let (bytes, coding) = match read {
        Ok(read) => read,
        Err(refusal) => {
            discard(Request::from_parts(parts, body));
            return Err(refusal);
        }
    };
    let bytes = coding.decode(bytes, limit).await?;
    if is_form(&parts.headers) && !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::UnsupportedMediaType("expected application/json".into()));
    }
    Ok(bytes)
}

/// Reads on, within bounds, what a refused request still sends: many clients read no answer before they have
/// sent everything, and a connection closed over unread data loses the answer.
pub(crate) fn discard(request: Request) {
    // A client that asked first (`Expect: 100-continue`) hasn't sent anything; reading would tell it to.
    if !request.body().is_end_stream() && !request.headers().contains_key(header::EXPECT) {
        tokio::spawn(tokio::time::timeout(DRAIN_FOR, drain(request.into_body())));
    }
}

/// What the headers alone decide; nothing of the body was read, so no `100 Continue` was sent.
fn check(headers: &HeaderMap, body: &Body, limit: usize) -> Result<Coding, ApiError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let coding = Coding::of(headers)?;
    let Some(media) = media_type(headers) else { return Ok(coding) };
    let (essence, parameters) = media.split_once(';').unwrap_or((&media, ""));
    let charset = parameters.split(';').find_map(|one| one.trim().strip_prefix("charset="));
    let json = essence.trim() == "application/json" || essence.trim().ends_with("+json");
    // `fetch` and `curl -d` label JSON as these two unless told otherwise.
    let lenient = ["text/plain", "application/x-www-form-urlencoded"].contains(&essence.trim());
    let utf8 = charset.is_none_or(|name| ["utf-8", "utf8"].contains(&name.trim_matches('"')));
    if (json || lenient) && utf8 { Ok(coding) } else { Err(ApiError::UnsupportedMediaType(media)) }
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?;
    let text = String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase();
    (!text.is_empty()).then_some(text)
}

fn is_form(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media| media.starts_with("application/x-www-form-urlencoded"))
}

async fn collect(body: &mut Body, limit: usize, idle: Duration) -> Result<Bytes, ApiError> {
    let started = Instant::now();
    let mut bytes = BytesMut::new();
    loop {
        let pace = Duration::from_secs(bytes.len() as u64 / SLOWEST);
        let deadline = (Instant::now() + idle).min(started + idle + pace);
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(ApiError::BodyTimeout),
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Err(_))) => {
                return Err(ApiError::body("incomplete_body", "The request body was cut off"));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        bytes.extend_from_slice(&data);
    }
}

async fn drain(mut body: Body) {
    let mut left = DRAIN;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        if left == 0 {
            return;
        }
    }
}
