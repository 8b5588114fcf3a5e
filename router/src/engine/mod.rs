//! What the APIs ask for, [`Generate`], and the [`Engine`] that does it by way of the schedulers.
//!
//! ```text
//!  api ─ model(name) ─▶ Model: template, tokens        (off the async threads)
//!      ─ start(generation) ─▶ Deltas: text, per step   (dropping it cancels)
//!
//!  dispatch: which link, moves, slow clients ─ request: one prompt's log ─▶ link ══▶ a scheduler
//!  cluster: links and models   artefacts: a model's files   supervise: keeps the links up
//! ```

mod artefacts;
mod cluster;
mod dispatch;
mod link;
pub mod request;
mod supervise;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt, stream::BoxStream};
use volley_proto::v1::ModelCard;

pub use self::dispatch::{Engine, EngineConfig};
pub use crate::text::model::{ChatOptions, GrammarError, Model, Rendered, Special, TextError};

use crate::generation::{Delta, Generation};

/// Makes text. The engine does by way of the schedulers; the HTTP tests use a scripted one.
pub trait Generate: Send + Sync + 'static {
    /// The models that some scheduler serves now, by name; one card per name.
    fn models(&self) -> Vec<Arc<ModelCard>>;

    /// The model of a bare name (in any case), with its tokenizer and template: fetched on first use, then cached by hash.
    fn model(&self, name: &str) -> impl Future<Output = Result<Arc<Model>, ModelError>> + Send;

    /// Starts a generation. Resolves once it is admitted: with the first output of the scheduler, or its
    /// refusal. Dropping the future cancels, as dropping the [`Deltas`] does.
    fn start(
        &self,
        model: Arc<Model>,
        generation: Generation,
    ) -> impl Future<Output = Result<Deltas, StartError>> + Send;
}

/// The output of a generation: a batch per worker step, never an empty one; ends after every choice's
/// [`crate::generation::Finish`], or with an error. Dropping it cancels what still runs.
pub struct Deltas {
    batches: BoxStream<'static, Result<Vec<Delta>, StreamError>>,
}

/// Why a model can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No scheduler has ever named it.
    #[error("no such model")]
    NotFound,
    /// It is known, or none is yet, but nothing serves it at the moment.
    #[error("the model is not ready")]
    NotReady {
        /// When to ask again.
        retry_after: Duration,
    },
    /// Its tokenizer or template can't be used: says what is wrong.
    #[error("the model is unusable: {0}")]
    Invalid(String),
}

/// Why a generation did not start. No output exists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A queue is full. 503 (or 429), try again.
    #[error("overloaded: {message}")]
    Overloaded {
        /// What was full.
        message: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// Nothing serves the model now, or what did went away too often. 503, try again.
    #[error("no worker can take the request: {message}")]
    Unavailable {
        /// What was missing.
        message: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// It can never fit. 400.
    #[error("{0}")]
    TooLarge(String),
    /// Its deadline passed. 504.
    #[error("the deadline passed")]
    Deadline,
    /// A fault in the cluster. 500.
    #[error("{0}")]
    Internal(String),
}

/// Why a started stream ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// What ran it went away, and it could not move (again).
    #[error("the generation was lost: {0}")]
    Lost(String),
    /// The client did not read for too long.
    #[error("the client was too slow")]
    SlowClient,
    /// Its deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// A fault in the cluster.
    #[error("{0}")]
    Internal(String),
}

// === impl StreamError ===

impl From<StartError> for StreamError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Deadline => Self::Deadline,
            StartError::Internal(message) => Self::Internal(message),
            StartError::Overloaded { message, .. }
            | StartError::Unavailable { message, .. }
            | StartError::TooLarge(message) => Self::Lost(message),
        }
    }
}

// === impl Deltas ===

impl Deltas {
    /// Wraps a stream of batches; what cancels must be owned by the stream, so that it is dropped with it.
    pub fn new(batches: impl Stream<Item = Result<Vec<Delta>, StreamError>> + Send + 'static) -> Self {
        Self { batches: batches.boxed() }
    }
}

impl Stream for Deltas {
    type Item = Result<Vec<Delta>, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(cx)
    }
}
