//! Keeps a link to every scheduler, and a text thread to every link.

use std::{
    collections::HashSet,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use volley_membership::{Member, Members};
use volley_proto::{
    transport::Transport,
    v1::{SchedulerMessage, StepOutput},
};

use super::{
    cluster::Cluster,
    link::{Link, LinkError},
};

/// Step outputs that a link's text thread may be behind; then the link is read no further.
const TEXT_BEHIND: usize = 64;
/// Between attempts to reach a scheduler: doubles from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Where the outputs of links go. Called on the link's text thread, so that text never holds up the async
/// threads, and in the order of the link.
pub(crate) trait Sink: Send + Sync + 'static {
    /// A step's outputs.
    fn take(self: &Arc<Self>, link: &Arc<Link>, output: StepOutput);
    /// The link broke, and gave its last output before.
    fn abandon(self: &Arc<Self>, link: &Arc<Link>);
}

/// What every link is made of.
pub(crate) struct Links<S> {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) sink: Arc<S>,
    pub(crate) transport: Transport,
    pub(crate) router_id: String,
    pub(crate) shutdown: CancellationToken,
}

/// Keeps a task per scheduler. One that has left the members keeps its link for as long as that is healthy.
pub(crate) async fn supervise<S: Sink>(links: Arc<Links<S>>, mut members: watch::Receiver<Members>) {
    let mut linked: HashSet<String> = HashSet::new();
    let mut tasks: JoinSet<String> = JoinSet::new();
    loop {
        let known = members.borrow_and_update().clone();
        for id in known.keys() {
            if linked.insert(id.clone()) {
                tasks.spawn(links.clone().keep(id.clone(), members.clone()));
            }
        }
        tokio::select! {
            changed = members.changed() => if changed.is_err() { break },
            Some(left) = tasks.join_next() => drop(left.map(|id| linked.remove(&id))),
            () = links.shutdown.cancelled() => break,
        }
    }
    while tasks.join_next().await.is_some() {}
}

// === impl Links ===

impl<S: Sink> Links<S> {
    /// Links up with a scheduler, again and again while it is a member; gives its id back when it is none.
    async fn keep(self: Arc<Self>, id: String, mut members: watch::Receiver<Members>) -> String {
        let mut backoff = BACKOFF.0;
        loop {
            let member: Option<Member> = members.borrow_and_update().get(&id).cloned();
            let Some(member) = member else { return id };
            match Link::open(&self.transport, &member.address, self.router_id.clone(), &self.shutdown).await {
                Ok((link, inbound)) => {
                    backoff = BACKOFF.0;
                    tracing::info!(scheduler = id, address = member.address, "linked to a scheduler");
                    let error = self.serve(&link, inbound).await;
                    if self.shutdown.is_cancelled() {
                        return id; // this end broke it off
                    }
                    tracing::warn!(scheduler = id, %error, "lost the link to a scheduler");
                }
                Err(error) => tracing::debug!(scheduler = id, %error, "cannot link up with a scheduler"),
            }
            tokio::select! {
                () = time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF.1),
                changed = members.changed() => if changed.is_err() { return id },
                () = self.shutdown.cancelled() => return id,
            }
        }
    }

    /// Reads a link to its end.
    async fn serve(&self, link: &Arc<Link>, inbound: Streaming<SchedulerMessage>) -> LinkError {
        let (batches, received) = mpsc::channel(TEXT_BEHIND);
        let (sink, on_link) = (self.sink.clone(), link.clone());
        let text = thread::Builder::new().name("volley-text".to_owned());
        if let Err(error) = text.spawn(move || assemble(&sink, &on_link, received)) {
            return LinkError::NoThread(error);
        }
        self.cluster.add(link.clone());
        let error = link.read(inbound, batches, || self.cluster.models_changed()).await;
        self.cluster.remove(link, !self.shutdown.is_cancelled());
        error
    }
}

/// A link's text thread.
fn assemble<S: Sink>(sink: &Arc<S>, link: &Arc<Link>, mut received: mpsc::Receiver<StepOutput>) {
    while let Some(output) = received.blocking_recv() {
        let started = Instant::now();
        let tokens: usize = output.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        sink.take(link, output);
        metrics::counter!("volley_router_text_microseconds_total")
            .increment(started.elapsed().as_micros() as u64);
        metrics::counter!("volley_router_tokens_total").increment(tokens as u64);
    }
    sink.abandon(link);
}
