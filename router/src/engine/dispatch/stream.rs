//! A generation as its client has it: batches of deltas, and the end of all that runs for it when nobody reads on.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use futures::Stream;
use tokio::sync::mpsc;

use super::Shared;
use crate::{
    engine::{StartError, StreamError},
    generation::Delta,
};

/// The stream behind a [`Deltas`](crate::engine::Deltas).
pub(super) struct Running {
    pub(super) batches: mpsc::Receiver<Result<Vec<Delta>, StartError>>,
    /// What [`Generate::start`](crate::engine::Generate::start) took to see whether the generation was admitted.
    pub(super) first: Option<Vec<Delta>>,
    pub(super) failure: Arc<OnceLock<StreamError>>,
    /// Choices that have not finished.
    pub(super) unfinished: u32,
    pub(super) guard: Guard,
}

/// Cancels what is left of a generation.
pub(super) struct Guard {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: Vec<u64>,
}

// === impl Running ===

impl Stream for Running {
    type Item = Result<Vec<Delta>, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while self.unfinished > 0 {
            let batch = match self.first.take() {
                Some(batch) => Ok(batch),
                None => match ready!(self.batches.poll_recv(cx)) {
                    Some(batch) => batch.map_err(StreamError::from),
                    None => Err(self.failure.get().cloned().unwrap_or_else(|| {
                        StreamError::Internal("the request ended without a finish".to_owned())
                    })),
                },
            };
            match &batch {
                Ok(deltas) if deltas.is_empty() => continue,
                Ok(deltas) => {
                    let finished = deltas.iter().filter(|delta| delta.finish.is_some()).count();
                    self.unfinished -= finished as u32;
                }
                Err(_) => {
                    self.unfinished = 0;
                    self.guard.cancel();
                }
            }
            return Poll::Ready(Some(batch));
        }
        Poll::Ready(None)
    }
}

// === impl Guard ===

impl Guard {
    fn cancel(&mut self) {
        for id in self.requests.drain(..) {
            self.shared.table.end(id);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.cancel();
    }
}
