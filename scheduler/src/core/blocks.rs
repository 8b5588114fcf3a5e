//! Who holds which KV block of a worker, and what the free ones can still be used for.
//!
//! A worker's KV cache is a list of groups of layers, each with its own blocks ([`Pool`]). A sequence has a
//! table per group: its blocks in order, append-only. Today all tables of a sequence are equally long; a group
//! with a sliding window may later give blocks back from the front.
//!
//! A full block that has been computed can be found by its hash, and sequences that begin alike share it. It
//! stays findable when nobody holds it any more, until its room is needed: free means evictable. A sequence
//! lets go of its tail before its head, so what many begin with stays longest.

use super::{
    inventory::Named,
    pool::Pool,
    prefix::BlockHash,
    types::{BlockId, TokenCount},
};

/// The accounting of one worker.
#[derive(Debug)]
pub struct Blocks {
    block_tokens: TokenCount,
    groups: Vec<Pool>,
    changes: Vec<Change>,
    /// What can be found since [`Blocks::take_named`].
    named: Vec<Named>,
    evictions: u64,
}

/// The blocks of one sequence, by group.
#[derive(Debug, Default)]
pub struct Table {
    groups: Vec<Vec<BlockId>>,
}

/// What can be found has changed. Saying the same twice changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This content can be found.
    Added(BlockHash),
    /// And this can't any more.
    Removed(BlockHash),
}

/// The beginning of a sequence that needn't be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Blocks of it.
    pub blocks: usize,
    /// Of these, held by others: they take no free block.
    pub held: usize,
}

// === impl Blocks ===

impl Blocks {
    /// All free: `groups[g]` blocks in group `g`, of `block_tokens` tokens each (at least 1).
    pub fn new(block_tokens: TokenCount, groups: &[u32]) -> Self {
        let groups = groups.iter().map(|&blocks| Pool::new(blocks as usize)).collect();
        Self { block_tokens, groups, changes: Vec::new(), named: Vec::new(), evictions: 0 }
    }

    /// The same blocks, all free, with what those of each group hold from before, in the order of last use.
    pub(super) fn holding(self, contents: &[Vec<(BlockId, BlockHash)>]) -> Self {
        let groups = self.groups.iter().zip(contents);
        let groups: Vec<_> = groups.map(|(group, content)| Pool::holding(group.total(), content)).collect();
        let there = |(_, hash): &&(BlockId, BlockHash)| groups.iter().all(|group| group.find(hash).is_some());
        let found = contents.first().into_iter().flatten().filter(there);
        let changes = found.map(|(_, hash)| Change::Added(*hash)).collect();
        Self { groups, changes, ..self }
    }

    /// Tokens of a block.
    pub fn block_tokens(&self) -> TokenCount {
        self.block_tokens
    }

    /// Blocks that hold `tokens` tokens.
    pub fn needed(&self, tokens: TokenCount) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Tokens that `blocks` blocks hold.
    pub fn capacity(&self, blocks: usize) -> TokenCount {
        blocks * self.block_tokens
    }

    /// Blocks free in every group.
    pub fn free(&self) -> usize {
        self.groups.iter().map(Pool::free).min().unwrap_or(0)
    }

    /// Blocks in every group.
    pub fn total(&self) -> usize {
        self.groups.iter().map(Pool::total).min().unwrap_or(0)
    }

    /// An empty table.
    pub fn table(&self) -> Table {
        Table { groups: vec![Vec::new(); self.groups.len()] }
    }

    /// How much of a sequence with these hashes every group has.
    pub fn find(&self, hashes: &[BlockHash]) -> Found {
        let mut found = Found::default();
        for hash in hashes {
            let mut held = true;
            for group in &self.groups {
                let Some(block) = group.find(hash) else { return found };
                held &= group.holders(block) > 0;
            }
            found.blocks += 1;
            found.held += usize::from(held);
        }
        found
    }

    /// Appends the blocks with these hashes, as far as every group has them; how many.
    pub fn share(&mut self, table: &mut Table, hashes: &[BlockHash]) -> usize {
        for (nth, hash) in hashes.iter().enumerate() {
            if !self.groups.iter().all(|group| group.find(hash).is_some()) {
                return nth;
            }
            for (group, table) in self.groups.iter_mut().zip(&mut table.groups) {
                let Some(block) = group.find(hash) else { continue };
                group.hold(block);
                table.push(block);
            }
        }
        hashes.len()
    }

    /// Appends `blocks` free blocks to every group's table. Appends fewer if there are fewer.
    pub fn grow(&mut self, table: &mut Table, blocks: usize) {
        for _ in 0..blocks.min(self.free()) {
            for (group, table) in self.groups.iter_mut().zip(&mut table.groups) {
                let Some((block, evicted)) = group.take() else { continue };
                table.push(block);
                self.evictions += u64::from(evicted.is_some());
                self.changes.extend(evicted.map(Change::Removed));
            }
        }
    }

    /// The `nth` block of a table is full, with the content that `hash` names: it can be found from now on.
    pub fn publish(&mut self, table: &Table, nth: usize, hash: BlockHash) {
        let mut added = false;
        for (group, (pool, table)) in self.groups.iter_mut().zip(&table.groups).enumerate() {
            let Some(&block) = table.get(nth).filter(|block| pool.publish(**block, hash)) else { continue };
            self.named.push(Named { group, block, hash });
            added = true;
        }
        if added {
            self.changes.push(Change::Added(hash));
        }
    }

    /// Frees a sequence's blocks that no other holds.
    pub fn release(&mut self, table: Table) {
        for (group, table) in self.groups.iter_mut().zip(table.groups) {
            table.into_iter().rev().for_each(|block| group.let_go(block));
        }
    }

    /// Blocks whose content had to give way to other content.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Blocks that could be found, for some time at least, since this was last asked.
    pub(super) fn take_named(&mut self) -> Vec<Named> {
        std::mem::take(&mut self.named)
    }

    /// How what can be found has changed since this was last asked, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }
}

// === impl Table ===

impl Table {
    /// Blocks in each group.
    pub fn len(&self) -> usize {
        self.groups.first().map_or(0, Vec::len)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The blocks from the `nth` on, by group.
    pub fn from(&self, nth: usize) -> impl Iterator<Item = &[BlockId]> {
        self.groups.iter().map(move |group| group.get(nth..).unwrap_or_default())
    }
}
