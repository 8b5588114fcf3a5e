//! How much room to keep free for those that run to grow into.
//!
//! What a sequence will need is between nothing more and all that it may generate. Room for all of it would
//! leave most of a cache unused, since most end early; room for none gets whoever is let in preempted. So
//! the share of it that is kept free is learnt: a preemption raises it by a quarter, and sixteen ends without
//! one lower it as far again.

use crate::core::types::TokenCount;

/// The share, in `SCALE`-ths.
#[derive(Debug, Default)]
pub(super) struct Growth(usize);

const SCALE: usize = 64;
const RAISE: usize = SCALE / 4;

// === impl Growth ===

impl Growth {
    pub(super) fn preempted(&mut self) {
        self.0 = (self.0 + RAISE).min(SCALE);
    }

    pub(super) fn ended(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    /// Of the `tokens` that a sequence may still come to hold, those to keep room for.
    pub(super) fn of(&self, tokens: TokenCount) -> TokenCount {
        (tokens * self.0).div_ceil(SCALE)
    }
}
