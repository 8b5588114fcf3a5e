//! A weight tensor as it lies in a model file.

use bytes::Bytes;

use crate::Error;

/// How a tensor's numbers are stored. Blocks are along the input dimension; layouts are GGML's.
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
        }
    }

    /// Bytes of a row of `cols` numbers; `None` if `cols` is not a whole number of blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (numbers, bytes) = self.block();
        cols.is_multiple_of(numbers).then(|| (cols / numbers).checked_mul(bytes)).flatten()
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
        let name = name.into();
        let expected = dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        match expected {
            Some(bytes) if bytes == data.len() => Ok(Self { name, dtype, rows, cols, data }),
            Some(bytes) => {
                let problem =
                    format!("{rows}×{cols} {dtype:?} takes {bytes} bytes, the file has {}", data.len());
                Err(Error::Tensor { name, problem })
            }
            None => {
                let problem = format!("{cols} columns are not a whole number of {dtype:?} blocks");
                Err(Error::Tensor { name, problem })
            }
        }
    }
}
