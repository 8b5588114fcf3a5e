//! The parts of one process, as tasks: each with its own stop, so that they can be drained in order.

use std::{fmt::Display, future::Future};

use futures::future::select_all;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Error;

/// Running parts, in the order in which they are to be stopped.
#[derive(Default)]
pub(super) struct Parts {
    parts: Vec<Part>,
}

struct Part {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<Result<(), String>>,
}

// === impl Parts ===

impl Parts {
    /// Runs a part until its token is cancelled.
    pub(super) fn start<F, E>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let stop = CancellationToken::new();
        let running = part(stop.clone());
        let task = tokio::spawn(async move { running.await.map_err(|e| e.to_string()) });
        self.parts.push(Part { name, stop, task });
    }

    /// Resolves when a part ends although nobody stopped it. The others still run. Cancel-safe.
    pub(super) async fn failure(&mut self) -> Error {
        if self.parts.is_empty() {
            std::future::pending::<()>().await;
        }
        let (ended, index, _) = select_all(self.parts.iter_mut().map(|part| &mut part.task)).await;
        let part = self.parts.remove(index).name;
        let reason = match ended {
            Ok(Ok(())) => None,
            Ok(Err(reason)) => Some(reason),
            Err(panic) => Some(panic.to_string()),
        };
        Error::Ended { part, reason }
    }

    /// Stops the parts one after the other, each when the one before has ended.
    pub(super) async fn stop(self) {
        for Part { name, stop, task } in self.parts {
            stop.cancel();
            match task.await {
                Ok(Ok(())) => tracing::debug!(part = name, "ended"),
                Ok(Err(reason)) => tracing::warn!(part = name, reason, "ended badly"),
                Err(panic) => tracing::error!(part = name, %panic, "ended badly"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn parts_stop_in_order_and_a_part_that_ends_by_itself_is_named() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut parts = Parts::default();
        for name in ["first", "second"] {
            let order = order.clone();
            parts.start(name, move |stop| async move {
                stop.cancelled().await;
                order.lock().unwrap().push(name);
                Ok::<_, Error>(())
            });
        }
        parts.start("third", |_| async { Err("broken") });
        let failure = parts.failure().await.to_string();
        assert_eq!(failure, "the third ended unexpectedly: broken");
        parts.stop().await;
        assert_eq!(*order.lock().unwrap(), ["first", "second"]);
    }
}
