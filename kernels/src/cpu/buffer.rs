//! Activations.

use super::memory::Region;
use super::pack::Packed;
use crate::Error;

/// A `[rows, cols]` matrix of f32. Memory is touched when it is first written.
pub struct Buffer {
    numbers: Region,
    rows: usize,
    cols: usize,
}

// === impl Buffer ===

impl Buffer {
    pub(super) fn new(rows: usize, cols: usize) -> Result<Self, Error> {
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(size_of::<f32>()));
        let bytes = bytes.ok_or(Error::Memory { bytes: usize::MAX, what: "activations" })?;
        Ok(Self { numbers: Region::alone(bytes, "activations")?, rows, cols })
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn rows(&self, rows: usize) -> &[f32] {
        assert!(rows <= self.rows, "{rows} rows of a buffer of {}", self.rows);
        // SAFETY: the region has so many numbers, zero if never written, on a cache line.
        unsafe { std::slice::from_raw_parts(self.numbers.pointer().cast(), rows * self.cols) }
    }

    pub(super) fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        assert!(rows <= self.rows, "{rows} rows of a buffer of {}", self.rows);
        // SAFETY: as above; the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.numbers.pointer().cast(), rows * self.cols) }
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.rows(row + 1)[row * self.cols..]
    }

    /// Puts `rows` rows together of what each rank has of them.
    pub(super) fn gather(&mut self, rows: usize, parts: &[&[f32]]) {
        let (cols, numbers) = (self.cols, self.rows_mut(rows));
        for (i, row) in numbers.chunks_exact_mut(cols).enumerate() {
            let mut rest = row;
            for part in parts {
                let part = &part[part.len() / rows * i..part.len() / rows * (i + 1)];
                let (here, after) = rest.split_at_mut(part.len());
                here.copy_from_slice(part);
                rest = after;
            }
        }
    }

    /// The rows that a product with `w` writes.
    pub(super) fn product_mut(&mut self, rows: usize, w: &Packed) -> &mut [f32] {
        assert_eq!(self.cols, w.outputs(), "the buffer's columns are not the layer's outputs");
        self.rows_mut(rows)
    }
}
