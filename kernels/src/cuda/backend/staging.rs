//! What the host tells the device: packed into one piece of pinned memory, and copied at once. There are two pieces, so
//! that one can be filled while the other is yet to be copied.

use std::{ops::Range, sync::Arc};

use crate::{
    Error,
    cuda::{Device, Element, Event, Memory, Pinned, View},
};

/// Where parts start: what the kernels' widest accesses ask for.
const ALIGNMENT: usize = 16;

/// Host memory in two pieces, and as much as one of them on the device.
pub(super) struct Staging {
    pieces: [Piece; 2],
    memory: Memory<u8>,
    /// The piece that is being filled.
    piece: usize,
    /// Bytes of it that are filled, and of these, those that were copied.
    used: usize,
    copied: usize,
}

struct Piece {
    host: Pinned,
    /// The end of its last copy, which may be under way.
    copied: Option<Arc<dyn Event>>,
}

/// Where a part lies, in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Part(Range<usize>);

// === impl Staging ===

impl Staging {
    /// Room for so many bytes in `parts` parts.
    pub(super) fn new(device: &Arc<dyn Device>, bytes: usize, parts: usize) -> Result<Self, Error> {
        let bytes = (bytes + parts * ALIGNMENT).next_multiple_of(ALIGNMENT);
        let piece = || Ok::<_, Error>(Piece { host: Pinned::new(device, bytes)?, copied: None });
        let (pieces, memory) = ([piece()?, piece()?], Memory::new(device, bytes)?);
        Ok(Self { pieces, memory, piece: 0, used: 0, copied: 0 })
    }

    /// Begins anew, in the other piece: waits for its last copy.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        self.piece ^= 1;
        (self.used, self.copied) = (0, 0);
        self.pieces[self.piece].copied.take().map_or(Ok(()), |copied| copied.wait())
    }

    /// Adds a part. Parts of the same sizes lie where they lay before.
    pub(super) fn put<T: Element>(&mut self, values: &[T]) -> Result<Part, Error> {
        let (start, bytes) = (self.used, size_of_val(values));
        let room =
            self.pieces[self.piece].host.get_mut(start..start + bytes).ok_or_else(|| Error::Arguments {
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
        self.copied = self.used;
        let (to, piece) = (self.memory.slice(range.clone()).address(), &mut self.pieces[self.piece]);
        // SAFETY: both are as long; `clear` waits before the bytes change again, and `Pinned` before they go.
        unsafe { self.memory.device().upload(to, &piece.host[range])? };
        piece.copied = Some(self.memory.device().mark()?);
        Ok(())
    }

    /// A part, on the device.
    pub(super) fn view<T: Element>(&self, part: &Part) -> View<'_, T> {
        self.memory.slice(part.0.clone()).cast()
    }
}
