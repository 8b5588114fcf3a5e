//! Rates: what a key may ask for in a minute. Off unless configured.
//!
//! A token bucket per key and kind, of a minute's size. A request is paid when it comes. Its tokens are paid when
//! they are known, so a bucket of tokens can go into debt; while it is empty nothing more is let in.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::{auth::Tenant, error::ApiError};
use crate::{
    engine::{Deltas, StreamError},
    generation::Delta,
};

/// What each key may use per minute; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests.
    pub requests: Option<u32>,
    /// Tokens of prompts, cached ones too.
    pub prompt_tokens: Option<u32>,
    /// Tokens generated.
    pub generated_tokens: Option<u32>,
}

/// What keys have used. Clones are the same limiter.
#[derive(Clone)]
pub(crate) struct Limiter {
    limits: Limits,
    /// As many as there are keys.
    tenants: Arc<Mutex<Tenants>>,
}

/// By kind; `None` where nothing limits it.
type Buckets = [Option<Bucket>; KINDS];
type Tenants = HashMap<String, Buckets>;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Per minute, and what it holds at most.
    limit: u32,
    /// Below 0: debt.
    level: f64,
    filled: Instant,
}

/// Counts a generation's tokens, and charges for them when it ends, however it does.
struct Metered {
    deltas: Deltas,
    generated: u64,
    limiter: Limiter,
    tenant: String,
}

const KINDS: usize = 3;
const REQUESTS: usize = 0;
const PROMPT: usize = 1;
const GENERATED: usize = 2;
/// Each kind in words, the header with its limit and the header with what is left.
const NAMES: [(&str, &str, &str); KINDS] = [
    ("requests", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
    ("prompt tokens", "x-ratelimit-limit-tokens-prompt", "x-ratelimit-remaining-tokens-prompt"),
    ("generated tokens", "x-ratelimit-limit-tokens-generated", "x-ratelimit-remaining-tokens-generated"),
];

// === impl Limiter ===

impl Limiter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, tenants: Arc::default() }
    }

    /// Lets a request in, or says when it may come again.
    pub(crate) fn admit(&self, tenant: &Tenant) -> Result<(), ApiError> {
        if !self.limits_anything() {
            return Ok(());
        }
        let mut tenants = self.lock();
        let buckets = self.buckets(&mut tenants, &tenant.0);
        for (bucket, (kind, ..)) in buckets.iter().zip(NAMES) {
            if let Some(bucket) = bucket
                && bucket.level < 1.0
            {
                let wait = (1.0 - bucket.level) * 60.0 / f64::from(bucket.limit);
                let retry_after = Duration::from_secs(wait.ceil() as u64);
                return Err(ApiError::RateLimited { kind, limit: bucket.limit, retry_after });
            }
        }
        charge(buckets, REQUESTS, 1);
        Ok(())
    }

    /// Tells a key where it stands.
    pub(crate) fn tell(&self, tenant: &Tenant, over: bool, headers: &mut HeaderMap) {
        // An answer that another router gave has its word on it.
        if !self.limits_anything() || headers.contains_key("x-ratelimit-over-limit") {
            return;
        }
        let mut tenants = self.lock();
        for (bucket, (_, limit, remaining)) in self.buckets(&mut tenants, &tenant.0).iter().zip(NAMES) {
            let Some(bucket) = bucket else { continue };
            headers.insert(limit, HeaderValue::from(bucket.limit));
            headers.insert(remaining, HeaderValue::from(bucket.level.max(0.0) as u64));
        }
        let over = if over { "yes" } else { "no" };
        headers.insert("x-ratelimit-over-limit", HeaderValue::from_static(over));
    }

    /// Charges for a prompt now, and for what is generated when that is known.
    pub(crate) fn meter(&self, tenant: &Tenant, prompt_tokens: u64, deltas: Deltas) -> Deltas {
        if self.limits.prompt_tokens.is_some() {
            self.charge(&tenant.0, PROMPT, prompt_tokens);
        }
        if self.limits.generated_tokens.is_none() {
            return deltas;
        }
        Deltas::new(Metered { deltas, generated: 0, limiter: self.clone(), tenant: tenant.0.clone() })
    }

    fn charge(&self, tenant: &str, kind: usize, amount: u64) {
        charge(self.buckets(&mut self.lock(), tenant), kind, amount);
    }

    fn limits_anything(&self) -> bool {
        self.limits != Limits::default()
    }

    /// A key's buckets, filled up to now.
    fn buckets<'a>(&self, tenants: &'a mut Tenants, tenant: &str) -> &'a mut Buckets {
        let now = Instant::now();
        let buckets = tenants.entry(tenant.to_owned()).or_insert_with(|| {
            let Limits { requests, prompt_tokens, generated_tokens } = self.limits;
            let full = |limit| Bucket { limit, level: f64::from(limit), filled: now };
            [requests, prompt_tokens, generated_tokens].map(|limit| limit.map(full))
        });
        for bucket in buckets.iter_mut().flatten() {
            let limit = f64::from(bucket.limit);
            let gained = (now - bucket.filled).as_secs_f64() * limit / 60.0;
            (bucket.level, bucket.filled) = ((bucket.level + gained).min(limit), now);
        }
        buckets
    }

    fn lock(&self) -> MutexGuard<'_, Tenants> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn charge(buckets: &mut Buckets, kind: usize, amount: u64) {
    if let Some(bucket) = &mut buckets[kind] {
        bucket.level -= amount as f64;
    }
}

// === impl Metered ===

impl Stream for Metered {
    type Item = Result<Vec<Delta>, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.deltas).poll_next(cx);
        if let Poll::Ready(Some(Ok(batch))) = &polled {
            let tokens = batch.iter().flat_map(|delta| &delta.tokens).filter(|token| !token.echoed);
            self.generated += tokens.count() as u64;
        }
        polled
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.limiter.charge(&self.tenant, GENERATED, self.generated);
    }
}
