//! The paged KV cache: blocks of 16 tokens, in half precision.
//!
//! ```text
//! block  layers × kv_heads × { K: [dim][16 tokens] | V: [16 tokens][dim] }
//! ```
//!
//! K is transposed, so that the scores of 16 positions are computed side by side without a sum across lanes;
//! V is not, for the same reason. A block holds all layers, so that copying it is one `memcpy` and its memory
//! is touched together. Rows of V are padded to whole vectors.

use std::ptr::{self, NonNull};

use super::simd::WIDTH;
use crate::{BLOCK_TOKENS, BlockId, Error, Heads};

/// The keys and values of some layers. Memory is touched when it is first written.
pub struct Cache {
    base: NonNull<u16>,
    shape: Shape,
    blocks: usize,
}

/// How a block is laid out. Sizes are in halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
}

// SAFETY: the cache owns its memory; methods hand out pointers only, whose users keep to disjoint rows.
unsafe impl Send for Cache {}
// SAFETY: as above.
unsafe impl Sync for Cache {}

// === impl Shape ===

impl Shape {
    pub(crate) fn new(layers: usize, heads: Heads) -> Self {
        Self { layers, kv_heads: heads.kv_heads, dim: heads.dim }
    }

    /// Halves from one token's V to the next.
    pub(crate) fn value_stride(self) -> usize {
        self.dim.next_multiple_of(WIDTH)
    }

    fn key(self) -> usize {
        BLOCK_TOKENS * self.dim
    }

    fn head(self) -> usize {
        self.key() + BLOCK_TOKENS * self.value_stride()
    }

    fn block(self) -> usize {
        self.layers * self.kv_heads * self.head()
    }

    pub(crate) fn block_bytes(self) -> usize {
        self.block() * size_of::<u16>()
    }
}

// === impl Cache ===

impl Cache {
    /// Reserves address space for `blocks` blocks.
    pub(crate) fn new(shape: Shape, blocks: usize) -> Result<Self, Error> {
        let too_large = |bytes| Error::Memory { bytes, what: "the KV cache" };
        let block = shape.block_bytes().max(1);
        let bytes = block.checked_mul(blocks.max(1)).ok_or(too_large(usize::MAX))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping touches no other memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(too_large(bytes));
        }
        // Blocks lie anywhere: with small pages each would cost walks through page tables.
        #[cfg(target_os = "linux")]
        // SAFETY: the mapping just made; a hint, whose failure changes nothing.
        unsafe {
            libc::madvise(base, bytes, libc::MADV_HUGEPAGE);
        }
        let base = NonNull::new(base.cast()).ok_or(too_large(bytes))?;
        Ok(Self { base, shape, blocks })
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Blocks in the cache.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Where K `[dim][16]` and V `[16][value_stride]` of a head begin.
    ///
    /// # Panics
    /// If there is no such head: what follows is unchecked.
    #[inline(always)]
    pub(crate) fn head(&self, layer: usize, block: BlockId, kv_head: usize) -> (*mut u16, *mut u16) {
        let Shape { layers, kv_heads, .. } = self.shape;
        let block = block.0 as usize;
        assert!(block < self.blocks && layer < layers && kv_head < kv_heads, "no such KV block");
        let offset = block * self.shape.block() + (layer * kv_heads + kv_head) * self.shape.head();
        // SAFETY: within the mapping, as just checked.
        let key = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: a head is as long as its K and its V.
        (key, unsafe { key.add(self.shape.key()) })
    }

    /// Copies whole blocks `(from, to)`, one after another.
    pub(crate) fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) {
        for &(from, to) in copies {
            let (from, to) = (self.head(0, from, 0).0, self.head(0, to, 0).0);
            // SAFETY: both are whole blocks of the mapping; `copy` allows them to be the same.
            unsafe { ptr::copy(from, to, self.shape.block()) };
        }
    }

    /// Fills every block with NaN, to show that nothing is read before it is written.
    #[cfg(test)]
    pub(crate) fn poison(&mut self) {
        for i in 0..self.shape.block() * self.blocks {
            // SAFETY: within the mapping.
            unsafe { self.base.as_ptr().add(i).write(half::f16::NAN.to_bits()) };
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let bytes = self.shape.block_bytes().max(1) * self.blocks.max(1);
        // SAFETY: the mapping made in `new`, which nothing borrows any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { heads: 4, kv_heads: 2, dim: 24, scale: 1.0 };

    #[test]
    fn heads_of_all_blocks_lie_apart() {
        let shape = Shape::new(3, HEADS);
        let cache = Cache::new(shape, 5).unwrap();
        let mut starts = Vec::new();
        for block in 0..5 {
            for layer in 0..3 {
                for kv_head in 0..2 {
                    let (key, value) = cache.head(layer, BlockId(block), kv_head);
                    assert_eq!(value as usize - key as usize, 16 * 24 * 2);
                    starts.push(key as usize);
                }
            }
        }
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == (16 * 24 + 16 * 32) * 2));
        assert_eq!(starts.len() * (16 * 24 + 16 * 32) * 2, 5 * shape.block_bytes());
    }

    #[test]
    fn copied_blocks_equal_their_sources_in_every_layer() {
        let mut cache = Cache::new(Shape::new(2, HEADS), 3).unwrap();
        let last = cache.shape.block() - 1;
        // SAFETY: the first block has so many halves.
        unsafe { cache.head(0, BlockId(0), 0).0.add(last).write(77) };
        cache.copy_blocks(&[(BlockId(0), BlockId(2)), (BlockId(2), BlockId(2)), (BlockId(1), BlockId(0))]);
        // SAFETY: each block has so many halves.
        let lasts = [0, 1, 2].map(|i| unsafe { cache.head(0, BlockId(i), 0).0.add(last).read() });
        assert_eq!(lasts, [0, 0, 77]);
    }

    #[test]
    fn a_cache_larger_than_the_address_space_is_refused() {
        let shape = Shape::new(1000, HEADS);
        assert!(matches!(Cache::new(shape, usize::MAX / 4), Err(Error::Memory { .. })));
        assert!(matches!(Cache::new(shape, 1 << 40), Err(Error::Memory { .. })));
    }

    #[test]
    fn untouched_blocks_cost_no_memory() {
        // A tebibyte would not fit otherwise.
        let shape = Shape::new(30, Heads { heads: 9, kv_heads: 3, dim: 64, scale: 1.0 });
        let cache = Cache::new(shape, (1 << 40) / shape.block_bytes()).unwrap();
        assert!(cache.blocks() > 2_000_000);
    }
}
