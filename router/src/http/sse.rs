//! Server-sent events: a response body that turns the deltas of a generation into events as they come.
//!
//! ```text
//!  Deltas ─ batch per step ─▶ EventStream ─ Events (the endpoint's chunks) ─▶ Outbox ─▶ one frame per event
//!                                 ├─ silence:  ": keep-alive" every 15 s, an empty chunk every 45 s
//!                                 ├─ the end:  "data: [DONE]", or as the endpoint has it
//!                                 └─ a fault:  an error event; the connection is cut, unless the event says all
//! ```
//!
//! Dropping it (the client is gone) drops the deltas, which cancels the generation.

use std::{
    collections::VecDeque,
    fmt::Display,
    io::Write,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    error::ApiError,
    exchange::{Exchange, Streamed},
};
use crate::{engine::Deltas, generation::Delta};

/// Silence after which a comment is sent; every third one is an empty chunk instead, because some clients'
/// timers ignore comments.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Between an error event and the cut: the event must have left by then.
const PARTING: Duration = Duration::from_millis(100);
/// A typical event, bytes.
const EVENT: usize = 512;

/// How an endpoint writes its stream.
pub(crate) trait Events: Send + Unpin + 'static {
    /// What comes before any text.
    fn open(&mut self, out: &mut Outbox);
    /// New output of one choice.
    fn delta(&mut self, delta: Delta, out: &mut Outbox);
    /// A chunk without content.
    fn silence(&mut self, out: &mut Outbox);
    /// Whether every choice has ended.
    fn complete(&self) -> bool;
    /// What comes after everything.
    fn end(&mut self, out: &mut Outbox) {
        out.literal("data: [DONE]\n\n");
    }
    /// Tells that there will be no more. Whether the connection must then be cut: true where a client could take
    /// what it has for the whole.
    fn fail(&mut self, error: &ApiError, out: &mut Outbox) -> bool {
        let event = format!("data: {}\n\n", error.envelope(None));
        out.ready.push_back(event.into());
        true
    }
}

/// Events that wait to be sent.
#[derive(Default)]
pub(crate) struct Outbox {
    buffer: BytesMut,
    ready: VecDeque<Bytes>,
}

/// The response body.
pub(crate) struct EventStream<E> {
    events: E,
    out: Outbox,
    state: State,
    last: Instant,
    alarm: Pin<Box<Sleep>>,
    /// Keep-alives in the present silence.
    silences: u32,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    exchange: Arc<Exchange>,
}

enum State {
    Open(Deltas),
    /// All is written.
    Ended,
    /// The error event is written; the connection is cut at the alarm.
    Parting,
}

/// The stream ended with an error event; the connection must not end as if it were whole.
#[derive(Debug, thiserror::Error)]
#[error("the stream failed")]
struct Cut;

// === impl Outbox ===

impl Outbox {
    /// Writes `data: <json>`.
    pub(crate) fn event(&mut self, value: &impl Serialize) {
        self.buffer.reserve(EVENT);
        self.buffer.put_slice(b"data: ");
        crate::http::json::write((&mut self.buffer).writer(), value);
        self.buffer.put_slice(b"\n\n");
        self.ready.push_back(self.buffer.split().freeze());
    }

    /// Writes the `id` of the event that is written next.
    pub(crate) fn id(&mut self, id: &impl Display) {
        let _ = writeln!((&mut self.buffer).writer(), "id: {id}"); // a buffer in memory takes it
    }

    /// Writes `event: <name>` above JSON that is written already.
    pub(crate) fn raw(&mut self, name: &str, json: &str) {
        self.ready.push_back(format!("event: {name}\ndata: {json}\n\n").into());
    }

    /// Writes `event: <name>` above `data: <json>`.
    pub(crate) fn named(&mut self, name: &str, value: &impl Serialize) {
        self.buffer.put_slice(b"event: ");
        self.buffer.put_slice(name.as_bytes());
        self.buffer.put_slice(b"\n");
        self.event(value);
    }

    fn literal(&mut self, event: &'static str) {
        self.ready.push_back(Bytes::from_static(event.as_bytes()));
    }
}

// === impl EventStream ===

impl<E: Events> EventStream<E> {
    /// `closing` fires when the server can wait no longer for streams to end.
    pub(crate) fn new(
        mut events: E,
        deltas: Deltas,
        closing: CancellationToken,
        exchange: Arc<Exchange>,
    ) -> Self {
        let mut out = Outbox::default();
        events.open(&mut out);
        Self {
            events,
            out,
            state: State::Open(deltas),
            last: Instant::now(),
            alarm: Box::pin(tokio::time::sleep(KEEP_ALIVE)),
            silences: 0,
            closing: Box::pin(closing.cancelled_owned()),
            exchange,
        }
    }

    /// The response that carries it.
    pub(crate) fn into_response(self) -> Response {
        let mut response = Response::new(Body::new(self));
        *response.status_mut() = StatusCode::OK;
        response.extensions_mut().insert(Streamed);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    fn batch(&mut self, batch: Vec<Delta>) {
        for delta in batch {
            self.exchange.generated(delta.finish.map_or(0, |finish| finish.completion_tokens.into()));
            self.events.delta(delta, &mut self.out);
        }
        self.last = Instant::now();
        self.silences = 0;
        if self.events.complete() {
            self.events.end(&mut self.out);
            self.state = State::Ended;
            self.exchange.finish(StatusCode::OK);
        }
    }

    fn fail(&mut self, error: ApiError) {
        match error {
            ApiError::Deadline => tracing::info!("a stream ended: its client's time is over"),
            _ => tracing::warn!(%error, "a stream failed"),
        }
        self.end_early(error);
    }

    fn end_early(&mut self, error: ApiError) {
        self.state = State::Ended;
        if self.events.fail(&error, &mut self.out) {
            self.state = State::Parting;
            self.alarm.as_mut().reset(Instant::now() + PARTING);
        }
        self.exchange.fail(&error);
    }

    /// Waits for the next output, or for the silence to become too long; writes what comes.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Open(deltas) = &mut self.state else { return Poll::Ready(()) };
        match Pin::new(deltas).poll_next(cx) {
            Poll::Ready(Some(Ok(batch))) => self.batch(batch),
            Poll::Ready(Some(Err(error))) => self.fail(error.into()),
            Poll::Ready(None) => self.fail(ApiError::Internal("the output ended early".into())),
            Poll::Pending if self.closing.as_mut().poll(cx).is_ready() => {
                let message = "the server is shutting down".into();
                self.end_early(ApiError::Unavailable { message, retry_after: Duration::from_secs(1) });
            }
            Poll::Pending => {
                ready!(self.alarm.as_mut().poll(cx));
                self.keep_alive();
            }
        }
        Poll::Ready(())
    }

    /// The alarm rang; it isn't reset at every event, so the silence may be younger than it says.
    fn keep_alive(&mut self) {
        let due = self.last + KEEP_ALIVE * (self.silences + 1);
        if Instant::now() >= due {
            self.silences += 1;
            if self.silences.is_multiple_of(3) {
                self.events.silence(&mut self.out);
            } else {
                self.out.literal(": keep-alive\n\n");
            }
        }
        self.alarm.as_mut().reset(self.last + KEEP_ALIVE * (self.silences + 1));
    }
}

impl<E: Events> http_body::Body for EventStream<E> {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.out.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(event))));
            }
            match this.state {
                State::Open(_) => ready!(this.poll_output(cx)),
                State::Ended => return Poll::Ready(None),
                State::Parting => {
                    ready!(this.alarm.as_mut().poll(cx));
                    this.state = State::Ended;
                    return Poll::Ready(Some(Err(Box::new(Cut))));
                }
            }
        }
    }
}
