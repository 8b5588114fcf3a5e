//! Who holds which KV block of a worker.
//!
//! A worker's KV cache is a list of groups of layers, each with its own blocks. A sequence has a table per
//! group: its blocks in order, append-only. Today all tables of a sequence are equally long; a group with a
//! sliding window may later give blocks back from the front.
//!
//! The block that was freed last is taken first: its memory has been touched already, so a worker's resident
//! memory follows what its sequences have needed at most. A prefix index will want the least recently used.

use super::types::{BlockId, TokenCount};

/// The accounting of one worker.
#[derive(Debug)]
pub struct Blocks {
    block_tokens: TokenCount,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    /// A stack.
    free: Vec<BlockId>,
    total: usize,
}

/// The blocks of one sequence, by group.
#[derive(Debug, Default)]
pub struct Table {
    groups: Vec<Vec<BlockId>>,
}

// === impl Blocks ===

impl Blocks {
    /// All free: `groups[g]` blocks in group `g`, of `block_tokens` tokens each (at least 1).
    pub fn new(block_tokens: TokenCount, groups: &[u32]) -> Self {
        let groups = groups
            .iter()
            .map(|&n| Group { free: (0..n).rev().map(BlockId).collect(), total: n as usize })
            .collect();
        Self { block_tokens, groups }
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
        self.groups.iter().map(|group| group.free.len()).min().unwrap_or(0)
    }

    /// Blocks in every group.
    pub fn total(&self) -> usize {
        self.groups.iter().map(|group| group.total).min().unwrap_or(0)
    }

    /// An empty table.
    pub fn table(&self) -> Table {
        Table { groups: vec![Vec::new(); self.groups.len()] }
    }

    /// Appends `blocks` free blocks to every group's table; what was appended, by group. Appends fewer if
    /// there are fewer.
    pub fn grow(&mut self, table: &mut Table, blocks: usize) -> Vec<Vec<BlockId>> {
        let blocks = blocks.min(self.free());
        let groups = self.groups.iter_mut().zip(&mut table.groups);
        groups
            .map(|(group, table)| {
                let rest = group.free.len() - blocks;
                let taken: Vec<_> = group.free.drain(rest..).rev().collect();
                table.extend_from_slice(&taken);
                taken
            })
            .collect()
    }

    /// Frees a sequence's blocks.
    pub fn release(&mut self, table: Table) {
        for (group, table) in self.groups.iter_mut().zip(table.groups) {
            group.free.extend(table.into_iter().rev()); // its first is taken first again
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_blocks_are_taken_before_untouched_ones() {
        let mut blocks = Blocks::new(16, &[4, 6]);
        assert_eq!((blocks.free(), blocks.total(), blocks.needed(17)), (4, 4, 2));
        let mut table = blocks.table();
        assert_eq!(blocks.grow(&mut table, 3), vec![vec![BlockId(0), BlockId(1), BlockId(2)]; 2]);
        assert_eq!(blocks.free(), 1);
        blocks.release(table);
        let mut next = blocks.table();
        let taken = blocks.grow(&mut next, 4);
        assert_eq!(taken[0], [0, 1, 2, 3].map(BlockId));
        assert_eq!(next.len(), 4);
        assert_eq!(blocks.grow(&mut next, 1), vec![vec![]; 2], "nothing is free");
    }
}
