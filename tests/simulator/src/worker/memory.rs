//! A worker's KV cache: which token each place of each block was computed for, and the names that blocks were told,
//! kept as a worker keeps them.

use std::collections::HashMap;

use volley_proto::v1;

use super::{Violation, ensure, inventory::Inventory};

/// All blocks of a worker.
#[derive(Debug)]
pub struct Memory {
    block_tokens: usize,
    groups: usize,
    /// (group, block) → its tokens.
    cells: HashMap<(usize, u32), Vec<Option<u32>>>,
    pub(super) inventory: Inventory,
}

// === impl Memory ===

impl Memory {
    /// Empty: blocks of `block_tokens` in each of `groups` groups.
    pub fn new(block_tokens: usize, groups: usize) -> Self {
        Self { block_tokens, groups, cells: HashMap::new(), inventory: Inventory::default() }
    }

    /// Computes `tokens` from position `from` on.
    pub(super) fn write(
        &mut self,
        tables: &[Vec<u32>],
        from: usize,
        tokens: &[u32],
    ) -> Result<(), Violation> {
        ensure!(tables.len() == self.groups, "blocks of {} groups, not {}", tables.len(), self.groups);
        for (group, table) in tables.iter().enumerate() {
            for (position, &token) in (from..).zip(tokens) {
                let block = table.get(position / self.block_tokens).copied();
                let Some(block) = block else {
                    return Err(Violation(format!("position {position} has no block in group {group}")));
                };
                let cells = self.cells.entry((group, block)).or_default();
                cells.resize(self.block_tokens, None);
                cells[position % self.block_tokens] = Some(token);
                self.inventory.written(group as u32, block);
            }
        }
        Ok(())
    }

    /// Attends to everything so far, which should be `tokens`.
    pub(super) fn read(&self, tables: &[Vec<u32>], tokens: &[u32]) -> Result<(), Violation> {
        for (group, table) in tables.iter().enumerate() {
            for (nth, tokens) in tokens.chunks(self.block_tokens).enumerate() {
                let cells = self.cells.get(&(group, table[nth])).map_or(&[][..], Vec::as_slice);
                let holds =
                    cells.len() >= tokens.len() && cells.iter().zip(tokens).all(|(c, t)| *c == Some(*t));
                ensure!(holds, "block {} of group {group} holds {cells:?}, not {tokens:?}", table[nth]);
            }
        }
        Ok(())
    }

    /// A sequence is gone.
    pub(super) fn let_go(&mut self, tables: &[Vec<u32>]) {
        for (group, table) in (0..).zip(tables) {
            self.inventory.let_go(group, table.iter().copied());
        }
    }

    /// Copies a block.
    pub(super) fn copy(&mut self, copy: &v1::BlockCopy) {
        let group = copy.group as usize;
        let content = self.cells.get(&(group, copy.from)).cloned().unwrap_or_default();
        self.cells.insert((group, copy.to), content);
        self.inventory.written(copy.group, copy.to);
    }
}
