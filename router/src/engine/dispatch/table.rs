//! The live requests of a router.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::sync::mpsc;

use crate::{
    engine::{StartError, StreamError, link::Link, request::Request},
    generation::Delta,
};

/// The live requests.
#[derive(Default)]
pub(super) struct Table(Mutex<HashMap<u64, Arc<Active>>>);

/// A live request, and whom it is for.
pub(super) struct Active {
    pub(super) id: u64,
    pub(super) request: Mutex<Request<Arc<Link>>>,
    /// Its outputs: batches, or why there are no more.
    pub(super) out: mpsc::Sender<Result<Vec<Delta>, StartError>>,
    /// Says why, where `out` was too full to.
    pub(super) failure: Arc<OnceLock<StreamError>>,
}

// === impl Table ===

impl Table {
    pub(super) fn insert(&self, request: Arc<Active>, bound: usize) -> bool {
        let mut table = self.lock();
        let fits = table.len() < bound;
        if fits {
            table.insert(request.id, request);
            metrics::gauge!("volley_router_active_requests").set(table.len() as f64);
        }
        fits
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Active>> {
        self.lock().get(&id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Active>> {
        self.lock().values().cloned().collect()
    }

    /// Forgets a request, and cancels what still runs of it.
    pub(super) fn end(&self, id: u64) {
        let mut table = self.lock();
        let removed = table.remove(&id);
        metrics::gauge!("volley_router_active_requests").set(table.len() as f64);
        drop(table);
        if let Some(request) = removed {
            request.lock().end();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Active>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Active ===

impl Active {
    pub(super) fn lock(&self) -> MutexGuard<'_, Request<Arc<Link>>> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
