//! Membership in etcd.
//!
//! ```text
//! view.rs    a prefix as a map, kept current by watch
//! lease.rs   a registration's lease, kept alive and replaced when lost
//! retry.rs   a deadline and a bounded number of tries around every call
//! reach.rs   whether etcd answers, for the log
//! ```
//!
//! Nothing here fails because etcd isn't up yet: views stay as they are, registrations keep trying.

mod lease;
mod reach;
mod retry;
mod view;

use std::{sync::OnceLock, time::Duration};

use etcd_client::{Client, Compare, CompareOp, ConnectOptions, KeyValue, PutOptions, Txn, TxnOp};
use tokio::sync::watch;

pub(crate) use self::lease::Lease;
use self::{reach::Reach, retry::retry, view::View};
use crate::{Claim, Claims, Error, Member, Members, Membership, Registration, Role};

/// Where the keys stand unless told otherwise.
pub const DEFAULT_PREFIX: &str = "/volley";

/// Membership in an etcd cluster.
pub struct Etcd {
    client: Client,
    reach: Reach,
    prefix: String,
    // Started when first asked for: a worker watches nothing, a router only the schedulers.
    workers: OnceLock<View<Member>>,
    schedulers: OnceLock<View<Member>>,
    claims: OnceLock<View<Claim>>,
}

// === impl Etcd ===

impl Etcd {
    /// Prepares for the cluster at `endpoints` (`http://host:port`, …), which may come up later; keys stand
    /// under `prefix` ([`DEFAULT_PREFIX`]). Fails only if an endpoint is malformed.
    pub async fn connect(endpoints: &[String], prefix: &str) -> Result<Self, Error> {
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(1))
            // Without these a watch hangs for ever on a frozen node, or on one cut off from the majority. etcd
            // hangs up on those who ping more often than every 5 s (its --grpc-keepalive-min-time).
            .with_keep_alive(Duration::from_secs(6), Duration::from_secs(2))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let client = Client::connect(endpoints, Some(options))
            .await
            .map_err(|e| Error::Endpoints(format!("{}: {e}", endpoints.join(","))))?;
        Ok(Self {
            client,
            reach: Reach::new(endpoints),
            prefix: prefix.trim_end_matches('/').to_owned(),
            workers: OnceLock::new(),
            schedulers: OnceLock::new(),
            claims: OnceLock::new(),
        })
    }

    fn member_key(&self, role: Role, id: &str) -> String {
        format!("{}/{}/{id}", self.prefix, role.folder())
    }

    fn claim_key(&self, worker: &str) -> String {
        format!("{}/claims/{worker}", self.prefix)
    }
}

#[async_trait::async_trait]
impl Membership for Etcd {
    async fn register(&self, role: Role, member: Member) -> Result<Registration, Error> {
        let key = self.member_key(role, &member.id);
        let value = serde_json::to_string(&member).map_err(|e| Error::Unavailable(e.to_string()))?;
        let lease = Lease::start(self.client.clone(), self.reach.clone(), key, value);
        Ok(Registration { id: member.id, lease: crate::Lease::Etcd(lease) })
    }

    fn members(&self, role: Role) -> watch::Receiver<Members> {
        let view = match role {
            Role::Worker => &self.workers,
            Role::Scheduler => &self.schedulers,
        };
        let folder = format!("{}/{}/", self.prefix, role.folder());
        view.get_or_init(|| View::start(self.client.clone(), self.reach.clone(), folder, parse_member))
            .subscribe()
    }

    fn claims(&self) -> watch::Receiver<Claims> {
        let folder = format!("{}/claims/", self.prefix);
        self.claims
            .get_or_init(|| View::start(self.client.clone(), self.reach.clone(), folder, parse_claim))
            .subscribe()
    }

    async fn claim(&self, worker: &str, scheduler: &Registration) -> Result<Option<Claim>, Error> {
        let crate::Lease::Etcd(lease) = &scheduler.lease else {
            return Err(Error::NotRegistered(scheduler.id.clone()));
        };
        let lease = lease.granted().await?;
        let key = self.claim_key(worker);
        let claim = Txn::new()
            .when([
                Compare::version(key.clone(), CompareOp::Equal, 0),
                Compare::version(self.member_key(Role::Worker, worker), CompareOp::Greater, 0),
            ])
            .and_then([TxnOp::put(
                key.clone(),
                scheduler.id.clone(),
                Some(PutOptions::new().with_lease(lease)),
            )])
            .or_else([TxnOp::get(key, None)]);
        let answer = retry(|| {
            let (mut client, claim) = (self.client.clone(), claim.clone());
            async move { client.txn(claim).await }
        })
        .await?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, |header| header.revision().cast_unsigned());
            return Ok(Some(Claim { scheduler: scheduler.id.clone(), revision }));
        }
        // The answer to an earlier try may have been lost: a claim under our own lease is ours.
        let mine = answer.op_responses().into_iter().find_map(|op| match op {
            etcd_client::TxnOpResponse::Get(found) => {
                found.kvs().iter().find(|kv| kv.lease() == lease).and_then(parse_claim)
            }
            _ => None,
        });
        Ok(mine)
    }

    async fn release(&self, worker: &str, claim: &Claim) -> Result<(), Error> {
        let key = self.claim_key(worker);
        let release = Txn::new()
            .when([Compare::create_revision(key.clone(), CompareOp::Equal, claim.revision.cast_signed())])
            .and_then([TxnOp::delete(key, None)]);
        retry(|| {
            let (mut client, release) = (self.client.clone(), release.clone());
            async move { client.txn(release).await }
        })
        .await
        .map(drop)
    }
}

fn parse_member(kv: &KeyValue) -> Option<Member> {
    let member = serde_json::from_slice(kv.value());
    if let Err(error) = &member {
        tracing::warn!(key = %String::from_utf8_lossy(kv.key()), %error, "not a member");
    }
    member.ok()
}

fn parse_claim(kv: &KeyValue) -> Option<Claim> {
    let scheduler = kv.value_str().ok()?.to_owned();
    Some(Claim { scheduler, revision: kv.create_revision().cast_unsigned() })
}
