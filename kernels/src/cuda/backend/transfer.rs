//! Weights on their way to the device: several threads make them in pinned memory, in one of two pieces, while the
//! other piece is being copied.
//!
//! ```text
//! make A ─▶ copy A ┐ make B ─▶ copy B ┐ make A …      made here: on the threads; copied: by the device
//!                  └─────────┘ waits  └─────────
//! ```

use std::sync::Arc;

use crate::{
    Error,
    cuda::{Device, Element, Memory, Pinned},
    threads,
};

/// The two pieces, and the one that is next.
pub(super) struct Transfer {
    device: Arc<dyn Device>,
    pieces: [Pinned; 2],
    next: usize,
}

// === impl Transfer ===

impl Transfer {
    /// Through pieces of so many bytes.
    pub(super) fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, Error> {
        let pieces = [Pinned::new(device, bytes)?, Pinned::new(device, bytes)?];
        Ok(Self { device: device.clone(), pieces, next: 0 })
    }

    /// Overwrites `memory` with rows of `columns` elements: `make(row, out)` makes one.
    pub(super) fn fill<T: Element>(
        &mut self,
        memory: &mut Memory<T>,
        columns: usize,
        make: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<(), Error> {
        let row_bytes = columns * size_of::<T>();
        if row_bytes == 0 || !memory.len().is_multiple_of(columns) {
            let problem = format!("rows of {columns} in {} elements", memory.len());
            return Err(Error::Arguments { operation: "loading weights", problem });
        }
        if self.pieces[0].len() < row_bytes {
            *self = Self::new(&self.device, row_bytes)?;
        }
        let (rows, most) = (memory.len() / columns, self.pieces[0].len() / row_bytes);
        for first in (0..rows).step_by(most) {
            let bytes = most.min(rows - first) * row_bytes;
            let piece = &mut self.pieces[self.next][..bytes];
            // SAFETY: pinned memory is aligned for any element, and any bytes are elements.
            let (before, elements, _) = unsafe { piece.align_to_mut::<T>() };
            debug_assert!(before.is_empty());
            threads::share(elements.chunks_exact_mut(columns).enumerate(), |(i, out)| make(first + i, out));
            // The other piece is then free to be written again, once this one is on its way.
            self.device.synchronize()?;
            let to = memory.slice(first * columns..first * columns + bytes / size_of::<T>()).address();
            // SAFETY: both are as long; the bytes change again after the next piece's `synchronize` only, and `Pinned`
            // waits before they go.
            unsafe { self.device.upload(to, &self.pieces[self.next][..bytes])? };
            self.next ^= 1;
        }
        Ok(())
    }
}
