//! One router's stream. Its outbox is bounded: when it is full the link breaks, and the router moves its
//! requests. Whatever breaks the link cancels its sequences.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};
use volley_proto::{
    transport::why,
    v1::{self, router_message, scheduler_message::Message},
};

use crate::{
    core::types::LinkId,
    front::{Clock, FromLink},
    submission::Assembler,
    telemetry,
};

/// Messages that may wait for a router. One comes per worker step, so a router that is a thousand steps
/// behind has stopped reading.
const OUTBOX: usize = 1024;

/// The sending side, shared by the front and the runners.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    outbox: mpsc::Sender<v1::SchedulerMessage>,
    closed: CancellationToken,
}

/// What gRPC sends to the router. Breaks the link when dropped, and ends when it is broken.
pub(crate) struct Outgoing {
    messages: mpsc::Receiver<v1::SchedulerMessage>,
    broken: Pin<Box<dyn Future<Output = ()> + Send>>,
    _close: DropGuard,
}

// === impl Link ===

impl Link {
    /// A link that ends with `stop`, or by itself.
    pub(crate) fn new(id: LinkId, stop: &CancellationToken) -> (Arc<Self>, Outgoing) {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let closed = stop.child_token();
        let outgoing = Outgoing {
            messages,
            broken: Box::pin(closed.clone().cancelled_owned()),
            _close: closed.clone().drop_guard(),
        };
        (Arc::new(Self { id, outbox, closed }), outgoing)
    }

    /// Sends a message, or breaks the link if the router doesn't keep up.
    pub(crate) fn send(&self, message: Message) {
        if let Err(error) = self.outbox.try_send(v1::SchedulerMessage { message: Some(message) }) {
            if matches!(error, mpsc::error::TrySendError::Full(_)) && !self.closed.is_cancelled() {
                tracing::warn!(link = self.id.0, "a router is {OUTBOX} messages behind; its link is broken");
            }
            self.closed.cancel();
        }
    }

    /// Sends what sequences have to say.
    pub(crate) fn report(&self, sequences: Vec<v1::SequenceOutput>) {
        for failure in sequences.iter().filter_map(|output| output.failure.as_ref()) {
            telemetry::failed(failure.reason());
        }
        self.send(Message::Output(v1::StepOutput { sequences }));
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

/// Reads what a router says until the link breaks, and tells the front.
pub(crate) async fn read(
    link: Arc<Link>,
    mut messages: Streaming<v1::RouterMessage>,
    front: mpsc::Sender<FromLink>,
    clock: Clock,
) {
    let id = link.id;
    let mut assembler = Assembler::default();
    loop {
        let message = tokio::select! {
            () = link.closed.cancelled() => break,
            message = messages.message() => message,
        };
        let message = match message {
            Ok(Some(message)) => message.message,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(link = id.0, error = why(&error), "a router's link broke");
                break;
            }
        };
        let event = match message {
            Some(router_message::Message::Submit(chunk)) => match assembler.add(chunk) {
                Ok(submission) => {
                    submission.map(|submission| FromLink::Submit(submission.sequences(id, clock.now())))
                }
                Err(error) => {
                    tracing::warn!(link = id.0, %error, "a router's link is broken");
                    break;
                }
            },
            Some(router_message::Message::Cancel(cancel)) => {
                assembler.forget(cancel.request);
                Some(FromLink::Cancel(id, cancel))
            }
            Some(router_message::Message::Hello(hello)) => {
                tracing::info!(link = id.0, router = hello.router_id, protocol = hello.protocol, "a router");
                None
            }
            None => None, // A newer router's message.
        };
        if let Some(event) = event
            && front.send(event).await.is_err()
        {
            break;
        }
    }
    link.closed.cancel();
    // The front is gone only when the whole scheduler is.
    let _ = front.send(FromLink::Down(id)).await;
}

// === impl Outgoing ===

impl Stream for Outgoing {
    type Item = Result<v1::SchedulerMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        // A broken link ends at once: what is still in the outbox would only be answered twice.
        if this.broken.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        this.messages.poll_recv(cx).map(|message| message.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_router_that_does_not_read_loses_its_link() {
        let (link, mut outgoing) = Link::new(LinkId(1), &CancellationToken::new());
        for _ in 0..OUTBOX {
            link.report(Vec::new());
        }
        assert!(!link.is_closed());
        link.report(Vec::new());
        assert!(link.is_closed());
        assert!(outgoing.next().await.is_none(), "what is left isn't sent");
    }

    #[tokio::test]
    async fn a_link_is_closed_when_its_router_is_gone_or_the_scheduler_stops() {
        let stop = CancellationToken::new();
        let ((gone, outgoing), (stopped, _outgoing)) =
            (Link::new(LinkId(1), &stop), Link::new(LinkId(2), &stop));
        drop(outgoing);
        assert!(gone.is_closed() && !stopped.is_closed());
        stop.cancel();
        assert!(stopped.is_closed());
    }
}
