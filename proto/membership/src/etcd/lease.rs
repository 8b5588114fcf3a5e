//! A registration's lease: granted, kept alive, and replaced (with the member's key) when it is lost.

use std::time::Duration;

use etcd_client::{Client, PutOptions};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    reach::Reach,
    retry::{Backoff, CALL, once, retry},
};
use crate::Error;

/// How long a dead member stays in the cluster.
const TTL: Duration = Duration::from_secs(5);
/// How long a claim waits for its scheduler's lease.
const GRANT: Duration = Duration::from_secs(5);

/// The handle of the task that holds the lease. The task revokes it when this is dropped.
pub(crate) struct Lease {
    /// The lease's id; `None` while there is none.
    id: watch::Receiver<Option<i64>>,
    stop: DropGuard,
}

// === impl Lease ===

impl Lease {
    /// Starts holding `key` = `value` under a lease.
    pub(super) fn start(client: Client, reach: Reach, key: String, value: String) -> Self {
        let (sender, id) = watch::channel(None);
        let stop = CancellationToken::new();
        tokio::spawn(hold((client, reach), key, value, sender, stop.clone()));
        Self { id, stop: stop.drop_guard() }
    }

    /// The lease's id, once it is granted.
    pub(super) async fn granted(&self) -> Result<i64, Error> {
        let mut id = self.id.clone();
        let granted = tokio::time::timeout(GRANT, id.wait_for(Option::is_some)).await;
        match granted {
            Ok(Ok(id)) => id.ok_or_else(no_lease),
            _ => Err(no_lease()),
        }
    }

    /// Ends the task and waits for it; each of its calls has a deadline.
    pub(crate) async fn revoke(self) {
        let Self { mut id, stop } = self;
        drop(stop);
        // The task's end closes the channel.
        while id.changed().await.is_ok() {}
    }
}

fn no_lease() -> Error {
    Error::Unavailable("no lease granted yet".into())
}

async fn hold(
    (client, reach): (Client, Reach),
    key: String,
    value: String,
    id: watch::Sender<Option<i64>>,
    stop: CancellationToken,
) {
    let mut held = None;
    let _ = stop.run_until_cancelled(keep((&client, &reach), &key, &value, &id, &mut held)).await;
    if let Some(lease) = held {
        let revoked = retry(|| {
            let mut client = client.clone();
            async move { client.lease_revoke(lease).await }
        });
        if let Err(error) = revoked.await {
            tracing::warn!(key, %error, "the lease could not be revoked; it expires by itself");
        }
    }
}

/// Never returns. `held` is the lease to revoke if this future is dropped.
async fn keep(
    (client, reach): (&Client, &Reach),
    key: &str,
    value: &str,
    id: &watch::Sender<Option<i64>>,
    held: &mut Option<i64>,
) {
    let mut backoff = Backoff::new();
    loop {
        match grant(client, key, value, held).await {
            Ok(lease) => {
                reach.found();
                tracing::info!(key, "registered");
                id.send_replace(Some(lease));
                backoff.reset();
                keep_alive(client, lease).await;
                tracing::warn!(key, "the lease is lost; registering again");
                id.send_replace(None);
                *held = None;
            }
            Err(error) => {
                reach.lost(&error);
            }
        }
        backoff.pause().await;
    }
}

async fn grant(client: &Client, key: &str, value: &str, held: &mut Option<i64>) -> Result<i64, Error> {
    let lease = match *held {
        // Granted by an earlier try whose put failed. If it has expired since, the put says so.
        Some(lease) => lease,
        None => {
            let ttl = TTL.as_secs().cast_signed();
            let lease = once(client.clone().lease_grant(ttl, None)).await?.id();
            *held = Some(lease);
            lease
        }
    };
    let put = client.clone();
    let put =
        once(async move { put.kv_client().put(key, value, Some(PutOptions::new().with_lease(lease))).await });
    if let Err(error) = put.await {
        if once(client.clone().lease_keep_alive(lease)).await.is_err() {
            *held = None;
        }
        return Err(error);
    }
    Ok(lease)
}

/// Returns when etcd says that the lease is gone.
///
/// Every round opens a stream of its own: a stream dies with the node it goes to, while a new one reaches
/// whichever node is up.
async fn keep_alive(client: &Client, lease: i64) {
    let mut backoff = Backoff::new();
    loop {
        let round = tokio::time::timeout(CALL, client.clone().lease_keep_alive(lease)).await;
        match round {
            Ok(Ok(_)) => {
                backoff.reset();
                tokio::time::sleep(TTL / 3).await;
            }
            Ok(Err(etcd_client::Error::LeaseKeepAliveError(_))) => return,
            Ok(Err(_)) | Err(_) => backoff.pause().await,
        }
    }
}
