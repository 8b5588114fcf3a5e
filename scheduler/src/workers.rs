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
    front::{Clock, FromRunner},
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
    pub(crate) clock: Clock,
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
    /// Workers to which connections are kept.
    owned: HashMap<String, Owned>,
    /// Released claims, which the view may still have.
    released: HashMap<String, u64>,
    /// The last claims went unanswered.
    unanswered: bool,
    tasks: JoinSet<String>,
}

struct Owned {
    claim: watch::Sender<Claim>,
    /// Ends the connection as soon as its sequences have: another scheduler is to have the worker.
    drain: CancellationToken,
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
        released: HashMap::new(),
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

/// The workers that `scheduler` has beyond its share, now that there are others. They have room for them:
/// the shares of all add up to at least all workers.
fn surplus(members: &Members, schedulers: usize, claims: &Claims, scheduler: &str) -> Vec<String> {
    let mut models: HashMap<&str, (usize, Vec<&String>)> = HashMap::new();
    for (id, member) in members.iter() {
        let (workers, mine) = models.entry(&member.model).or_default();
        *workers += 1;
        mine.extend(claims.get(id).is_some_and(|claim| claim.scheduler == scheduler).then_some(id));
    }
    let beyond = |(workers, mine): (usize, Vec<&String>)| {
        mine.into_iter().skip(workers.div_ceil(schedulers.max(1))).cloned().collect::<Vec<_>>()
    };
    models.into_values().flat_map(beyond).collect()
}

// === impl Workers ===

impl Workers {
    async fn follow(&mut self) {
        loop {
            let unanswered = self.claim().await;
            self.connect();
            self.drain_surplus();
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
        self.released.retain(|worker, revision| claims.get(worker).is_some_and(|c| c.revision == *revision));
        for (worker, claim) in claims.iter() {
            let mine = claim.scheduler == self.registration.id && !self.released.contains_key(worker);
            if mine && members.contains_key(worker) {
                self.own(worker.clone(), claim.clone());
            }
        }
    }

    /// Begins to let go of what other schedulers are to have.
    fn drain_surplus(&self) {
        let (members, claims) = (self.members.borrow(), self.claims.borrow());
        let schedulers = self.schedulers.borrow().len();
        for worker in surplus(&members, schedulers, &claims, &self.registration.id) {
            if let Some(owned) = self.owned.get(&worker).filter(|owned| !owned.drain.is_cancelled()) {
                tracing::info!(worker, schedulers, "draining: another scheduler is to have it");
                owned.drain.cancel();
            }
        }
    }

    fn own(&mut self, worker: String, claim: Claim) {
        if let Some(owned) = self.owned.get(&worker) {
            // Claimed again after the lease was lost; counts from the next connection on.
            owned.claim.send_if_modified(|held| {
                let newer = held.revision < claim.revision;
                if newer {
                    *held = claim;
                }
                newer
            });
            return;
        }
        tracing::info!(worker, revision = claim.revision, "claimed");
        let (sender, claim) = watch::channel(claim);
        let drain = self.context.stop.child_token();
        self.owned.insert(worker.clone(), Owned { claim: sender, drain: drain.clone() });
        let views = (self.members.clone(), self.claims.clone());
        self.tasks.spawn(keep(self.context.clone(), worker, claim, views, drain));
    }

    async fn give_up(&mut self, worker: &str) {
        let Some(owned) = self.owned.remove(worker) else { return };
        let claim = owned.claim.borrow().clone();
        match self.context.membership.release(worker, &claim).await {
            Ok(()) => drop(self.released.insert(worker.to_owned(), claim.revision)),
            Err(error) => tracing::warn!(worker, %error, "cannot release"),
        }
    }
}

/// Keeps a connection to a worker while it is registered, ours, and not to be drained. The worker's id, when
/// that is over.
async fn keep(
    context: Arc<Context>,
    worker: String,
    claim: watch::Receiver<Claim>,
    (members, claims): (watch::Receiver<Members>, watch::Receiver<Claims>),
    drain: CancellationToken,
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
        let lost = match connect(&context, &address, epoch, &drain).await {
            Ok(open) => {
                pause = PAUSE.0;
                lost_said = false;
                tracing::info!(worker, connection, "connected");
                let told = (context.front.clone(), context.clock);
                open.run(&context.config, told, &context.stop, &drain).await
            }
            Err(lost) => lost,
        };
        if drain.is_cancelled() {
            break;
        }
        match std::mem::replace(&mut lost_said, true) {
            false => tracing::warn!(worker, connection, reason = %lost, "lost a worker"),
            true => tracing::debug!(worker, connection, reason = %lost, "a worker is still lost"),
        }
        let _ = drain.run_until_cancelled(tokio::time::sleep(pause)).await;
        pause = (pause * 2).min(PAUSE.1);
    }
    worker
}

async fn connect(
    context: &Context,
    address: &str,
    epoch: Epoch,
    drain: &CancellationToken,
) -> Result<Connection, Lost> {
    let open = async {
        let channel = context.transport.connect(address).await?;
        Connection::open(WorkerId(epoch.connection), channel, epoch, &context.config).await
    };
    drain.run_until_cancelled(open).await.unwrap_or(Err(Lost::Stopping))
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

    #[test]
    fn a_scheduler_has_a_surplus_when_another_joins() {
        let members = members(&[("a", "m"), ("b", "m"), ("c", "m"), ("d", "other")]);
        let all = claims(&[("a", "s"), ("b", "s"), ("c", "s"), ("d", "s")]);
        assert!(surplus(&members, 1, &all, "s").is_empty());
        assert_eq!(surplus(&members, 2, &all, "s"), ["c"], "of a single worker none");
        assert_eq!(surplus(&members, 3, &all, "s"), ["b", "c"]);
        assert!(surplus(&members, 2, &claims(&[("a", "s"), ("b", "s"), ("c", "t")]), "s").is_empty());
        assert_eq!(surplus(&members, 3, &claims(&[("a", "t"), ("b", "t"), ("c", "s")]), "t"), ["b"]);
    }
}
