//! The paged KV cache: blocks of 16 tokens, in half precision (or in single, for exact comparisons).
//!
//! ```text
//! block  layers × kv_heads × { K: [dim][16 tokens] | V: [16 tokens][dim] }
//! ```
//!
//! K is transposed, so that the scores of 16 positions are computed side by side without a sum across lanes;
//! V is not, for the same reason. A block holds all layers, so that copying it is one `memcpy` and its memory
//! is touched together. Rows of V are padded to whole vectors.

use std::ptr::{self, NonNull};

use super::simd::{Lanes, WIDTH};
use crate::{BLOCK_TOKENS, BlockId, Error, Heads};

/// The keys and values of some layers. Memory is touched when it is first written.
pub struct Cache {
    base: NonNull<u8>,
    shape: Shape,
    blocks: usize,
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// `u16`: half the bytes to read for each decoded token.
    Half,
    /// `f32`: beside f32 activations, so that nothing is rounded.
    Single,
}

/// A number as it lies in memory: half precision as its bits.
pub(crate) trait Element: Copy {
    const PRECISION: Precision;

    /// Sixteen of them.
    unsafe fn load<L: Lanes>(p: *const Self) -> L;
    unsafe fn store<L: Lanes>(lanes: L, p: *mut Self);
}

/// How a block is laid out. Sizes are in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) precision: Precision,
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
}

// SAFETY: the cache owns its memory; methods hand out pointers only, whose users keep to disjoint rows.
unsafe impl Send for Cache {}
// SAFETY: as above.
unsafe impl Sync for Cache {}

// === impl Element ===

impl Element for u16 {
    const PRECISION: Precision = Precision::Half;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L {
        // SAFETY: as the caller promises.
        unsafe { L::load_f16(p) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, p: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { lanes.store_f16(p) }
    }
}

impl Element for f32 {
    const PRECISION: Precision = Precision::Single;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L {
        // SAFETY: as the caller promises.
        unsafe { L::load(p) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, p: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { lanes.store(p) }
    }
}

// === impl Shape ===

impl Shape {
    pub(crate) fn new(layers: usize, heads: Heads, precision: Precision) -> Self {
        Self { precision, layers, kv_heads: heads.kv_heads, dim: heads.dim }
    }

    /// Numbers from one token's V to the next.
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
        let number = match self.precision {
            Precision::Half => size_of::<u16>(),
            Precision::Single => size_of::<f32>(),
        };
        self.block() * number
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
    /// If there is no such head, or its numbers are others: what follows is unchecked.
    #[inline(always)]
    pub(crate) fn head<E: Element>(&self, layer: usize, block: BlockId, kv_head: usize) -> (*mut E, *mut E) {
        let Shape { layers, kv_heads, precision, .. } = self.shape;
        assert!(precision == E::PRECISION, "the KV cache is in {precision:?} precision");
        let block = block.0 as usize;
        assert!(block < self.blocks && layer < layers && kv_head < kv_heads, "no such KV block");
        let offset = block * self.shape.block() + (layer * kv_heads + kv_head) * self.shape.head();
        // SAFETY: within the mapping, as just checked.
        let key = unsafe { self.base.as_ptr().cast::<E>().add(offset) };
        // SAFETY: a head is as long as its K and its V.
        (key, unsafe { key.add(self.shape.key()) })
    }

    /// Copies whole blocks `(from, to)`, one after another.
    pub(crate) fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) {
        let bytes = self.shape.block_bytes();
        for &(from, to) in copies {
            assert!((from.0.max(to.0) as usize) < self.blocks, "no such KV block");
            let at = |block: BlockId| self.base.as_ptr().wrapping_add(block.0 as usize * bytes);
            // SAFETY: both are whole blocks of the mapping; `copy` allows them to be the same.
            unsafe { ptr::copy(at(from), at(to), bytes) };
        }
    }

    /// Fills every block with NaN, to show that nothing is read before it is written.
    #[cfg(test)]
    pub(crate) fn poison(&mut self) {
        // All ones is NaN in either precision.
        // SAFETY: the whole mapping.
        unsafe { self.base.as_ptr().write_bytes(0xff, self.shape.block_bytes() * self.blocks) };
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

    const HEADS: Heads = Heads { heads: 4, kv_heads: 2, dim: 24, scale: 1.0, window: None, softcap: None };

    #[test]
    fn heads_of_all_blocks_lie_apart() {
        let shape = Shape::new(3, HEADS, Precision::Half);
        let cache = Cache::new(shape, 5).unwrap();
        let mut starts = Vec::new();
        for block in 0..5 {
            for layer in 0..3 {
                for kv_head in 0..2 {
                    let (key, value) = cache.head::<u16>(layer, BlockId(block), kv_head);
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
        let mut cache = Cache::new(Shape::new(2, HEADS, Precision::Half), 3).unwrap();
        let last = cache.shape.block() - 1;
        // SAFETY: the first block has so many halves.
        unsafe { cache.head::<u16>(0, BlockId(0), 0).0.add(last).write(77) };
        cache.copy_blocks(&[(BlockId(0), BlockId(2)), (BlockId(2), BlockId(2)), (BlockId(1), BlockId(0))]);
        // SAFETY: each block has so many halves.
        let lasts = [0, 1, 2].map(|i| unsafe { cache.head::<u16>(0, BlockId(i), 0).0.add(last).read() });
        assert_eq!(lasts, [0, 0, 77]);
    }

    #[test]
    fn a_cache_larger_than_the_address_space_is_refused() {
        let shape = Shape::new(1000, HEADS, Precision::Half);
        assert!(matches!(Cache::new(shape, usize::MAX / 4), Err(Error::Memory { .. })));
        assert!(matches!(Cache::new(shape, 1 << 40), Err(Error::Memory { .. })));
    }

    #[test]
    fn untouched_blocks_cost_no_memory() {
        // A tebibyte would not fit otherwise.
        let heads = Heads { heads: 9, kv_heads: 3, dim: 64, scale: 1.0, window: None, softcap: None };
        let shape = Shape::new(30, heads, Precision::Half);
        let cache = Cache::new(shape, (1 << 40) / shape.block_bytes()).unwrap();
        assert!(cache.blocks() > 2_000_000);
    }
}
