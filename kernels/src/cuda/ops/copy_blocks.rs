//! Copies of whole KV pages.

use super::{int, require, require_aligned, require_len};
use crate::{
    Error,
    cuda::{Device, Launch, View, ViewMut},
};

const OPERATION: &str = "copy_blocks";

/// Copies pages within each layer of a cache of keys or of values.
pub struct CopyBlocks<'a> {
    /// `[layers, pages, page_bytes]`
    pub cache: ViewMut<'a, u8>,
    /// `[n, 2]`: from, to. No page may be written by one pair and touched by another; one that isn't there is
    /// passed over.
    pub pairs: View<'a, u32>,
    /// Layers: at most 65535.
    pub layers: usize,
    /// Pages of a layer.
    pub pages: usize,
    /// A multiple of 16.
    pub page_bytes: usize,
}

/// Launches it.
pub fn copy_blocks(device: &dyn Device, op: &CopyBlocks<'_>) -> Result<(), Error> {
    require(OPERATION, op.page_bytes.is_multiple_of(16) && op.page_bytes > 0, || {
        format!("a page must be a multiple of 16 bytes, not {}", op.page_bytes)
    })?;
    require(OPERATION, op.layers <= 65535, || format!("{} layers are too many", op.layers))?;
    require_len(OPERATION, "the cache", op.cache.len(), op.layers * op.pages * op.page_bytes)?;
    require(OPERATION, op.pairs.len().is_multiple_of(2), || "a page is without its partner".into())?;
    require_aligned(OPERATION, &[("the cache", op.cache.address())])?;
    if op.pairs.is_empty() || op.cache.is_empty() {
        return Ok(());
    }
    let launch = Launch {
        kernel: "copy_blocks",
        grid: [int(OPERATION, "pairs", op.pairs.len() / 2)? as u32, op.layers as u32, 1],
        block: [(op.page_bytes / 16).next_multiple_of(32).min(256) as u32, 1, 1],
        shared: 0,
        arguments: &[
            (&op.cache).into(),
            op.pairs.into(),
            ((op.pages * op.page_bytes) as u64).into(),
            (int(OPERATION, "a page", op.page_bytes)? as u32).into(),
            (int(OPERATION, "pages", op.pages)? as u32).into(),
        ],
    };
    // SAFETY: the cache is as long as its pages say, as checked above; the kernel checks the pairs.
    unsafe { device.launch(&launch) }
}
