//! Who is in the cluster: leases, membership and ownership. Never tokens, never load.
//!
//! ```text
//! {prefix}/workers/<id>     Member      put by the worker, under its lease
//! {prefix}/schedulers/<id>  Member      put by the scheduler, under its lease
//! {prefix}/routers/<id>     Member      put by the router, under its lease
//! {prefix}/claims/<worker>  Claim       put by the claiming scheduler in a transaction, under the scheduler's lease
//! ```
//!
//! Everything is learnt by watch. When etcd is away, the last known view stays.
//!
//! [`Local`] keeps it in memory, for one process and for tests; [`Etcd`] is a cluster's.
#![forbid(unsafe_code)]

mod etcd;
mod local;

use std::{collections::BTreeMap, sync::Arc};

pub use etcd::{DEFAULT_PREFIX, Etcd};
pub use local::Local;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The kinds of member that others look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs a model.
    Worker,
    /// Plans the steps of its workers.
    Scheduler,
    /// Serves the HTTP API.
    Router,
}

/// One registered process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Unique for the life of the process.
    pub id: String,
    /// Where its gRPC listens, a router's HTTP: `http://host:port` or `inproc://name`.
    pub address: String,
    /// The model that a worker serves; empty for the others.
    #[serde(default)]
    pub model: String,
}

/// Which scheduler owns a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The owner's id.
    pub scheduler: String,
    /// The claim's revision: the first half of the epoch that fences the worker.
    pub revision: u64,
}

/// Members by id. A new snapshot for every change.
pub type Members = Arc<BTreeMap<String, Member>>;
/// Claims by worker id.
pub type Claims = Arc<BTreeMap<String, Claim>>;

/// The cluster as one process sees it.
#[async_trait::async_trait]
pub trait Membership: Send + Sync + 'static {
    /// Announces `member` until the returned registration is dropped or revoked. Keeps trying while etcd is
    /// away, and announces again after it lost the lease.
    async fn register(&self, role: Role, member: Member) -> Result<Registration, Error>;

    /// The members of a role, kept current by watch.
    fn members(&self, role: Role) -> watch::Receiver<Members>;

    /// Who owns which worker, kept current by watch.
    fn claims(&self) -> watch::Receiver<Claims>;

    /// Claims `worker` for the registered scheduler in one transaction: `None` if it has an owner or is gone.
    async fn claim(&self, worker: &str, scheduler: &Registration) -> Result<Option<Claim>, Error>;

    /// Gives `worker` up, if this claim still holds.
    async fn release(&self, worker: &str, claim: &Claim) -> Result<(), Error>;
}

/// A member's lease. Dropping it takes the member (and a scheduler's claims) out of the cluster, as soon as
/// etcd can be told; [`Registration::revoke`] waits for that.
pub struct Registration {
    /// The member's id.
    pub id: String,
    lease: Lease,
}

/// What keeps a registration in the cluster; dropping it takes the member out.
enum Lease {
    Local(local::Lease),
    Etcd(etcd::Lease),
}

/// Why the cluster's state could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// etcd did not answer in time, or refused. Trying again later may help.
    #[error("etcd: {0}")]
    Unavailable(String),
    /// An endpoint isn't a URL.
    #[error("not a list of etcd endpoints: {0}")]
    Endpoints(String),
    /// A claim needs a registration that came from the same membership.
    #[error("`{0}` is not registered here")]
    NotRegistered(String),
}

// === impl Role ===

impl Role {
    /// The name of the role's folder.
    fn folder(self) -> &'static str {
        match self {
            Self::Worker => "workers",
            Self::Scheduler => "schedulers",
            Self::Router => "routers",
        }
    }
}

// === impl Registration ===

impl Registration {
    /// Leaves the cluster and waits until etcd knows, for a few seconds at most: a lease that could not be
    /// revoked expires by itself.
    pub async fn revoke(self) {
        match self.lease {
            Lease::Local(lease) => drop(lease),
            Lease::Etcd(lease) => lease.revoke().await,
        }
    }
}
