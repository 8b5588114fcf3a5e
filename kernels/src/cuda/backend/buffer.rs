//! Matrices that live for as long as the backend does: activations, and the cache of keys and values.

use std::sync::Arc;

use half::bf16;

use super::staging::Staging;
use crate::{
    BLOCK_TOKENS, BlockId, Content, Error, Heads,
    cuda::{
        Device, Memory, View, ViewMut,
        ops::{self, CopyBlocks, KvCache, KvNumbers, KvPages},
    },
};

/// Pairs of blocks that one launch copies at most.
const COPIES: usize = 256;

/// A `[rows, cols]` matrix.
pub struct Buffer {
    pub(super) numbers: Numbers,
    /// Of the residual stream: what is to be added to it when it is read next, where `pending`.
    pub(super) addend: Option<Memory<bf16>>,
    pub(super) pending: bool,
    pub(super) cols: usize,
    /// Numbers from row to row.
    pub(super) stride: usize,
    rows: usize,
}

pub(super) enum Numbers {
    Activations(Memory<bf16>),
    Logits(Memory<f32>),
}

/// Keys and values, `[layer, block, kv_head, token, dim]` each.
pub struct Cache {
    k: Memory<bf16>,
    v: Memory<bf16>,
    layers: usize,
    blocks: usize,
    /// Numbers of a block in a layer.
    block: usize,
    pairs: Staging,
}

/// Numbers of a block's keys in a layer.
pub(super) fn block_numbers(heads: Heads) -> usize {
    heads.kv_heads * BLOCK_TOKENS * heads.dim
}

// === impl Buffer ===

impl Buffer {
    pub(super) fn new(
        device: &Arc<dyn Device>,
        rows: usize,
        cols: usize,
        content: Content,
    ) -> Result<Self, Error> {
        // Rows of logits start at 16-byte boundaries.
        let stride = if content == Content::Logits { cols.next_multiple_of(4) } else { cols };
        let len = rows.checked_mul(stride).filter(|len| len.checked_mul(4).is_some());
        let len = len.ok_or(Error::Memory { bytes: usize::MAX, what: "activations" })?;
        let numbers = match content {
            Content::Logits => Numbers::Logits(Memory::new(device, len)?),
            _ => Numbers::Activations(Memory::new(device, len)?),
        };
        let addend = (content == Content::Residual).then(|| Memory::new(device, len)).transpose()?;
        Ok(Self { numbers, addend, pending: false, cols, stride, rows })
    }

    /// The first `rows` rows of activations.
    pub(super) fn activations(&self, rows: usize) -> Result<View<'_, bf16>, Error> {
        self.has(rows)?;
        match &self.numbers {
            Numbers::Activations(numbers) => Ok(numbers.slice(0..rows * self.cols)),
            Numbers::Logits(_) => Err(misused("logits are no activations".into())),
        }
    }

    /// The same, to write.
    pub(super) fn activations_mut(&mut self, rows: usize) -> Result<ViewMut<'_, bf16>, Error> {
        self.has(rows)?;
        match &mut self.numbers {
            Numbers::Activations(numbers) => Ok(numbers.slice_mut(0..rows * self.cols)),
            Numbers::Logits(_) => Err(misused("logits are no activations".into())),
        }
    }

    /// All logits.
    pub(super) fn logits_mut(&mut self) -> Result<&mut Memory<f32>, Error> {
        match &mut self.numbers {
            Numbers::Logits(numbers) => Ok(numbers),
            Numbers::Activations(_) => Err(misused("activations are no logits".into())),
        }
    }

    /// The first `rows` rows, on the host.
    pub(super) fn read(&self, rows: usize) -> Result<Vec<f32>, Error> {
        self.has(rows)?;
        let len = rows * self.stride;
        match (&self.numbers, &self.addend) {
            (Numbers::Logits(numbers), _) => {
                let all = numbers.read_part(0..len)?;
                Ok(all.chunks(self.stride).flat_map(|row| &row[..self.cols]).copied().collect())
            }
            (Numbers::Activations(numbers), Some(addend)) if self.pending => {
                let both = numbers.read_part(0..len)?.into_iter().zip(addend.read_part(0..len)?);
                // As the norm that reads them adds them.
                Ok(both.map(|(x, more)| bf16::from_f32(x.to_f32() + more.to_f32()).to_f32()).collect())
            }
            (Numbers::Activations(numbers), _) => {
                Ok(numbers.read_part(0..len)?.into_iter().map(bf16::to_f32).collect())
            }
        }
    }

    fn has(&self, rows: usize) -> Result<(), Error> {
        if rows <= self.rows { Ok(()) } else { Err(misused(format!("{rows} rows of {}", self.rows))) }
    }
}

fn misused(problem: String) -> Error {
    Error::Arguments { operation: "a buffer", problem }
}

// === impl Cache ===

impl Cache {
    pub(super) fn new(
        device: &Arc<dyn Device>,
        layers: usize,
        heads: Heads,
        blocks: usize,
    ) -> Result<Self, Error> {
        let Heads { heads: queries, kv_heads, dim, .. } = heads;
        if kv_heads == 0 || !queries.is_multiple_of(kv_heads) || ![64, 80, 96, 128, 256].contains(&dim) {
            return Err(Error::Unsupported(format!(
                "attention on a GPU needs whole groups of heads of 64, 80, 96, 128 or 256 dimensions: \
                 {queries} heads over {kv_heads} KV heads of {dim} dimensions"
            )));
        }
        let block = block_numbers(heads);
        let numbers = block.checked_mul(layers).and_then(|all| all.checked_mul(blocks));
        let numbers = numbers.filter(|numbers| numbers.checked_mul(2).is_some());
        let numbers = numbers.ok_or(Error::Memory { bytes: usize::MAX, what: "the KV cache" })?;
        let (k, v) = (Memory::new(device, numbers)?, Memory::new(device, numbers)?);
        let pairs = Staging::new(device, COPIES * 2 * size_of::<u32>(), 1)?;
        Ok(Self { k, v, layers, blocks, block, pairs })
    }

    /// A layer's pages, to read.
    pub(super) fn pages(&self, layer: usize) -> KvPages<'_> {
        let range = self.range(layer);
        KvPages::Bf16 { k: self.k.slice(range.clone()), v: self.v.slice(range) }
    }

    /// A layer's pages, to write.
    pub(super) fn pages_mut(&mut self, layer: usize) -> KvCache<'_> {
        let range = self.range(layer);
        let numbers = KvNumbers::Bf16 { k: self.k.slice_mut(range.clone()), v: self.v.slice_mut(range) };
        KvCache { numbers, pages: self.blocks, page_tokens: BLOCK_TOKENS }
    }

    /// How many a layer has.
    pub(super) fn pages_of_a_layer(&self) -> usize {
        self.blocks
    }

    fn range(&self, layer: usize) -> std::ops::Range<usize> {
        let numbers = self.block * self.blocks;
        layer * numbers..(layer + 1) * numbers
    }

    /// Copies blocks in every layer, one pair after the other.
    pub(super) fn copy(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), Error> {
        let mut rest = copies;
        while !rest.is_empty() {
            let (together, others) = rest.split_at(independent(rest));
            rest = others;
            let pairs: Vec<u32> = together.iter().flat_map(|(from, to)| [from.0, to.0]).collect();
            self.pairs.clear()?;
            let part = self.pairs.put(&pairs)?;
            self.pairs.upload()?;
            let device = self.k.device().clone();
            for cache in [&mut self.k, &mut self.v] {
                let op = CopyBlocks {
                    cache: cache.view_mut().cast(),
                    pairs: self.pairs.view(&part),
                    layers: self.layers,
                    pages: self.blocks,
                    page_bytes: self.block * size_of::<bf16>(),
                };
                ops::copy_blocks(&*device, &op)?;
            }
        }
        Ok(())
    }
}

/// How many of the first copies touch no block that another of them writes.
fn independent(copies: &[(BlockId, BlockId)]) -> usize {
    let clashes = |i: usize| {
        let (from, to) = copies[i];
        copies[..i].iter().any(|(f, t)| *t == from || *t == to || *f == to)
    };
    (1..copies.len().min(COPIES)).find(|&i| clashes(i)).unwrap_or(copies.len().min(COPIES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_depend_on_each_other_are_not_made_together() {
        let pairs = |pairs: &[(u32, u32)]| {
            independent(&pairs.iter().map(|&(from, to)| (BlockId(from), BlockId(to))).collect::<Vec<_>>())
        };
        assert_eq!(pairs(&[(1, 2), (1, 3), (4, 5)]), 3);
        assert_eq!(pairs(&[(1, 2), (2, 3)]), 1);
        assert_eq!(pairs(&[(1, 2), (3, 4), (5, 2)]), 2);
        assert_eq!(pairs(&[(1, 2), (3, 1)]), 1);
    }
}
