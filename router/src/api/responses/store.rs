//! Responses that can be asked for again and gone on from, for a while: bounded in bytes and in age. Those that run
//! are here too, so that they can be looked at and cancelled.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// This router's responses.
pub(crate) struct Store {
    /// What all kept ones may take, bytes of memory, roughly.
    limit: usize,
    age: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: HashMap<String, (u64, Arc<Kept>)>,
    /// By their number: the oldest first.
    order: BTreeMap<u64, (Instant, String)>,
    next: u64,
    bytes: usize,
    running: HashMap<String, Entry>,
}

/// A response that is over.
#[derive(Debug)]
pub(super) struct Kept {
    /// Whose it is: nobody else sees it.
    pub tenant: String,
    /// As it was answered.
    pub object: Value,
    /// The conversation with its answer, as templates take it.
    pub conversation: Vec<Value>,
}

/// A response that runs.
struct Entry {
    tenant: String,
    object: Value,
    cancel: CancellationToken,
}

/// Dropping it ends the response's being there as a running one.
pub(super) struct Running {
    store: Arc<Store>,
    id: String,
    pub cancel: CancellationToken,
}

/// What a cancel came to.
pub(super) enum Cancelled {
    /// It runs, and ends now; as it was when it began.
    Running(Value),
    /// It was over before.
    Over,
    /// There is none.
    Unknown,
}

// === impl Store ===

impl Store {
    pub(crate) fn new(limit: usize, age: Duration) -> Self {
        Self { limit, age, state: Mutex::default() }
    }

    /// Keeps a response; as many of the oldest as it takes make room. One that is larger than everything is not
    /// kept.
    pub(super) fn keep(&self, id: String, kept: Kept) {
        let size = kept.size(&id);
        let mut state = self.fresh();
        state.running.remove(&id); // it is over
        if size > self.limit {
            return;
        }
        while state.bytes + size > self.limit && state.drop_oldest() {}
        state.bytes += size;
        let number = state.next;
        state.next += 1;
        state.order.insert(number, (Instant::now(), id.clone()));
        state.kept.insert(id, (number, Arc::new(kept)));
        state.tell();
    }

    /// A response that is over.
    pub(super) fn get(&self, id: &str, tenant: &str) -> Option<Arc<Kept>> {
        self.fresh().kept.get(id).map(|(_, kept)| kept.clone()).filter(|kept| kept.tenant == tenant)
    }

    /// A response that is over, or as it was when it began.
    pub(super) fn look(&self, id: &str, tenant: &str) -> Option<Value> {
        let state = self.fresh();
        let kept = state.kept.get(id).map(|(_, kept)| (&kept.tenant, &kept.object));
        let running = || state.running.get(id).map(|entry| (&entry.tenant, &entry.object));
        kept.or_else(running).filter(|(owner, _)| *owner == tenant).map(|(_, object)| object.clone())
    }

    /// Forgets a response. False: there is none.
    pub(super) fn delete(&self, id: &str, tenant: &str) -> bool {
        let mut state = self.fresh();
        state.kept.get(id).is_some_and(|(_, kept)| kept.tenant == tenant) && state.remove(id)
    }

    /// Registers a response that begins.
    pub(super) fn begin(self: &Arc<Self>, id: String, tenant: String, object: Value) -> Running {
        let cancel = CancellationToken::new();
        let entry = Entry { tenant, object, cancel: cancel.clone() };
        self.fresh().running.insert(id.clone(), entry);
        Running { store: self.clone(), id, cancel }
    }

    pub(super) fn cancel(&self, id: &str, tenant: &str) -> Cancelled {
        let state = self.fresh();
        if state.kept.get(id).is_some_and(|(_, kept)| kept.tenant == tenant) {
            return Cancelled::Over;
        }
        match state.running.get(id).filter(|entry| entry.tenant == tenant) {
            Some(entry) => {
                entry.cancel.cancel();
                Cancelled::Running(entry.object.clone())
            }
            None => Cancelled::Unknown,
        }
    }

    /// Forgets what has become too old, also where nobody asks.
    pub(crate) fn expire(&self) {
        drop(self.fresh());
    }

    /// The state without what has become too old.
    fn fresh(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let old = |(since, _): &(Instant, String)| now.duration_since(*since) >= self.age;
        while state.order.first_key_value().is_some_and(|(_, entry)| old(entry)) {
            state.drop_oldest();
        }
        state
    }
}

// === impl State ===

impl State {
    /// False: nothing is left.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.order.first_key_value().map(|(_, (_, id))| id.clone());
        oldest.is_some_and(|id| self.remove(&id))
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some((number, kept)) = self.kept.remove(id) else { return false };
        self.order.remove(&number);
        self.bytes -= kept.size(id);
        self.tell();
        true
    }

    fn tell(&self) {
        metrics::gauge!("volley_router_stored_response_bytes").set(self.bytes as f64);
    }
}

// === impl Kept ===

impl Kept {
    /// Its share of the bound, with something for what stands around it.
    fn size(&self, id: &str) -> usize {
        const FRAME: usize = 512;
        FRAME + id.len() + weight(&self.object) + self.conversation.iter().map(weight).sum::<usize>()
    }
}

/// Roughly what a value takes in memory.
pub(super) fn weight(value: &Value) -> usize {
    const NODE: usize = 64;
    NODE + match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(weight).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + NODE + weight(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

// === impl Running ===

impl Drop for Running {
    fn drop(&mut self) {
        self.store.fresh().running.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept(text: &str) -> Kept {
        Kept { tenant: "t".into(), object: json!(text), conversation: vec![json!({"content": text})] }
    }

    fn store(limit: usize) -> Store {
        Store::new(limit, Duration::from_secs(60))
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_make_room_and_nothing_outgrows_the_bound() {
        let store = store(10_000);
        for number in 0..100 {
            store.keep(number.to_string(), kept(&"x".repeat(1000)));
            assert!(store.fresh().bytes <= 10_000);
        }
        assert!(store.get("99", "t").is_some() && store.get("0", "t").is_none());
        store.keep("huge".into(), kept(&"x".repeat(20_000)));
        assert!(store.get("huge", "t").is_none() && store.get("99", "t").is_some());
        while store.fresh().drop_oldest() {}
        assert_eq!(store.fresh().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_is_gone() {
        let store = store(100_000);
        store.keep("old".into(), kept("a"));
        tokio::time::advance(Duration::from_secs(59)).await;
        store.keep("young".into(), kept("b"));
        assert!(store.get("old", "t").is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(store.get("old", "t").is_none() && store.get("young", "t").is_some());
        assert!(store.delete("young", "t") && !store.delete("young", "t"));
        assert_eq!(store.fresh().bytes, 0);
    }

    #[tokio::test]
    async fn a_response_is_its_tenants_alone() {
        let store = Arc::new(store(100_000));
        store.keep("kept".into(), kept("a"));
        let running = store.begin("running".into(), "t".into(), json!("r"));
        for id in ["kept", "running"] {
            assert!(store.look(id, "t").is_some() && store.look(id, "other").is_none());
            assert!(matches!(store.cancel(id, "other"), Cancelled::Unknown));
        }
        assert!(!store.delete("kept", "other"));
        assert!(matches!(store.cancel("kept", "t"), Cancelled::Over));
        assert!(
            matches!(store.cancel("running", "t"), Cancelled::Running(_)) && running.cancel.is_cancelled()
        );
        drop(running);
        assert!(store.look("running", "t").is_none());
    }
}
