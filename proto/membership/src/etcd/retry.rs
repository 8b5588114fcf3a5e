//! Every call to etcd has a deadline and a bounded number of tries: with one of three nodes down about a
//! quarter of the calls fail at once, and one that meets the loss of the leader hangs.

use std::{future::Future, time::Duration};

use super::reach::cause;
use crate::Error;

/// How long one try may take.
pub(super) const CALL: Duration = Duration::from_secs(2);
/// Tries of an operation.
const TRIES: u32 = 5;
/// Between the first two tries; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A pause that grows while things fail.
pub(super) struct Backoff(Duration);

/// Runs `call` until it succeeds; gives up after [`TRIES`]. A call must bear being repeated.
pub(super) async fn retry<T, F>(mut call: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    let mut backoff = Backoff::new();
    for _ in 1..TRIES {
        match once(call()).await {
            Ok(answer) => return Ok(answer),
            Err(error) => tracing::debug!(%error, "trying etcd again"),
        }
        backoff.pause().await;
    }
    once(call()).await
}

/// Runs `call` under the deadline.
pub(super) async fn once<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => answer.map_err(|e| Error::Unavailable(cause(&e))),
        Err(_) => Err(Error::Unavailable(format!("no answer within {CALL:?}"))),
    }
}

// === impl Backoff ===

impl Backoff {
    pub(super) fn new() -> Self {
        Self(MIN_PAUSE)
    }

    pub(super) fn reset(&mut self) {
        self.0 = MIN_PAUSE;
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(MAX_PAUSE);
    }
}
