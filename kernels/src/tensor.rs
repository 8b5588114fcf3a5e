//! A weight tensor as it lies in a model file.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use crate::{Error, Scales};

/// How a tensor's numbers are stored. Blocks are along the input dimension; layouts are GGML's, but for the last three,
/// whose codes have their [`Scales`] beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    /// Signed bytes.
    Int8,
    /// Two unsigned codes a byte, the first in the lower half.
    Int4,
    /// 8-bit floats with 4 bits of exponent and no infinities.
    E4m3,
}

/// A matrix `[rows, cols]` (outputs × inputs, row-major) or a vector (`rows` = 1) within a model file.
/// Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name in the file, for errors.
    pub name: String,
    /// Storage format.
    pub dtype: DType,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Exactly `rows * dtype.row_bytes(cols)` bytes, as stored; usually a slice of a memory map.
    pub data: Bytes,
    /// Of the formats that have them beside their codes.
    pub scales: Option<Arc<Scales>>,
}

// === impl DType ===

impl DType {
    /// Numbers per block and bytes per block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Int8 | Self::E4m3 => (1, 1),
            Self::Int4 => (2, 1),
        }
    }

    /// Bytes of a row of `cols` numbers; `None` if `cols` is not a whole number of blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (numbers, bytes) = self.block();
        cols.is_multiple_of(numbers).then(|| (cols / numbers).checked_mul(bytes)).flatten()
    }

    /// Whether numbers are stored as floats, one by one, for what they are.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Whether the codes have their scales beside them.
    pub fn is_scaled(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4 | Self::E4m3)
    }
}

// === impl Tensor ===

impl Tensor {
    /// Checks that `data` has the size that the shape and type ask for.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        rows: usize,
        cols: usize,
        data: Bytes,
    ) -> Result<Self, Error> {
        let tensor = Self { name: name.into(), dtype, rows, cols, data, scales: None };
        tensor.check_bytes()?;
        Ok(tensor)
    }

    /// With the scales of its codes, which must be as many as its shape asks for.
    pub fn with_scales(self, scales: Scales) -> Result<Self, Error> {
        let tensor = Self { scales: Some(Arc::new(scales)), ..self };
        tensor.check()?;
        match tensor.dtype == DType::E4m3 && tensor.data.iter().any(|code| code & 0x7f == 0x7f) {
            true => Err(tensor.error("a weight is not a number".into())),
            false => Ok(tensor),
        }
    }

    /// Errors unless bytes and scales are what the shape asks for (all fields are public, so the tensor need not have
    /// come from [`Tensor::new`]).
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.check_bytes()?;
        match &self.scales {
            None if self.dtype.is_scaled() => Err(self.error("its scales are missing".into())),
            Some(_) if !self.dtype.is_scaled() => Err(self.error(format!("{:?} has no scales", self.dtype))),
            None => Ok(()),
            Some(scales) => {
                scales.check(self.dtype, self.rows, self.cols).map_err(|problem| self.error(problem))
            }
        }
    }

    fn check_bytes(&self) -> Result<(), Error> {
        let Self { dtype, rows, cols, data, .. } = self;
        match dtype.row_bytes(*cols).and_then(|row| row.checked_mul(*rows)) {
            Some(bytes) if bytes == data.len() => Ok(()),
            Some(bytes) => Err(self
                .error(format!("{rows}×{cols} {dtype:?} takes {bytes} bytes, the file has {}", data.len()))),
            None => Err(self.error(format!("{cols} columns are not a whole number of {dtype:?} blocks"))),
        }
    }

    fn error(&self, problem: String) -> Error {
        Error::Tensor { name: self.name.clone(), problem }
    }

    /// Whether its numbers are stored as floats, one by one, for what they are.
    pub fn is_plain(&self) -> bool {
        self.dtype.is_plain()
    }

    /// Some of the outputs, which share the bytes. None if there aren't so many.
    pub fn outputs(&self, range: Range<usize>) -> Option<Self> {
        let row = self.dtype.row_bytes(self.cols)?;
        let bytes = range.start.checked_mul(row)?..range.end.checked_mul(row)?;
        let has = range.start <= range.end && range.end <= self.rows;
        let scales = || Some(Arc::new(self.scales.as_ref()?.outputs(self.cols, range.clone())));
        has.then(|| Self {
            rows: range.len(),
            data: self.data.slice(bytes),
            scales: scales(),
            ..self.clone()
        })
    }

    /// Some of the inputs, copied. None if there aren't so many, or their blocks would be cut.
    pub fn inputs(&self, range: Range<usize>) -> Option<Self> {
        let (row, width) = (self.dtype.row_bytes(self.cols)?, self.dtype.row_bytes(range.len())?);
        let first = self.dtype.row_bytes(range.start).filter(|_| range.end <= self.cols)?;
        let scales = match &self.scales {
            Some(scales) => Some(Arc::new(scales.inputs(self.cols, range.clone())?)),
            None => None,
        };
        let rows = self.data.chunks_exact(row.max(1));
        let data = rows.flat_map(|row| &row[first..first + width]).copied().collect::<Vec<u8>>();
        Some(Self { cols: range.len(), data: data.into(), scales, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_matrix_are_its_rows_or_whole_blocks_of_its_columns() {
        // Two blocks a row, of 18 bytes; each byte says where it is.
        let data: Vec<u8> = (0..4 * 36).collect();
        let all = Tensor::new("m", DType::Q4_0, 4, 64, data.clone().into()).unwrap();
        let rows = all.outputs(1..3).unwrap();
        assert_eq!((rows.rows, rows.cols, &rows.data[..]), (2, 64, &data[36..108]));
        let cols = all.inputs(32..64).unwrap();
        let second: Vec<u8> = (0..4).flat_map(|row| row * 36 + 18..row * 36 + 36).collect();
        assert_eq!((cols.rows, cols.cols, &cols.data[..]), (4, 32, &second[..]));
        assert!(all.inputs(16..48).is_none() && all.inputs(32..96).is_none() && all.outputs(3..5).is_none());
    }
}
