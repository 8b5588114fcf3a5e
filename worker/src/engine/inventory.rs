//! What the KV cache holds, by name, for whoever plans the next steps here.
//!
//! A scheduler keeps the books of the cache. When it dies they are lost, but the cache isn't: the worker remembers
//! which full blocks it was told the names of, and tells them to the scheduler that claims it next.
//!
//! A name can't outlive what it names. Only runs and copies write, and whatever writes a block takes its name away.
//! A name comes back with a later plan, when the step that filled the block has been answered; so what a step in
//! flight has left half done has none.
//!
//! No device, no clock: the scheduler's tests and the cluster simulator run it under their own workers.

use std::collections::HashMap;

use volley_proto::v1::NamedBlocks;

/// Bytes of a name.
const NAME: usize = 16;

/// The blocks that have names, by group and number.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    named: HashMap<(u32, u32), Named>,
    /// Grows with every use of a block.
    uses: u64,
}

#[derive(Debug)]
struct Named {
    name: [u8; NAME],
    /// When it was used last.
    used: u64,
}

// === impl Inventory ===

impl Inventory {
    /// Blocks are full, and this is in them. To be told before a plan's writes.
    pub(crate) fn name(&mut self, full: &NamedBlocks) -> Result<(), String> {
        let (names, rest) = full.names.as_chunks::<NAME>();
        if names.len() != full.blocks.len() || !rest.is_empty() {
            let (bytes, blocks) = (full.names.len(), full.blocks.len());
            return Err(format!("{bytes} bytes of names for {blocks} blocks; expected {NAME} for each"));
        }
        for (&block, &name) in full.blocks.iter().zip(names) {
            self.uses += 1;
            self.named.insert((full.group, block), Named { name, used: self.uses });
        }
        Ok(())
    }

    /// A block is about to be written.
    pub(crate) fn written(&mut self, group: u32, block: u32) {
        self.named.remove(&(group, block));
    }

    /// A sequence lets go of its blocks: the first is the last that should give way, as for the scheduler.
    pub(crate) fn let_go(&mut self, group: u32, table: impl DoubleEndedIterator<Item = u32>) {
        for block in table.rev() {
            if let Some(named) = self.named.get_mut(&(group, block)) {
                self.uses += 1;
                named.used = self.uses;
            }
        }
    }

    /// All of it, of each group at most the `most` blocks that were used last.
    pub(crate) fn report(&self, most: usize) -> Vec<NamedBlocks> {
        let mut all: Vec<_> = self.named.iter().collect();
        all.sort_unstable_by_key(|(place, named)| (place.0, named.used));
        let groups = all.chunk_by(|one, other| one.0.0 == other.0.0);
        groups
            .map(|blocks| {
                let newest = &blocks[blocks.len().saturating_sub(most)..];
                NamedBlocks {
                    group: newest.first().map_or(0, |(place, _)| place.0),
                    blocks: newest.iter().map(|(place, _)| place.1).collect(),
                    names: newest.iter().flat_map(|(_, named)| named.name).collect(),
                }
            })
            .collect()
    }
}
