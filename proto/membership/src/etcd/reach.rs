//! Whether etcd answers, as the log tells it: a line when it stops, one now and then while it doesn't, a line when it
//! does again, however many views and leases notice, and however often.

use std::{
    error::Error as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::Error;

/// How long the log is silent about an etcd that still doesn't answer: whoever looks at a part that waits for it
/// sees why without reading far back.
const AGAIN: Duration = Duration::from_secs(60);

/// What all that talk to one etcd know together.
#[derive(Clone)]
pub(super) struct Reach {
    endpoints: Arc<str>,
    /// When it was last said that it doesn't answer; `None` while it does.
    lost: Arc<Mutex<Option<Instant>>>,
}

// === impl Reach ===

impl Reach {
    pub(super) fn new(endpoints: &[String]) -> Self {
        Self { endpoints: endpoints.join(",").into(), lost: Arc::default() }
    }

    /// It did not answer. Whether that is said.
    pub(super) fn lost(&self, error: &Error) -> bool {
        let why: &dyn std::fmt::Display = match error {
            Error::Unavailable(why) => why,
            other => other,
        };
        let (mut said, now) = (self.said(), Instant::now());
        let news = said.is_none_or(|said| now - said >= AGAIN);
        if news {
            let still = if said.replace(now).is_some() { "still " } else { "" };
            let endpoints = &self.endpoints;
            tracing::warn!("{still}cannot reach etcd at {endpoints}: {why}; going on with what is known");
        } else {
            tracing::debug!("cannot reach etcd at {}: {why}", self.endpoints);
        }
        news
    }

    /// It answered. Whether that is news.
    pub(super) fn found(&self) -> bool {
        let news = self.said().take().is_some();
        if news {
            tracing::info!("etcd at {} answers again", self.endpoints);
        }
        news
    }

    fn said(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is at the bottom of an error: of a refused connection the operating system's words, not the five layers
/// around them.
pub(super) fn cause(error: &etcd_client::Error) -> String {
    let etcd_client::Error::GRpcStatus(status) = error else { return error.to_string() };
    let mut source = status.source();
    while let Some(deeper) = source.and_then(|error| error.source()) {
        source = Some(deeper);
    }
    source.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_news_once_and_a_lasting_loss_once_a_minute() {
        let reach = Reach::new(&["http://a:1".into()]);
        let (other, error) = (reach.clone(), Error::Unavailable("refused".into()));
        assert!(!reach.found(), "nobody had missed it");
        assert!(reach.lost(&error) && !reach.lost(&error) && !other.lost(&error));
        assert!(other.found() && !reach.found());
        assert!(reach.lost(&error));
        for _ in 0..59 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!reach.lost(&error) && !other.lost(&error));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(other.lost(&error) && !reach.lost(&error));
    }

    #[tokio::test]
    async fn a_refused_connection_is_said_shortly() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut client = etcd_client::Client::connect([format!("http://{free}")], None).await.unwrap();
        let error = client.get("x", None).await.unwrap_err();
        let short = cause(&error);
        assert!(short.contains("refused") && short.len() < 60, "{short}");
    }
}
