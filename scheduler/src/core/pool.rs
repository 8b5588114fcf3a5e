//! The blocks of one KV group: who holds each, and what the free ones still hold.
//!
//! A block that nobody holds keeps its content, and is found by its hash until it is needed for something
//! else. Taken first is what holds nothing of use, then what was never touched, then what was used longest ago:
//! content costs only memory that the cache was given anyway, and computing it again costs more than a page.

use super::{
    prefix::{BlockHash, BlockMap},
    types::BlockId,
};

const NOBODY: u32 = u32::MAX;

/// The accounting of one group.
#[derive(Debug)]
pub(super) struct Pool {
    total: usize,
    /// Those that have been touched, by number.
    blocks: Vec<Block>,
    /// Findable blocks: held, or in the list.
    index: BlockMap<BlockId>,
    /// Free and without content. A stack: freed last, taken first.
    blank: Vec<BlockId>,
    /// The ends of the list of free blocks with content, and its length.
    oldest: u32,
    newest: u32,
    cached: usize,
}

#[derive(Debug)]
struct Block {
    holders: u32,
    /// Set while it is in the index.
    hash: Option<BlockHash>,
    /// Its neighbours in the list, while nobody holds it and it has content.
    older: u32,
    newer: u32,
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(total: usize) -> Self {
        Self {
            total,
            blocks: Vec::new(),
            index: BlockMap::default(),
            blank: Vec::new(),
            oldest: NOBODY,
            newest: NOBODY,
            cached: 0,
        }
    }

    /// All free, with what some blocks hold from before, in the order in which they are to give way. Of equal
    /// contents the first counts; every number is below `total`.
    pub(super) fn holding(total: usize, content: &[(BlockId, BlockHash)]) -> Self {
        let mut pool = Self::new(total);
        let touched = content.iter().map(|(id, _)| id.0 + 1).max().unwrap_or(0);
        pool.blocks.resize_with(touched as usize, Block::blank);
        for &(id, hash) in content {
            if pool.publish(id, hash) {
                pool.link(id);
            }
        }
        let blank = (0..touched).rev().map(BlockId);
        pool.blank = blank.filter(|&BlockId(id)| pool.blocks[id as usize].hash.is_none()).collect();
        pool
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Blocks that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.blank.len() + self.total - self.blocks.len() + self.cached
    }

    /// The block with this content.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        self.index.get(hash).copied()
    }

    /// How many sequences hold a block.
    pub(super) fn holders(&self, id: BlockId) -> u32 {
        self.blocks.get(id.0 as usize).map_or(0, |block| block.holders)
    }

    /// A free block for new content, and what it held if that could be found until now.
    pub(super) fn take(&mut self) -> Option<(BlockId, Option<BlockHash>)> {
        let (id, evicted) = if let Some(id) = self.blank.pop() {
            (id, None)
        } else if self.blocks.len() < self.total {
            self.blocks.push(Block::blank());
            (BlockId(self.blocks.len() as u32 - 1), None)
        } else if self.oldest != NOBODY {
            let id = BlockId(self.oldest);
            self.unlink(id);
            let evicted = self.block(id).hash.take();
            evicted.map(|hash| self.index.remove(&hash));
            (id, evicted)
        } else {
            return None;
        };
        self.block(id).holders = 1;
        Some((id, evicted))
    }

    /// One more holds it.
    pub(super) fn hold(&mut self, id: BlockId) {
        if self.holders(id) == 0 {
            self.unlink(id);
        }
        self.block(id).holders += 1;
    }

    /// One less holds it. Of blocks with content, the one let go first is taken first.
    pub(super) fn let_go(&mut self, id: BlockId) {
        let block = self.block(id);
        block.holders -= 1;
        match (block.holders, block.hash) {
            (0, Some(_)) => self.link(id),
            (0, None) => self.blank.push(id),
            _ => {}
        }
    }

    /// A block is full, and can be found from now on. False: another with the same content already can.
    pub(super) fn publish(&mut self, id: BlockId, hash: BlockHash) -> bool {
        let vacant = !self.index.contains_key(&hash) && self.block(id).hash.is_none();
        if vacant {
            self.index.insert(hash, id);
            self.block(id).hash = Some(hash);
        }
        vacant
    }

    fn block(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize] // every id is below `total`: of `take`, or checked by `inventory`
    }

    /// Puts a block at the newest end of the list.
    fn link(&mut self, id: BlockId) {
        let newest = std::mem::replace(&mut self.newest, id.0);
        (self.block(id).older, self.block(id).newer) = (newest, NOBODY);
        match newest {
            NOBODY => self.oldest = id.0,
            newest => self.block(BlockId(newest)).newer = id.0,
        }
        self.cached += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let (older, newer) = (self.block(id).older, self.block(id).newer);
        match older {
            NOBODY => self.oldest = newer,
            older => self.block(BlockId(older)).newer = newer,
        }
        match newer {
            NOBODY => self.newest = older,
            newer => self.block(BlockId(newer)).older = older,
        }
        self.cached -= 1;
    }
}

// === impl Block ===

impl Block {
    /// One without content that nobody holds.
    fn blank() -> Self {
        Self { holders: 0, hash: None, older: NOBODY, newer: NOBODY }
    }
}
