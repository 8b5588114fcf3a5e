//! Activation rows in the form that a product reads: as f32, or as 8-bit integers with a scale per 32 columns.
//!
//! Rows lie in groups of [`GROUP`], the rows of one register tile, so that a tile addresses all of them from one
//! pointer. Per group and block of 32 columns:
//!
//! ```text
//! codes     [GROUP][32]  i8
//! scale     [GROUP]      f32   max|x| / 127
//! sum       [GROUP]      f32   scale · Σ codes, for formats with a minimum
//! negated   [GROUP]      i32   -Σ codes, for formats with a zero point
//! first     [GROUP]      i32   -Σ of the first 16 codes, for Q6_K
//! ```
//!
//! and for f32: `[column][GROUP]`.

use super::formats::BLOCK;
use super::isa::Isa;
use super::linear::kernels;
use super::memory::Region;
use super::pack::Packed;
use crate::Error;

/// Rows that share a register tile.
pub(super) const GROUP: usize = 6;

/// Bytes of a group's block: see the head of this file.
pub(super) const RECORD: usize = GROUP * (BLOCK + 16);

/// Room for the prepared activations of a step: allocated once for the most rows and columns.
pub struct Prepared {
    rows: usize,
    cols: usize,
    int8: Region,
    f32: Region,
}

// === impl Prepared ===

impl Prepared {
    /// Room for `rows` rows of up to `cols` columns; memory is touched when first used.
    pub fn new(rows: usize, cols: usize) -> Result<Self, Error> {
        let what = "activations";
        let padded = rows.max(1).next_multiple_of(GROUP);
        let numbers = padded.checked_mul(cols.max(1).next_multiple_of(BLOCK));
        let Some(numbers) = numbers.filter(|&n| n <= isize::MAX as usize / 8) else {
            return Err(Error::Memory { bytes: usize::MAX, what });
        };
        let int8 = Region::alone(numbers / (BLOCK * GROUP) * RECORD, what)?;
        Ok(Self { rows, cols, int8, f32: Region::alone(numbers * 4, what)? })
    }

    /// Prepares row `row` as `w` needs it. Rows may be set in any order and from several threads.
    ///
    /// # Safety
    /// No other thread sets the same row, or multiplies, at the same time.
    ///
    /// # Panics
    /// If `x` is not as long as `w` has inputs, or there is no room for it.
    pub unsafe fn set_row(&self, isa: Isa, row: usize, x: &[f32], w: &Packed) {
        assert_eq!(x.len(), w.inputs(), "activations of a layer of {} inputs", w.inputs());
        assert!(row < self.rows && x.len() <= self.cols, "row {row} of {} × {}", self.rows, self.cols);
        if w.needs_int8() {
            let blocks = x.len() / BLOCK;
            // SAFETY: the row is within the region by the assertion above, and is this call's by contract.
            unsafe {
                let record = self.int8.pointer().add(row / GROUP * blocks * RECORD);
                (kernels(isa).quantize)(x, row % GROUP, record);
            }
        }
        if w.needs_f32() {
            // SAFETY: as above; `GROUP` rows of `x.len()` numbers each stand before the next group.
            unsafe {
                let first = self.f32.pointer().cast::<f32>().add(row / GROUP * GROUP * x.len() + row % GROUP);
                for (k, &x) in x.iter().enumerate() {
                    first.add(k * GROUP).write(x);
                }
            }
        }
    }

    /// Whether there is room for `rows` rows of `cols` columns.
    pub(super) fn fits(&self, rows: usize, cols: usize) -> bool {
        rows <= self.rows && cols <= self.cols
    }

    /// The first record of a group, in the 8-bit form of rows of `cols` columns.
    pub(super) fn int8_group(&self, group: usize, cols: usize) -> *const u8 {
        self.int8.pointer().wrapping_add(group * (cols / BLOCK) * RECORD)
    }

    /// The first number of a group, in the f32 form of rows of `cols` columns.
    pub(super) fn f32_group(&self, group: usize, cols: usize) -> *const u8 {
        self.f32.pointer().wrapping_add(group * GROUP * cols * 4)
    }
}
