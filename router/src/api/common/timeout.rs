//! How long a client has use for an answer: a header, as an extension that no SDK trips over.
//!
//! The time is over for whatever the answer waits for: in the router for a worker, in a scheduler's queue, or in the
//! middle of its text.

use std::time::{Duration, Instant};

use http::HeaderMap;

use crate::http::error::ApiError;

const NAME: &str = "x-volley-timeout-ms";
/// Milliseconds of a day.
const MAX: u64 = 86_400_000;

/// When the time of a request with these headers is over, which came `elapsed` ago; if it has a time.
pub(crate) fn deadline(headers: &HeaderMap, elapsed: Duration) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    let millis = value.to_str().ok().and_then(|value| value.parse().ok());
    let Some(millis) = millis.filter(|millis| (1..=MAX).contains(millis)) else {
        return Err(ApiError::value(NAME, format!("{NAME} must be a whole number from 1 to {MAX}")));
    };
    let left = Duration::from_millis(millis).saturating_sub(elapsed);
    // The runtime's clock: tests pause it.
    Ok(Some(tokio::time::Instant::now().into_std() + left))
}
