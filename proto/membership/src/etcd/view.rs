//! A prefix of etcd as a map, kept current by watch.
//!
//! A broken watch is not a deletion: it is opened again at the revision after the last one seen, and the map
//! stays as it is meanwhile. Where the missed events are gone (compacted, or another data directory), the
//! prefix is listed again.

use std::{collections::BTreeMap, sync::Arc};

use etcd_client::{Client, EventType, GetOptions, KeyValue, WatchOptions, WatchResponse};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    reach::{Reach, cause},
    retry::{Backoff, once},
};
use crate::Error;

type Map<T> = Arc<BTreeMap<String, T>>;
type Parse<T> = fn(&KeyValue) -> Option<T>;

/// The map, by what follows the prefix. Ends its task when dropped.
pub(super) struct View<T> {
    map: watch::Receiver<Map<T>>,
    _stop: DropGuard,
}

/// Why following ended.
enum End {
    /// Go on after this revision.
    Broken(i64, Error),
    /// What was missed can't be had any more.
    Gone,
}

struct Follower<T> {
    client: Client,
    reach: Reach,
    prefix: String,
    parse: Parse<T>,
    map: watch::Sender<Map<T>>,
}

// === impl View ===

impl<T: Clone + PartialEq + Send + Sync + 'static> View<T> {
    /// Starts following `prefix`; entries that `parse` refuses are left out.
    pub(super) fn start(client: Client, reach: Reach, prefix: String, parse: Parse<T>) -> Self {
        let (sender, map) = watch::channel(Map::default());
        let stop = CancellationToken::new();
        let follower = Follower { client, reach, prefix, parse, map: sender };
        tokio::spawn(stop.clone().run_until_cancelled_owned(follower.run()));
        Self { map, _stop: stop.drop_guard() }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Map<T>> {
        self.map.clone()
    }
}

// === impl Follower ===

impl<T: Clone + PartialEq> Follower<T> {
    async fn run(self) {
        let mut backoff = Backoff::new();
        let mut seen = None;
        loop {
            let revision = match seen {
                Some(revision) => revision,
                None => match self.list().await {
                    Ok(revision) => revision,
                    Err(error) => {
                        self.reach.lost(&error);
                        backoff.pause().await;
                        continue;
                    }
                },
            };
            seen = match self.follow(revision).await {
                End::Broken(last, error) => {
                    tracing::debug!(prefix = self.prefix, %error, "the watch broke");
                    self.reach.lost(&error);
                    if last > revision {
                        backoff.reset();
                    }
                    Some(last)
                }
                End::Gone => None,
            };
            backoff.pause().await;
        }
    }

    /// Replaces the map; the revision that it stands for.
    async fn list(&self) -> Result<i64, Error> {
        let mut client = self.client.clone();
        let listed = once(client.get(self.prefix.as_str(), Some(GetOptions::new().with_prefix()))).await?;
        self.reach.found();
        let entries = listed.kvs().iter().filter_map(|kv| Some((self.name(kv)?, (self.parse)(kv)?)));
        let entries: BTreeMap<_, _> = entries.collect();
        self.map.send_if_modified(|map| {
            let changed = **map != entries;
            *map = Arc::new(entries);
            changed
        });
        Ok(listed.header().map_or(0, |header| header.revision()))
    }

    /// Applies what happens after revision `seen`, until the watch breaks.
    async fn follow(&self, mut seen: i64) -> End {
        let options = WatchOptions::new().with_prefix().with_start_revision(seen + 1);
        let mut client = self.client.clone();
        let mut watch = match once(client.watch(self.prefix.as_str(), Some(options))).await {
            Ok(watch) => watch,
            Err(error) => return End::Broken(seen, error),
        };
        self.reach.found();
        loop {
            let answer = match watch.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return End::Broken(seen, Error::Unavailable("the watch ended".into())),
                Err(error) => return End::Broken(seen, Error::Unavailable(cause(&error))),
            };
            // A node that has seen less than we have belongs to another history: a watch from its future
            // would wait in silence.
            let behind = answer.header().is_some_and(|header| header.revision() < seen);
            if answer.canceled() || behind {
                return End::Gone;
            }
            seen = self.apply(&answer).max(seen);
        }
    }

    /// Applies one answer's events together; the last one's revision. (The header's may be ahead of it when
    /// a watch catches up.)
    fn apply(&self, answer: &WatchResponse) -> i64 {
        let mut last = 0;
        let mut changes = Vec::with_capacity(answer.events().len());
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            last = kv.mod_revision().max(last);
            let Some(name) = self.name(kv) else { continue };
            changes.push((name, if event.event_type() == EventType::Put { (self.parse)(kv) } else { None }));
        }
        if !changes.is_empty() {
            self.map.send_modify(|map| {
                let map = Arc::make_mut(map);
                for (name, value) in changes {
                    match value {
                        Some(value) => map.insert(name, value),
                        None => map.remove(&name),
                    };
                }
            });
        }
        last
    }

    fn name(&self, kv: &KeyValue) -> Option<String> {
        Some(kv.key_str().ok()?.strip_prefix(&self.prefix)?.to_owned())
    }
}
