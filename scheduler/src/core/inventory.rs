//! What a worker says that its KV cache holds, and what it is told of it: block hashes on the wire.
//!
//! The worker keeps what it is told, and forgets it when a block is written. So what it tells the next scheduler
//! (or the next connection of this one) is there to be found, as if it had been computed for it.

use volley_proto::v1::NamedBlocks;

use super::{prefix::BlockHash, types::BlockId};

/// Bytes of a hash on the wire.
const NAME: usize = size_of::<BlockHash>();

/// A full block of a group, and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The group's number.
    pub group: usize,
    /// The block's, in the group.
    pub block: BlockId,
    /// Its content.
    pub hash: BlockHash,
}

/// A worker's inventory that can't be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadInventory {
    /// It names a block, or a group, that the worker doesn't have.
    #[error("its inventory has block {block} of group {group}, which it hasn't said to have")]
    Unknown {
        /// The group's number.
        group: u32,
        /// The block's.
        block: u32,
    },
    /// Blocks and names aren't as many.
    #[error("its inventory has {blocks} blocks and {bytes} bytes of names; expected {NAME} for each")]
    Names {
        /// Blocks.
        blocks: usize,
        /// Bytes.
        bytes: usize,
    },
}

/// What a worker is told.
pub(super) fn tell(named: &[Named]) -> Vec<NamedBlocks> {
    let mut told: Vec<NamedBlocks> = Vec::new();
    for Named { group, block, hash } in named {
        let group = *group as u32;
        let at = told.iter().position(|blocks| blocks.group == group).unwrap_or_else(|| {
            told.push(NamedBlocks { group, ..NamedBlocks::default() });
            told.len() - 1
        });
        told[at].blocks.push(block.0);
        told[at].names.extend(hash.to_bytes());
    }
    told
}

/// What a worker with `groups[g]` blocks in group `g` says, by group, in the order of last use.
pub(super) fn read(
    inventory: &[NamedBlocks],
    groups: &[u32],
) -> Result<Vec<Vec<(BlockId, BlockHash)>>, BadInventory> {
    let mut contents = vec![Vec::new(); groups.len()];
    for NamedBlocks { group, blocks, names } in inventory {
        let (hashes, rest) = names.as_chunks::<NAME>();
        if hashes.len() != blocks.len() || !rest.is_empty() {
            return Err(BadInventory::Names { blocks: blocks.len(), bytes: names.len() });
        }
        let total = groups.get(*group as usize).copied().unwrap_or(0);
        if let Some(&block) = blocks.iter().find(|&&block| block >= total) {
            return Err(BadInventory::Unknown { group: *group, block });
        }
        if let Some(content) = contents.get_mut(*group as usize) {
            let hashes = hashes.iter().copied().map(BlockHash::from_bytes);
            content.extend(blocks.iter().copied().map(BlockId).zip(hashes));
        }
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::prefix::salt;

    fn named(group: usize, block: u32, content: &str) -> Named {
        Named { group, block: BlockId(block), hash: salt(&[content]) }
    }

    #[test]
    fn what_is_told_is_what_is_read_by_group_and_in_order() {
        let all = [named(1, 7, "a"), named(0, 3, "a"), named(1, 2, "b")];
        let read = read(&tell(&all), &[4, 8]).unwrap();
        let expected = [vec![all[1]], vec![all[0], all[2]]];
        let expected = expected.map(|group| group.iter().map(|n| (n.block, n.hash)).collect::<Vec<_>>());
        assert_eq!(read, expected);
    }

    #[test]
    fn an_inventory_that_cannot_be_is_refused() {
        let told = tell(&[named(1, 7, "a")]);
        assert_eq!(read(&told, &[8, 7]), Err(BadInventory::Unknown { group: 1, block: 7 }));
        assert_eq!(read(&told, &[8]), Err(BadInventory::Unknown { group: 1, block: 7 }));
        let short = [NamedBlocks { names: vec![0; 15], ..told[0].clone() }];
        assert_eq!(read(&short, &[8, 8]), Err(BadInventory::Names { blocks: 1, bytes: 15 }));
    }
}
