//! The endpoints. Each translates its own request to a [`Generation`] and deltas to its own answer.
//!
//! ```text
//!  body ─ parse ─▶ parameters + own fields ─ check ─▶ Settings + prompts ─┐
//!  answer ◀─ reply (in one piece, or Chunks over sse) ◀─ Deltas ◀─ engine ◀┘ generate
//! ```
//!
//! A file or a folder is one API and knows no other; what several do alike is in [`common`]. Routes: `http/edge.rs`.
//!
//! [`Generation`]: crate::generation::Generation

pub mod chat;
pub mod common;
pub mod completions;
pub(crate) mod health;
pub mod models;

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    engine::{Generate, Model, ModelError},
    http::{error::ApiError, limits::Limiter},
};

/// What every handler shares.
pub(crate) struct App<E> {
    pub config: Config,
    pub engine: Arc<E>,
    pub limiter: Limiter,
    pub metrics: PrometheusHandle,
    /// The server takes no new requests.
    pub draining: CancellationToken,
    /// The server waits no longer for streams to end.
    pub closing: CancellationToken,
}

/// The longest model id, bytes: each chunk of a stream repeats it.
const MODEL_ID: usize = 1024;

// === impl App ===

impl<E: Generate> App<E> {
    /// Refuses what comes while the server drains.
    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        if self.draining.is_cancelled() {
            let message = "the server is shutting down".into();
            return Err(ApiError::Unavailable { message, retry_after: Duration::from_secs(1) });
        }
        Ok(())
    }

    /// The model that a request's `model` means.
    pub(crate) async fn model(&self, requested: &str) -> Result<Arc<Model>, ApiError> {
        if requested.len() > MODEL_ID {
            return Err(ApiError::model(ModelError::NotFound, requested));
        }
        let mut error = ModelError::NotFound;
        for name in self.names(requested) {
            match self.engine.model(&name).await {
                Err(ModelError::NotFound) => {}
                Err(other) => error = other,
                Ok(model) => return Ok(model),
            }
        }
        Err(ApiError::model(error, requested))
    }

    /// The bare names that an id may stand for, the likeliest first. In lower case: names are the same in any.
    fn names(&self, requested: &str) -> Vec<String> {
        let account = self.config.account.to_ascii_lowercase();
        // `…#accounts/…/deployments/…` picks one of several deployments of a model; here they are one.
        let id = requested.split('#').next().unwrap_or(requested);
        let is = |from: &str| from.eq_ignore_ascii_case(requested) || from.eq_ignore_ascii_case(id);
        let alias = self.config.aliases.iter().find(|(from, _)| is(from));
        let id = alias.map_or(id, |(_, to)| to).to_ascii_lowercase();
        let id = id.as_str();
        let ours = id.strip_prefix("accounts/").unwrap_or(id).strip_prefix(&account);
        let ours = ours.and_then(|rest| rest.strip_prefix('/'));
        // `<account>/<name>` is Fireworks' shorthand; a whole id may be a name too: hub ids have a slash.
        let short = ours.map(|rest| rest.strip_prefix("models/").unwrap_or(rest));
        short.into_iter().chain([id]).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// The full id of a bare name.
    pub(crate) fn id(&self, name: &str) -> String {
        format!("accounts/{}/models/{name}", self.config.account)
    }
}
