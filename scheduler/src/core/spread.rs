//! When to compute a beginning a second time, so that more workers have it.
//!
//! What many requests begin with draws them all to the workers that have it, while others idle. Each request pays
//! for that: it waits longer there than it would elsewhere. Nobody knows how many more will come, so this is renting
//! skis: once those who came have paid as much as a copy costs, the next one goes to the idlest worker and
//! leaves a copy there. Never does that cost more than twice of what would have been best. A conversation's turns
//! each begin with something longer than the one before, so it stays where it is.

use super::{
    prefix::{BlockHash, BlockMap},
    types::TokenCount,
};

/// Beginnings that are remembered at least; about twice as many at most. At 32 bytes each, a few MB.
const REMEMBERED: usize = 1 << 16;

/// What has been paid for each beginning, by its last block, since it was copied last.
#[derive(Debug, Default)]
pub struct Spread {
    recent: BlockMap<TokenCount>,
    /// As `recent` was when it was full.
    older: BlockMap<TokenCount>,
}

// === impl Spread ===

impl Spread {
    /// A request could stay with its beginning at the price of `detour`. Whether it should rather pay for a `copy`.
    pub fn copies(&mut self, beginning: BlockHash, detour: TokenCount, copy: TokenCount) -> bool {
        if self.recent.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
        }
        let older = self.older.remove(&beginning).unwrap_or(0);
        let paid = self.recent.entry(beginning).or_insert(older);
        *paid += detour;
        let copies = *paid > copy;
        if copies {
            *paid = 0;
        }
        copies
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::prefix::salt;

    #[test]
    fn a_beginning_is_copied_when_detours_have_cost_as_much() {
        let (popular, rare) = (salt(&["popular"]), salt(&["rare"]));
        let mut spread = Spread::default();
        let copies: Vec<_> = (0..8).map(|_| spread.copies(popular, 30, 100)).collect();
        assert_eq!(copies, [false, false, false, true, false, false, false, true]);
        assert!(!spread.copies(rare, 90, 100), "each pays for itself");
    }

    #[test]
    fn the_latest_beginnings_are_remembered_and_their_number_is_bounded() {
        let mut spread = Spread::default();
        let names: Vec<_> = (0..3 * REMEMBERED).map(|n| salt(&[&n.to_string()])).collect();
        for name in &names {
            spread.copies(*name, 60, 100);
            assert!(spread.recent.len() + spread.older.len() <= 2 * REMEMBERED);
        }
        assert!(!spread.copies(names[0], 60, 100), "long ago");
        assert!(spread.copies(names[2 * REMEMBERED + 1], 60, 100));
    }
}
