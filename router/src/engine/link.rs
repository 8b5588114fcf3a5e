//! One bidirectional stream to one scheduler: submissions and cancels go up, step outputs come down.
//!
//! ```text
//!  submit ─▶ bounded queue ─▶ chunks, in turn ─────┐
//!                                                  ├─▶ Serve ═▶ scheduler
//!  cancel ─▶ bounded queue ─▶ always first ────────┘     ║
//!            text thread ◀─ bounded queue ◀─ read ◀══════╝
//! ```

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};
use volley_proto::{
    MAX_MESSAGE, PROTOCOL,
    transport::Transport,
    v1::{
        Cancel, Load, ModelCard, RouterHello, RouterMessage, SchedulerMessage, StepOutput, Submission,
        Submit, router_message, scheduler_client::SchedulerClient, scheduler_message,
    },
};

use super::request::{Order, Place};

/// Prompt tokens in one message: what a cancel may have to wait for.
const CHUNK_TOKENS: usize = 16 << 10;
/// Submissions that share the wire, a chunk each in turn; the scheduler keeps them all until they are whole.
const INTERLEAVED: usize = 8;
/// Requests, and their prompt tokens, that wait to be sent.
const QUEUED_REQUESTS: usize = 4096;
const QUEUED_TOKENS: usize = 16 << 20;
/// Cancels that wait to be sent; when more do, the peer reads nothing and the link breaks.
const QUEUED_CANCELS: usize = 16 << 10;
/// For a scheduler's first word.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A live link. It breaks once and is never mended: a new connection is a new link.
pub(crate) struct Link {
    /// The scheduler's id.
    pub(crate) scheduler: String,
    /// For the scheduler's other calls.
    pub(crate) client: SchedulerClient<Channel>,
    submissions: mpsc::Sender<Order>,
    cancels: mpsc::Sender<CancelOrder>,
    queued_tokens: Arc<AtomicUsize>,
    broken: CancellationToken,
    report: Mutex<Report>,
    /// Requests sent since the last load report.
    sent: AtomicU64,
}

/// What the scheduler said last.
#[derive(Default)]
struct Report {
    cards: Vec<Arc<ModelCard>>,
    /// Counts the lists of models.
    lists: u64,
    load: Load,
}

/// Cancels what was submitted with this attempt or an older one.
struct CancelOrder {
    request: u64,
    attempt: u32,
    choice: Option<u32>,
}

/// Why a link could not be opened, or broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Connect(#[from] volley_proto::transport::ConnectError),
    #[error("{}", volley_proto::transport::why(.0))]
    Status(#[from] Box<tonic::Status>),
    #[error("the scheduler did not say hello")]
    NoHello,
    #[error("broken off: shutting down, or too many cancels wait")]
    BrokenOff,
    #[error("no thread for its text: {0}")]
    NoThread(std::io::Error),
    #[error("the scheduler closed the stream")]
    Closed,
}

/// What waits to be sent.
struct Outbox {
    hello: Option<RouterHello>,
    submissions: mpsc::Receiver<Order>,
    cancels: mpsc::Receiver<CancelOrder>,
    sending: VecDeque<Sending>,
    queued_tokens: Arc<AtomicUsize>,
}

/// A submission of which `sent` prompt tokens are on the wire.
struct Sending {
    order: Order,
    header: Option<Submission>,
    sent: usize,
}

// === impl Link ===

impl Link {
    /// Connects and shakes hands.
    pub(crate) async fn open(
        transport: &Transport,
        address: &str,
        router_id: String,
        shutdown: &CancellationToken,
    ) -> Result<(Arc<Self>, Streaming<SchedulerMessage>), LinkError> {
        let mut client = SchedulerClient::new(transport.connect(address).await?)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let (submissions, submitted) = mpsc::channel(QUEUED_REQUESTS);
        let (cancels, cancelled) = mpsc::channel(QUEUED_CANCELS);
        let queued_tokens = Arc::new(AtomicUsize::new(0));
        let outbox = Outbox {
            hello: Some(RouterHello { protocol: PROTOCOL, router_id }),
            submissions: submitted,
            cancels: cancelled,
            sending: VecDeque::new(),
            queued_tokens: queued_tokens.clone(),
        };
        let hello = async {
            let mut inbound = client.serve(outbox.messages()).await.map_err(Box::new)?.into_inner();
            let first = inbound.message().await.map_err(Box::new)?.and_then(|message| message.message);
            match first {
                Some(scheduler_message::Message::Hello(hello)) => Ok((hello, inbound)),
                _ => Err(LinkError::NoHello),
            }
        };
        let (hello, inbound) = timeout(HELLO_TIMEOUT, hello).await.map_err(|_| LinkError::NoHello)??;
        let link = Self {
            scheduler: hello.scheduler_id,
            client,
            submissions,
            cancels,
            queued_tokens,
            broken: shutdown.child_token(),
            report: Mutex::default(),
            sent: AtomicU64::new(0),
        };
        Ok((Arc::new(link), inbound))
    }

    /// Reads until the link breaks. Step outputs go to `batches`; `models_changed` is called after every new
    /// list of models.
    ///
    /// The link is broken off before `batches` ends: whoever moves what was on it then finds it taking nothing more.
    pub(crate) async fn read(
        &self,
        mut inbound: impl Stream<Item = Result<SchedulerMessage, tonic::Status>> + Unpin,
        batches: mpsc::Sender<StepOutput>,
        models_changed: impl Fn(),
    ) -> LinkError {
        let error = self.hear(&mut inbound, &batches, models_changed).await;
        self.break_off();
        error
    }

    async fn hear(
        &self,
        inbound: &mut (impl Stream<Item = Result<SchedulerMessage, tonic::Status>> + Unpin),
        batches: &mpsc::Sender<StepOutput>,
        models_changed: impl Fn(),
    ) -> LinkError {
        loop {
            let message = tokio::select! {
                () = self.broken.cancelled() => return LinkError::BrokenOff,
                message = inbound.next() => message,
            };
            let message = match message {
                Some(Ok(message)) => message.message,
                None => return LinkError::Closed,
                Some(Err(status)) => return LinkError::Status(Box::new(status)),
            };
            match message {
                Some(scheduler_message::Message::Output(output)) => {
                    if batches.send(output).await.is_err() {
                        return LinkError::Closed;
                    }
                }
                Some(scheduler_message::Message::Models(models)) => {
                    let mut report = self.report();
                    report.cards = models.cards.into_iter().map(Arc::new).collect();
                    report.lists += 1;
                    drop(report);
                    models_changed();
                }
                Some(scheduler_message::Message::Load(load)) => {
                    self.sent.store(0, Ordering::Relaxed);
                    self.report().load = load;
                }
                Some(scheduler_message::Message::Hello(_)) | None => {}
            }
        }
    }

    /// Takes no more, and ends [`Link::read`].
    pub(crate) fn break_off(&self) {
        self.broken.cancel();
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_cancelled()
    }

    /// The models that the scheduler serves.
    pub(crate) fn cards(&self) -> Vec<Arc<ModelCard>> {
        self.report().cards.clone()
    }

    pub(crate) fn serves(&self, hash: &str) -> bool {
        self.report().cards.iter().any(|card| card.hash == hash)
    }

    /// How busy the scheduler is: what waits there, then what runs.
    pub(crate) fn load(&self) -> (u64, u32) {
        let report = self.report();
        (u64::from(report.load.waiting) + self.sent.load(Ordering::Relaxed), report.load.running)
    }

    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place for Arc<Link> {
    fn submit(&self, order: Order) -> bool {
        let tokens = order.prompt.len();
        let before = self.queued_tokens.fetch_add(tokens, Ordering::Relaxed);
        let full = before > 0 && before.saturating_add(tokens) > QUEUED_TOKENS;
        let queued = !full && !self.is_broken() && self.submissions.try_send(order).is_ok();
        if queued {
            self.sent.fetch_add(1, Ordering::Relaxed);
        } else {
            self.queued_tokens.fetch_sub(tokens, Ordering::Relaxed);
        }
        queued
    }

    fn cancel(&self, request: u64, attempt: u32, choice: Option<u32>) {
        metrics::counter!("volley_router_cancels_total").increment(1);
        if self.cancels.try_send(CancelOrder { request, attempt, choice }).is_err() {
            self.break_off();
        }
    }

    fn lists(&self) -> u64 {
        self.report().lists
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

// === impl Outbox ===

impl Outbox {
    fn messages(self) -> impl Stream<Item = RouterMessage> + Send + 'static {
        stream::unfold(self, |mut outbox| async move {
            let message = outbox.next().await?;
            Some((RouterMessage { message: Some(message) }, outbox))
        })
    }

    async fn next(&mut self) -> Option<router_message::Message> {
        if let Some(hello) = self.hello.take() {
            return Some(router_message::Message::Hello(hello));
        }
        loop {
            // Before the cancels: whoever cancels and submits again has queued the cancel first, so it is seen
            // here no later than the submission that must survive it.
            self.take_submissions();
            if let Ok(cancel) = self.cancels.try_recv() {
                return Some(self.cancel(cancel));
            }
            if let Some(mut sending) = self.sending.pop_front() {
                let submit = sending.next_chunk();
                self.queued_tokens.fetch_sub(submit.prompt.len(), Ordering::Relaxed);
                if !submit.last {
                    self.sending.insert(self.sending.len().min(INTERLEAVED - 1), sending);
                }
                return Some(router_message::Message::Submit(submit));
            }
            tokio::select! {
                biased;
                cancel = self.cancels.recv() => return Some(self.cancel(cancel?)),
                order = self.submissions.recv() => self.sending.push_back(Sending::new(order?)),
            }
        }
    }

    fn take_submissions(&mut self) {
        while let Ok(order) = self.submissions.try_recv() {
            self.sending.push_back(Sending::new(order));
        }
    }

    /// What is left of a cancelled request is not sent.
    fn cancel(&mut self, cancel: CancelOrder) -> router_message::Message {
        // What it cancels was queued before it, but may not have been looked at.
        self.take_submissions();
        let CancelOrder { request, attempt, choice } = cancel;
        if choice.is_none() {
            self.sending.retain(|sending| {
                let keep = sending.order.request != request || sending.order.attempt > attempt;
                if !keep {
                    self.queued_tokens
                        .fetch_sub(sending.order.prompt.len() - sending.sent, Ordering::Relaxed);
                }
                keep
            });
        }
        router_message::Message::Cancel(Cancel { request, choice })
    }
}

// === impl Sending ===

impl Sending {
    fn new(mut order: Order) -> Self {
        let header = Some(std::mem::take(&mut order.header));
        Self { order, header, sent: 0 }
    }

    fn next_chunk(&mut self) -> Submit {
        let end = self.order.prompt.len().min(self.sent + CHUNK_TOKENS);
        let prompt = self.order.prompt[self.sent..end].to_vec();
        self.sent = end;
        Submit {
            request: self.order.request,
            attempt: self.order.attempt,
            header: self.header.take(),
            prompt,
            last: end == self.order.prompt.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An outbox and the sending ends of its queues.
    fn outbox() -> (Outbox, mpsc::Sender<Order>, mpsc::Sender<CancelOrder>) {
        let (submit, submissions) = mpsc::channel(16);
        let (cancel, cancels) = mpsc::channel(16);
        let queued_tokens = Arc::new(AtomicUsize::new(1 << 20));
        let outbox = Outbox { hello: None, submissions, cancels, sending: VecDeque::new(), queued_tokens };
        (outbox, submit, cancel)
    }

    fn order(request: u64, attempt: u32, chunks: usize) -> Order {
        let prompt = vec![1; chunks * CHUNK_TOKENS].into();
        Order { request, attempt, header: Submission::default(), prompt }
    }

    /// The next messages, as `request.attempt` and `!` for a cancel.
    async fn next(outbox: &mut Outbox, count: usize) -> String {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(match outbox.next().await.unwrap() {
                router_message::Message::Submit(submit) => format!("{}.{}", submit.request, submit.attempt),
                router_message::Message::Cancel(cancel) => format!("{}!", cancel.request),
                router_message::Message::Hello(_) => "hello".to_owned(),
            });
        }
        all.join(" ")
    }

    #[tokio::test]
    async fn a_link_takes_nothing_more_once_its_outputs_have_ended() {
        let (submissions, _submitted) = mpsc::channel(16);
        let (cancels, _cancelled) = mpsc::channel(16);
        let channel = tonic::transport::Endpoint::from_static("http://nowhere").connect_lazy();
        let link = Arc::new(Link {
            scheduler: "s".into(),
            client: SchedulerClient::new(channel),
            submissions,
            cancels,
            queued_tokens: Arc::default(),
            broken: CancellationToken::new(),
            report: Mutex::default(),
            sent: AtomicU64::new(0),
        });
        assert!(link.submit(order(1, 0, 1)));
        let (batches, mut received) = mpsc::channel(1);
        let text = async {
            assert!(received.recv().await.is_none());
            link.submit(order(1, 1, 1))
        };
        // The scheduler hangs up; what was here moves, and must not come back.
        let (error, taken) = tokio::join!(link.read(stream::empty(), batches, || ()), text);
        assert!(matches!(error, LinkError::Closed) && !taken);
    }

    #[tokio::test]
    async fn long_prompts_take_turns_and_a_short_one_need_not_wait_for_them() {
        let (mut outbox, submit, _cancel) = outbox();
        for (request, chunks) in [(1, 3), (2, 2), (3, 1)] {
            submit.try_send(order(request, 0, chunks)).ok().unwrap();
        }
        assert_eq!(next(&mut outbox, 6).await, "1.0 2.0 3.0 1.0 2.0 1.0");
    }

    #[tokio::test]
    async fn a_cancel_stops_what_was_submitted_before_it_and_nothing_after() {
        let (mut outbox, submit, cancel) = outbox();
        submit.try_send(order(1, 0, 2)).ok().unwrap();
        cancel.try_send(CancelOrder { request: 1, attempt: 0, choice: None }).ok().unwrap();
        submit.try_send(order(1, 1, 1)).ok().unwrap();
        assert_eq!(next(&mut outbox, 2).await, "1! 1.1");
        assert!(outbox.sending.is_empty());
        assert_eq!(outbox.queued_tokens.load(Ordering::Relaxed), (1 << 20) - 3 * CHUNK_TOKENS);
    }

    #[tokio::test]
    async fn a_cancel_of_one_choice_lets_the_submission_go_on() {
        let (mut outbox, submit, cancel) = outbox();
        submit.try_send(order(1, 0, 2)).ok().unwrap();
        assert_eq!(next(&mut outbox, 1).await, "1.0");
        cancel.try_send(CancelOrder { request: 1, attempt: 0, choice: Some(1) }).ok().unwrap();
        assert_eq!(next(&mut outbox, 2).await, "1! 1.0");
    }
}
