//! Packing: scales at once, codes a tile of rows at a time, straight to where they are to be.

use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;

use super::{PackedFormat, PackedWeights, Place, STEP, TILE_ROWS, invalid, place, scale_place, units};
use crate::{Error, threads};

/// The exponent that a row's largest group scale is brought to, so that f16 holds all of them well.
const SCALE_EXPONENT: i32 = 12;

/// `codes(row, out)` says a row's.
type Codes<'a> = dyn Fn(usize, &mut [u8]) + Sync + 'a;

/// A matrix whose codes are asked for when there is a place for them: there need be no copy of all on the host.
pub(crate) struct Packing<'a> {
    /// Without its codes.
    packed: PackedWeights,
    codes: Box<Codes<'a>>,
}

// === impl Packing ===

impl<'a> Packing<'a> {
    /// With a scale per row: `codes(row, out)` says a row's.
    pub(super) fn by_row(
        format: PackedFormat,
        cols: usize,
        scales: Vec<f32>,
        codes: impl Fn(usize, &mut [u8]) + Sync + 'a,
    ) -> Result<Self, Error> {
        let packed = PackedWeights::without_codes(format, scales.len(), cols, 0)?;
        Ok(Self { packed: PackedWeights { row_scales: scales, ..packed }, codes: Box::new(codes) })
    }

    /// With a scale and an offset per group of `group` inputs: `codes(row, out)` says a row's codes, `scale(row, group)`
    /// these two.
    pub(super) fn by_group(
        format: PackedFormat,
        (rows, cols): (usize, usize),
        group: usize,
        codes: impl Fn(usize, &mut [u8]) + Sync + 'a,
        scale: impl Fn(usize, usize) -> (f32, f32) + Sync,
    ) -> Result<Self, Error> {
        let mut packed = PackedWeights::without_codes(format, rows, cols, group)?;
        fill_scales(&mut packed, scale)?;
        Ok(Self { packed, codes: Box::new(codes) })
    }

    /// All but the codes.
    pub(in crate::cuda) fn scales(&self) -> &PackedWeights {
        &self.packed
    }

    /// Makes the codes of a tile of rows: [`PackedWeights::tile_bytes`] of them.
    pub(in crate::cuda) fn tile(&self, tile: usize, out: &mut [u8]) {
        let PackedWeights { format, rows, cols, .. } = self.packed;
        let (first, mut of_row) = (tile * TILE_ROWS, vec![0; cols]);
        out.fill(0);
        for row in first..rows.min(first + TILE_ROWS) {
            (self.codes)(row, &mut of_row);
            scatter(format, row - first, &of_row, out);
        }
    }

    /// With the codes, here.
    pub(crate) fn finish(self) -> PackedWeights {
        let (tile, bytes) = (self.packed.tile_bytes(), self.packed.code_bytes());
        let mut codes = vec![0; bytes];
        threads::share(codes.chunks_mut(tile).enumerate(), |(i, out)| self.tile(i, out));
        PackedWeights { codes, ..self.packed }
    }
}

/// On several threads, each a tile of rows at a time.
fn fill_scales(
    packed: &mut PackedWeights,
    scale: impl Fn(usize, usize) -> (f32, f32) + Sync,
) -> Result<(), Error> {
    let PackedWeights { rows, cols, group, .. } = *packed;
    let (groups, units) = (cols.div_ceil(group), units(cols, group));
    let wrong = AtomicUsize::new(usize::MAX);
    let tiles = packed.group_scales.chunks_mut(units * 32).zip(packed.row_scales.chunks_mut(TILE_ROWS));
    threads::share(tiles.enumerate(), |(tile, (group_scales, row_scales))| {
        let first = tile * TILE_ROWS;
        for row in first..rows.min(first + TILE_ROWS) {
            let pairs: Vec<(f32, f32)> = (0..groups).map(|group| scale(row, group)).collect();
            let largest = pairs.iter().fold(0.0f32, |most, (s, o)| most.max(s.abs()).max(o.abs()));
            if !largest.is_finite() || pairs.iter().any(|(s, o)| s.is_nan() || o.is_nan()) {
                wrong.fetch_min(row, Ordering::Relaxed);
                return;
            }
            // A power of two, so that scales that f16 holds exactly stay exact.
            let exponent = if largest > 0.0 { largest.log2().floor() as i32 - SCALE_EXPONENT } else { 0 };
            let (up, down) = ((exponent as f32).exp2(), (-exponent as f32).exp2());
            row_scales[row - first] = up;
            for (group, (s, o)) in pairs.into_iter().enumerate() {
                let half = |x: f32| u32::from(f16::from_f32(x * down).to_bits());
                group_scales[scale_place(row - first, units, group)] = half(s) | half(o) << 16;
            }
        }
    });
    match wrong.into_inner() {
        usize::MAX => Ok(()),
        row => Err(invalid(format!("row {row} has a scale that is no number"))),
    }
}

/// Puts the codes of a row of a tile where they belong in it, which was zero.
fn scatter(format: PackedFormat, row: usize, codes: &[u8], tile: &mut [u8]) {
    // All steps are alike.
    let places: [Place; STEP] = std::array::from_fn(|col| place(format, STEP, row, col));
    let steps = tile.chunks_exact_mut(TILE_ROWS * STEP * format.bits() / 8);
    for (codes, step) in codes.chunks(STEP).zip(steps) {
        for (code, place) in codes.iter().zip(&places) {
            step[place.byte] |= code << place.shift;
        }
    }
}
