//! Membership within one process, for `volley serve` and for tests. Nothing expires: a lease is held until
//! its registration is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;

use crate::{Claim, Claims, Error, Member, Members, Membership, Registration, Role};

/// In-memory membership. Clones share it.
#[derive(Clone, Default)]
pub struct Local {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    workers: watch::Sender<Members>,
    schedulers: watch::Sender<Members>,
    routers: watch::Sender<Members>,
    claims: watch::Sender<Claims>,
    /// Grows with every claim, as etcd's revision does.
    revision: AtomicU64,
}

/// Takes the member, and its claims, out when dropped.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    role: Role,
    id: String,
}

// === impl Local ===

#[async_trait::async_trait]
impl Membership for Local {
    async fn register(&self, role: Role, member: Member) -> Result<Registration, Error> {
        let id = member.id.clone();
        self.shared.members(role).send_modify(|members| {
            Arc::make_mut(members).insert(id.clone(), member);
        });
        let lease = Lease { shared: self.shared.clone(), role, id: id.clone() };
        Ok(Registration { id, lease: crate::Lease::Local(lease) })
    }

    fn members(&self, role: Role) -> watch::Receiver<Members> {
        self.shared.members(role).subscribe()
    }

    fn claims(&self) -> watch::Receiver<Claims> {
        self.shared.claims.subscribe()
    }

    async fn claim(&self, worker: &str, scheduler: &Registration) -> Result<Option<Claim>, Error> {
        let registered = matches!(&scheduler.lease, crate::Lease::Local(lease)
            if lease.role == Role::Scheduler && Arc::ptr_eq(&lease.shared, &self.shared));
        if !registered {
            return Err(Error::NotRegistered(scheduler.id.clone()));
        }
        let mut won = None;
        self.shared.claims.send_if_modified(|claims| {
            if claims.contains_key(worker) || !self.shared.workers.borrow().contains_key(worker) {
                return false;
            }
            let revision = self.shared.revision.fetch_add(1, Ordering::Relaxed) + 1;
            let claim = Claim { scheduler: scheduler.id.clone(), revision };
            Arc::make_mut(claims).insert(worker.to_owned(), claim.clone());
            won = Some(claim);
            true
        });
        Ok(won)
    }

    async fn release(&self, worker: &str, claim: &Claim) -> Result<(), Error> {
        self.shared.claims.send_if_modified(|claims| {
            let held = claims.get(worker) == Some(claim);
            if held {
                Arc::make_mut(claims).remove(worker);
            }
            held
        });
        Ok(())
    }
}

// === impl Shared ===

impl Shared {
    fn members(&self, role: Role) -> &watch::Sender<Members> {
        match role {
            Role::Worker => &self.workers,
            Role::Scheduler => &self.schedulers,
            Role::Router => &self.routers,
        }
    }
}

// === impl Lease ===

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.members(self.role).send_modify(|members| {
            Arc::make_mut(members).remove(&self.id);
        });
        if self.role == Role::Scheduler {
            self.shared.claims.send_if_modified(|claims| {
                let held = claims.values().any(|claim| claim.scheduler == self.id);
                if held {
                    Arc::make_mut(claims).retain(|_, claim| claim.scheduler != self.id);
                }
                held
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str) -> Member {
        Member { id: id.into(), address: format!("inproc://{id}"), model: String::new() }
    }

    #[tokio::test]
    async fn one_scheduler_owns_a_worker_until_it_leaves() {
        let local = Local::default();
        let worker = local.register(Role::Worker, member("w")).await.unwrap();
        let a = local.register(Role::Scheduler, member("a")).await.unwrap();
        let b = local.register(Role::Scheduler, member("b")).await.unwrap();
        let first = local.claim("w", &a).await.unwrap().unwrap();
        assert_eq!(local.claim("w", &b).await.unwrap(), None);
        drop(a);
        let second = local.claim("w", &b).await.unwrap().unwrap();
        assert!(second.revision > first.revision, "a later owner fences an earlier one");
        local.release("w", &first).await.unwrap();
        assert_eq!(local.claims().borrow().get("w"), Some(&second), "a stale release changes nothing");
        local.release("w", &second).await.unwrap();
        worker.revoke().await;
        assert_eq!(local.claim("w", &b).await.unwrap(), None, "a worker that left can't be claimed");
        assert!(local.members(Role::Worker).borrow().is_empty());
    }

    #[tokio::test]
    async fn only_a_scheduler_of_this_cluster_claims() {
        let (local, other) = (Local::default(), Local::default());
        let worker = local.register(Role::Worker, member("w")).await.unwrap();
        let stranger = other.register(Role::Scheduler, member("s")).await.unwrap();
        assert!(matches!(local.claim("w", &worker).await, Err(Error::NotRegistered(_))));
        assert!(matches!(local.claim("w", &stranger).await, Err(Error::NotRegistered(_))));
    }
}
