//! What may be computed twice.
//!
//! A sequence that was preempted is computed anew when it gets a place again. If places came and went fast
//! enough, a worker could spend its time on that alone. So it has an account: every token computed for the
//! first time earns a [`SHARE`]-th of one, up to what the KV cache holds, and a sequence that comes back pays
//! for what it had. One that can't pay waits until others have earned it; unless nothing runs that could,
//! then it goes on, and the account is overdrawn.
//!
//! So, over a planner's life: recomputed ≤ first computed ÷ [`SHARE`] + the cache's tokens + overdrawn, where
//! a sequence has ended between any two that overdraw.

use crate::core::types::TokenCount;

/// First-time tokens for one that is computed again.
pub const SHARE: u64 = 4;

/// The account of one worker, in [`SHARE`]-ths of a token.
#[derive(Debug)]
pub(super) struct Account {
    credit: i64,
    most: i64,
}

// === impl Account ===

impl Account {
    /// One that may spend what a cache of `tokens` holds.
    pub(super) fn new(tokens: TokenCount) -> Self {
        let most = shares(tokens);
        Self { credit: most, most }
    }

    /// So many tokens were computed for the first time.
    pub(super) fn earn(&mut self, tokens: TokenCount) {
        self.credit = self.credit.saturating_add(tokens as i64).min(self.most);
    }

    /// Whether `tokens` may be computed again.
    pub(super) fn affords(&self, tokens: TokenCount) -> bool {
        tokens == 0 || self.credit >= shares(tokens)
    }

    /// Pays for them; by how much that overdraws.
    pub(super) fn pay(&mut self, tokens: TokenCount) -> u64 {
        let before = self.credit.min(0);
        self.credit = self.credit.saturating_sub(shares(tokens));
        (before - self.credit.min(0)).unsigned_abs().div_ceil(SHARE)
    }
}

fn shares(tokens: TokenCount) -> i64 {
    (tokens as i64).saturating_mul(SHARE as i64)
}
