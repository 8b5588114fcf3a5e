//! What the host tells the device: packed into one piece of pinned memory, and copied at once.

use std::{ops::Range, sync::Arc};

use crate::{
    Error,
    cuda::{Device, Element, Memory, Pinned, View},
};

/// Where parts start: what the kernels' widest accesses ask for.
const ALIGNMENT: usize = 16;

/// Host memory, and as much on the device.
pub(super) struct Staging {
    host: Pinned,
    memory: Memory<u8>,
    /// Bytes that are filled, and of these, those that were copied.
    used: usize,
    copied: usize,
    /// A copy may be under way.
    busy: bool,
}

/// Where a part lies, in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Part(Range<usize>);

// === impl Staging ===

impl Staging {
    /// Room for so many bytes in `parts` parts.
    pub(super) fn new(device: &Arc<dyn Device>, bytes: usize, parts: usize) -> Result<Self, Error> {
        let bytes = (bytes + parts * ALIGNMENT).next_multiple_of(ALIGNMENT);
        let (host, memory) = (Pinned::new(device, bytes)?, Memory::new(device, bytes)?);
        Ok(Self { host, memory, used: 0, copied: 0, busy: false })
    }

    /// Forgets what is there; waits for a copy that may be under way.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.busy) {
            self.memory.device().synchronize()?;
        }
        (self.used, self.copied) = (0, 0);
        Ok(())
    }

    /// The device has done all that it was given: nothing is under way.
    pub(super) fn rested(&mut self) {
        self.busy = false;
    }

    /// Adds a part.
    pub(super) fn put<T: Element>(&mut self, values: &[T]) -> Result<Part, Error> {
        let (start, bytes) = (self.used, size_of_val(values));
        let room = self.host.get_mut(start..start + bytes).ok_or_else(|| Error::Arguments {
            operation: "a step",
            problem: format!("{bytes} bytes after {start} are more than its limits promised"),
        })?;
        // SAFETY: an element is plain bytes.
        room.copy_from_slice(unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), bytes) });
        self.used = (start + bytes).next_multiple_of(ALIGNMENT);
        Ok(Part(start..start + bytes))
    }

    /// Copies the parts that were added since the last time.
    pub(super) fn upload(&mut self) -> Result<(), Error> {
        let range = self.copied..self.used;
        if range.is_empty() {
            return Ok(());
        }
        (self.copied, self.busy) = (self.used, true);
        let to = self.memory.slice(range.clone()).address();
        // SAFETY: both are as long; `clear` waits before the bytes change again, and `Pinned` before they go.
        unsafe { self.memory.device().upload(to, &self.host[range]) }
    }

    /// A part, on the device.
    pub(super) fn view<T: Element>(&self, part: &Part) -> View<'_, T> {
        self.memory.slice(part.0.clone()).cast()
    }
}
