//! What needn't be computed, since it was already, or just is being.
//!
//! * A sequence begins with the blocks that can be found by its hashes. A block can be found once the step that
//!   filled it is back.
//! * What a running sequence is about to fill, one behind it in rank doesn't compute as well: it keeps its
//!   slot and waits, and finds the blocks. It waits for nobody behind it, and for nobody who has stopped, so
//!   whoever is waited for runs or is waiting for somebody still further ahead: the first never waits.
//! * Choices of one request share the whole blocks of their prompt in the same way; of the last, partial one,
//!   each gets a copy.
//!
//! * What earlier schedulers had computed can be found from the start: the worker tells what they told it.
//!
//! All of it happens before a sequence's first row; from then on it computes for itself. So the worker hears of
//! a sequence when it first runs, with what is computed of it by then.

use volley_proto::v1;

use super::{
    Planner, Running, Sequence, State,
    plan::{Draft, new_sequence},
};
use crate::core::{
    blocks::Found,
    inventory::{self, BadInventory},
    types::{BlockId, Rank, TokenCount},
};

/// Part of a block that another choice of the request has filled.
pub(super) struct Fork {
    /// The other's block, in each group.
    pub(super) from: Vec<BlockId>,
    /// Tokens of it that are the same.
    pub(super) tokens: TokenCount,
}

// === impl Planner ===

impl Planner {
    /// Takes over what the worker's cache holds from before it was connected, as its hello says: before anything runs.
    pub fn holding(self, inventory: &[v1::NamedBlocks]) -> Result<Self, BadInventory> {
        if !self.limits.prefix_cache {
            return Ok(self);
        }
        let contents = inventory::read(inventory, &self.limits.blocks)?;
        Ok(Self { blocks: self.blocks.holding(&contents), ..self })
    }

    /// Gives those that haven't run yet what has been cached of them meanwhile.
    pub(super) fn reuse_more(&mut self) {
        let new: Vec<_> = self.running.iter().filter(|(_, r)| !r.started).map(|(&rank, _)| rank).collect();
        new.into_iter().for_each(|rank| self.reuse(rank));
    }

    /// Gives a sequence that hasn't run yet what is cached of it, and says whether it should wait for more. One
    /// that is to run alone doesn't: those that it would wait for run beside others.
    pub(super) fn reuse(&mut self, rank: Rank) {
        let Some(running) = self.running.get_mut(&rank).filter(|r| !r.started) else { return };
        let whole = self.limits.whole_blocks(running.sequence.cacheable());
        let block_tokens = self.blocks.block_tokens();
        let hashes = running.sequence.hashes(block_tokens).get(..whole).unwrap_or_default();
        let held = running.table.len();
        let found = self.blocks.share(&mut running.table, hashes.get(held..).unwrap_or_default());
        let next = hashes.get(held + found).and_then(|hash| self.computing.get(hash)).copied();
        running.published += found;
        running.skip(self.blocks.capacity(found));
        let next = next.filter(|&ahead| ahead < rank && !running.sequence.suspected());
        let computes = |ahead| self.running.get(&ahead).is_some_and(|r| r.state == State::Running);
        let waits = next.is_some_and(computes);
        if let Some(running) = self.running.get_mut(&rank) {
            running.waits = waits;
        }
    }

    /// What a sequence that runs for the first time may copy of its next block, from the choice of its request
    /// that has been running longest. Needs a free block to copy to.
    ///
    /// Not in a step that preempts: the block that was copied from could become one that is copied to, and
    /// copies have no order.
    pub(super) fn fork(&self, rank: Rank, draft: &Draft) -> Option<Fork> {
        let running = self.running.get(&rank)?;
        if draft.preempted || !self.limits.prefix_cache {
            return None;
        }
        let (key, whole) = (running.sequence.key, running.table.len());
        let common = running.sequence.prompt_tokens.min(running.sequence.cacheable());
        let sibling = |other: &&Running| {
            let other = other.sequence.key;
            (key.link, key.request, key.attempt) == (other.link, other.request, other.attempt)
        };
        let siblings = self.running.range(..rank).rev().map(|(_, other)| other).take_while(sibling);
        let shared = |other: &Running| common.min(other.computed).saturating_sub(self.blocks.capacity(whole));
        let longest = siblings.filter(|r| r.state == State::Running && shared(r) > 0).last()?;
        let tokens = shared(longest);
        let from: Option<_> = longest.table.from(whole).map(|blocks| blocks.first().copied()).collect();
        (tokens < self.blocks.block_tokens()).then_some(Fork { from: from?, tokens })
    }

    /// Tells the worker of a sequence that runs for the first time, with `cached` tokens of it computed, and
    /// others what it is going to compute.
    pub(super) fn start(&mut self, rank: Rank, cached: TokenCount, draft: &mut Draft) {
        let Some(running) = self.running.get_mut(&rank) else { return };
        running.started = true;
        let sequence = &mut running.sequence;
        draft.plan.admit.push(new_sequence(sequence, running.slot, cached, self.limits.context));
        self.totals.wasted_tokens += std::mem::take(&mut sequence.given_up).saturating_sub(cached) as u64;
        self.totals.cached_tokens += cached as u64;
        self.totals.overdrawn_tokens += self.account.pay(sequence.reached.saturating_sub(cached));
        sequence.cached.get_or_insert(cached.min(sequence.prompt_tokens));
        // A block with the last known token isn't promised: a draw that is put off takes that row back.
        let (first, end) = (running.published, self.limits.whole_blocks(sequence.tokens.len() - 1));
        running.claimed = end.max(first);
        let hashes = sequence.hashes(self.blocks.block_tokens());
        for hash in hashes.get(first..end).unwrap_or_default() {
            self.computing.entry(*hash).or_insert(rank);
        }
    }

    /// Lets the blocks be found that a sequence has filled.
    pub(super) fn publish(&mut self, rank: Rank) {
        let Some(running) = self.running.get_mut(&rank) else { return };
        let (first, end) = (running.published, self.limits.whole_blocks(running.computed));
        running.published = end;
        let hashes = running.sequence.hashes(self.blocks.block_tokens());
        for (nth, hash) in hashes.iter().enumerate().take(end).skip(first) {
            self.blocks.publish(&running.table, nth, *hash);
            if self.computing.get(hash) == Some(&rank) {
                self.computing.remove(hash);
            }
        }
    }

    /// Takes back what a sequence would have computed for others.
    pub(super) fn unclaim(&mut self, rank: Rank, running: &mut Running) {
        let (first, end) = (running.published, running.claimed);
        if end <= first {
            return;
        }
        let hashes = running.sequence.hashes(self.blocks.block_tokens());
        for hash in hashes.get(first..end).unwrap_or_default() {
            if self.computing.get(hash) == Some(&rank) {
                self.computing.remove(hash);
            }
        }
    }

    /// How much of a waiting sequence is cached.
    pub(super) fn cached(&self, sequence: &Sequence) -> Found {
        let whole = self.limits.whole_blocks(sequence.cacheable());
        let hashes = sequence.chain.as_ref().and_then(|chain| chain.hashes().get(..whole));
        self.blocks.find(hashes.unwrap_or_default())
    }
}

// === impl Limits ===

impl super::Limits {
    /// Whole blocks in `tokens` tokens, if the cache is on.
    pub(super) fn whole_blocks(&self, tokens: TokenCount) -> usize {
        if self.prefix_cache { tokens / self.block_tokens } else { 0 }
    }
}

// === impl Running ===

impl Running {
    /// Counts tokens as computed that it finds so.
    pub(super) fn skip(&mut self, tokens: TokenCount) {
        self.scheduled += tokens;
        self.computed += tokens;
    }
}
