//! Which workers this scheduler has: claims them as they turn up, and keeps a connection to each.
//!
//! A broken watch is not a deletion: while etcd is away the views stay as they are. A member that is deleted
//! while its link is healthy stays in use; only when the link breaks as well is it given up.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use volley_membership::{Claim, Claims, Members, Membership, Registration, Role};
use volley_proto::{transport::Transport, v1::Epoch};

use crate::{
    Config,
    core::types::WorkerId,
    front::FromRunner,
    runner::{Connection, Lost},
};

/// Between attempts to reach a worker that is still registered: the first pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Until a claim that etcd didn't answer is tried again.
const CLAIM_AGAIN: Duration = Duration::from_secs(1);

/// What every connection needs.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) membership: Arc<dyn Membership>,
    pub(crate) transport: Transport,
    pub(crate) front: mpsc::UnboundedSender<FromRunner>,
    pub(crate) stop: CancellationToken,
    /// Numbers the connections; grows for as long as the process lives, so it grows under every claim.
    pub(crate) connections: AtomicU64,
}

struct Workers {
    context: Arc<Context>,
    registration: Registration,
    members: watch::Receiver<Members>,
    schedulers: watch::Receiver<Members>,
    claims: watch::Receiver<Claims>,
    /// The claims under which connections are kept, by worker.
    owned: HashMap<String, watch::Sender<Claim>>,
    /// The last claims went unanswered.
    unanswered: bool,
    tasks: JoinSet<String>,
}

/// Claims and connects until told to stop; then leaves the cluster.
pub(crate) async fn run(context: Context, registration: Registration) {
    let membership = context.membership.clone();
    let stop = context.stop.clone();
    let mut workers = Workers {
        context: Arc::new(context),
        registration,
        members: membership.members(Role::Worker),
        schedulers: membership.members(Role::Scheduler),
        claims: membership.claims(),
        owned: HashMap::new(),
        unanswered: false,
        tasks: JoinSet::new(),
    };
    let _ = stop.run_until_cancelled(workers.follow()).await;
    // Every connection ends with `stop`. The claims go with the lease, when nobody is connected any more.
    while workers.tasks.join_next().await.is_some() {}
    workers.registration.revoke().await;
}

/// The workers without an owner that `scheduler` may claim: of each model at most its share,
/// ⌈workers ÷ schedulers⌉, with those that it has.
fn claimable(members: &Members, schedulers: usize, claims: &Claims, scheduler: &str) -> Vec<String> {
    let mut models: HashMap<&str, (usize, usize)> = HashMap::new();
    for (id, member) in members.iter() {
        let (workers, mine) = models.entry(&member.model).or_default();
        *workers += 1;
        *mine += usize::from(claims.get(id).is_some_and(|claim| claim.scheduler == scheduler));
    }
    let free = members.iter().filter(|(id, _)| !claims.contains_key(*id));
    free.filter(|(_, member)| {
        let Some((workers, mine)) = models.get_mut(member.model.as_str()) else { return false };
        *mine += 1;
        *mine <= workers.div_ceil(schedulers.max(1))
    })
    .map(|(id, _)| id.clone())
    .collect()
}

// === impl Workers ===

impl Workers {
    async fn follow(&mut self) {
        loop {
            let unanswered = self.claim().await;
            self.connect();
            tokio::select! {
                Ok(()) = self.members.changed() => {}
                Ok(()) = self.schedulers.changed() => {}
                Ok(()) = self.claims.changed() => {}
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(worker) = ended {
                        self.give_up(&worker).await;
                    }
                }
                () = tokio::time::sleep(CLAIM_AGAIN), if unanswered => {}
            }
        }
    }

    /// Claims what may be claimed. True: etcd didn't answer.
    async fn claim(&mut self) -> bool {
        let members = self.members.borrow_and_update().clone();
        let schedulers = self.schedulers.borrow_and_update().len();
        let claims = self.claims.borrow_and_update().clone();
        let mut unanswered = false;
        for worker in claimable(&members, schedulers, &claims, &self.registration.id) {
            match self.context.membership.claim(&worker, &self.registration).await {
                Ok(Some(claim)) => self.own(worker, claim),
                Ok(None) => {} // Another was faster.
                Err(error) => {
                    if !self.unanswered && !unanswered {
                        tracing::warn!(worker, %error, "cannot claim yet");
                    }
                    unanswered = true;
                }
            }
        }
        self.unanswered = unanswered;
        unanswered
    }

    /// Sees to it that every worker claimed by this scheduler has a connection: one may have been given
    /// up while etcd couldn't be told.
    fn connect(&mut self) {
        let (members, claims) = (self.members.borrow().clone(), self.claims.borrow().clone());
        for (worker, claim) in claims.iter() {
            if claim.scheduler == self.registration.id && members.contains_key(worker) {
                self.own(worker.clone(), claim.clone());
            }
        }
    }

    fn own(&mut self, worker: String, claim: Claim) {
        if let Some(owned) = self.owned.get(&worker) {
            // Claimed again after the lease was lost; counts from the next connection on.
            owned.send_if_modified(|held| {
                let newer = held.revision < claim.revision;
                if newer {
                    *held = claim;
                }
                newer
            });
            return;
        }
        tracing::info!(worker, revision = claim.revision, "claimed");
        let (owned, claim) = watch::channel(claim);
        self.owned.insert(worker.clone(), owned);
        let (members, claims) = (self.members.clone(), self.claims.clone());
        self.tasks.spawn(keep(self.context.clone(), worker, claim, members, claims));
    }

    async fn give_up(&mut self, worker: &str) {
        let Some(owned) = self.owned.remove(worker) else { return };
        let claim = owned.borrow().clone();
        if let Err(error) = self.context.membership.release(worker, &claim).await {
            tracing::warn!(worker, %error, "cannot release");
        }
    }
}

/// Keeps a connection to a worker while it is registered and ours. The worker's id, when that is over.
async fn keep(
    context: Arc<Context>,
    worker: String,
    claim: watch::Receiver<Claim>,
    members: watch::Receiver<Members>,
    claims: watch::Receiver<Claims>,
) -> String {
    let mut pause = PAUSE.0;
    // Said once, however often it is tried to reach again.
    let mut lost_said = false;
    loop {
        let Some(address) = members.borrow().get(&worker).map(|member| member.address.clone()) else { break };
        let epoch = claim.borrow().revision;
        if claims.borrow().get(&worker).is_some_and(|owner| owner.revision > epoch) {
            break; // Somebody else's by now.
        }
        let connection = context.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let epoch = Epoch { claim: epoch, connection };
        let lost = match connect(&context, &address, epoch).await {
            Ok(open) => {
                pause = PAUSE.0;
                lost_said = false;
                tracing::info!(worker, connection, "connected");
                open.run(&context.config, context.front.clone(), &context.stop).await
            }
            Err(lost) => lost,
        };
        if context.stop.is_cancelled() {
            break;
        }
        match std::mem::replace(&mut lost_said, true) {
            false => tracing::warn!(worker, connection, reason = %lost, "lost"),
            true => tracing::debug!(worker, connection, reason = %lost, "still lost"),
        }
        let _ = context.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        pause = (pause * 2).min(PAUSE.1);
    }
    worker
}

async fn connect(context: &Context, address: &str, epoch: Epoch) -> Result<Connection, Lost> {
    let open = async {
        let channel = context.transport.connect(address).await?;
        Connection::open(WorkerId(epoch.connection), channel, epoch, &context.config).await
    };
    context.stop.run_until_cancelled(open).await.unwrap_or(Err(Lost::Stopping))
}

#[cfg(test)]
mod tests {
    use volley_membership::Member;

    use super::*;

    fn members(workers: &[(&str, &str)]) -> Members {
        let member = |&(id, model): &(&str, &str)| {
            (id.to_owned(), Member { id: id.into(), address: String::new(), model: model.into() })
        };
        Arc::new(workers.iter().map(member).collect())
    }

    fn claims(claims: &[(&str, &str)]) -> Claims {
        let claim = |&(worker, scheduler): &(&str, &str)| {
            (worker.to_owned(), Claim { scheduler: scheduler.into(), revision: 1 })
        };
        Arc::new(claims.iter().map(claim).collect())
    }

    #[test]
    fn a_scheduler_claims_its_share_of_each_model() {
        let members = members(&[("a", "m"), ("b", "m"), ("c", "m"), ("d", "other")]);
        assert_eq!(claimable(&members, 1, &claims(&[]), "s"), ["a", "b", "c", "d"]);
        assert_eq!(claimable(&members, 2, &claims(&[]), "s"), ["a", "b", "d"]);
        assert_eq!(claimable(&members, 2, &claims(&[("a", "s"), ("b", "s")]), "s"), ["d"]);
        assert_eq!(claimable(&members, 2, &claims(&[("a", "t"), ("d", "t")]), "s"), ["b", "c"]);
        assert_eq!(claimable(&members, 0, &claims(&[("a", "gone")]), "s"), ["b", "c", "d"]);
    }
}
