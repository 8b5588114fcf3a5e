//! Weights on a device: bf16 as a checkpoint has them, quantized ones packed as the kernels read them.

use std::sync::{Arc, Mutex, atomic::Ordering};

use bytes::Bytes;
use half::bf16;

use super::{CudaBackend, lock};
use crate::{
    DType, Error, Rope, RopePairing, Tensor,
    cpu::formats,
    cuda::{Device, Memory, ops::DeviceWeights, packed::Packing},
};

/// Stacked weight matrices, and a bias.
pub struct Linear {
    pub(super) weights: Weights,
    pub(super) bias: Option<Memory<bf16>>,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Whether the outputs are a gate and what it gates.
    pub(super) gated: bool,
}

/// How they are stored.
pub(super) enum Weights {
    Bf16(Arc<Memory<bf16>>),
    Packed(DeviceWeights),
}

/// An embedding table: `[vocabulary, columns]`.
pub struct Table {
    pub(super) numbers: Arc<Memory<bf16>>,
    pub(super) columns: usize,
}

/// Norm gains or biases.
pub struct Vector(pub(super) Memory<bf16>);

/// Frequencies of a rotation.
pub struct Rotation {
    pub(super) frequencies: Memory<f32>,
    pub(super) pairing: RopePairing,
    pub(super) magnitude: f32,
}

/// Embedding tables, which may be output matrices too: the file's bytes, and where they went.
#[derive(Default)]
pub(super) struct Tables(Mutex<Vec<(Bytes, Arc<Memory<bf16>>)>>);

// === impl Linear ===

impl Linear {
    pub(super) fn new(
        backend: &CudaBackend,
        parts: &[(Tensor, Option<Tensor>)],
        gated: bool,
    ) -> Result<Self, Error> {
        let device = &backend.device;
        let tensors: Vec<&Tensor> = parts.iter().map(|(tensor, _)| tensor).collect();
        let inputs = tensors.first().map_or(0, |tensor| tensor.cols);
        let outputs = tensors.iter().map(|tensor| tensor.rows).sum();
        for tensor in &tensors {
            formats::check(tensor)?;
            if tensor.cols != inputs || !inputs.is_multiple_of(8) || inputs == 0 {
                let problem = format!("{} inputs; {inputs}, and a multiple of 8, were expected", tensor.cols);
                return Err(Error::Tensor { name: tensor.name.clone(), problem });
            }
        }
        let weights = match pack(backend, &tensors)? {
            Some(packed) => {
                backend.largest_packed.fetch_max(outputs * inputs, Ordering::Relaxed);
                Weights::Packed(packed)
            }
            None => {
                let known = backend.tables.find(&tensors);
                Weights::Bf16(known.map_or_else(|| convert(backend, &tensors).map(Arc::new), Ok)?)
            }
        };
        Ok(Self { weights, bias: bias(device, parts)?, outputs, inputs, gated })
    }
}

/// Quantized matrices one below the other, as the kernels read them. None if that isn't what they are, or no kernel
/// reads such.
fn pack(backend: &CudaBackend, tensors: &[&Tensor]) -> Result<Option<DeviceWeights>, Error> {
    let blocks = |tensor: &&Tensor| !tensor.is_plain() && !tensor.dtype.is_scaled();
    let packed = if tensors.iter().all(blocks) {
        Some(Packing::of_gguf(tensors)?)
    } else {
        Packing::of_scaled(tensors)?
    };
    let Some(packed) = packed else { return Ok(None) };
    let scales = packed.scales();
    let mut codes = Memory::new(&backend.device, scales.code_bytes())?;
    backend.load(&mut codes, scales.tile_bytes(), |tile, out| packed.tile(tile, out))?;
    DeviceWeights::with_codes(scales, codes).map(Some)
}

/// The parts' biases one after another, 0 for those that have none; none if none has.
fn bias(device: &Arc<dyn Device>, parts: &[(Tensor, Option<Tensor>)]) -> Result<Option<Memory<bf16>>, Error> {
    if parts.iter().all(|(_, bias)| bias.is_none()) {
        return Ok(None);
    }
    let mut all = Vec::new();
    for (tensor, bias) in parts {
        let bias = match bias {
            Some(bias) if (bias.rows, bias.cols) != (1, tensor.rows) => {
                let problem = format!("a bias of {} × {} for {} outputs", bias.rows, bias.cols, tensor.rows);
                return Err(Error::Tensor { name: bias.name.clone(), problem });
            }
            Some(bias) => formats::dequantized(bias)?,
            None => vec![0.0; tensor.rows],
        };
        all.extend(bias.into_iter().map(bf16::from_f32));
    }
    Memory::from_slice(device, &all).map(Some)
}

/// Matrices one below the other, as bf16.
fn convert(backend: &CudaBackend, tensors: &[&Tensor]) -> Result<Memory<bf16>, Error> {
    let rows = tensors.iter().map(|tensor| tensor.rows).sum::<usize>();
    let columns = tensors.first().map_or(0, |tensor| tensor.cols);
    let mut memory = Memory::new(&backend.device, rows * columns)?;
    backend.load(&mut memory, columns, |row, out| {
        let mut row = row;
        for tensor in tensors {
            match row.checked_sub(tensor.rows) {
                Some(below) => row = below,
                None => return convert_row(tensor, row, out),
            }
        }
    })?;
    Ok(memory)
}

fn convert_row(tensor: &Tensor, row: usize, out: &mut [bf16]) {
    if tensor.dtype == DType::BF16 {
        let bytes = formats::row_data(tensor, row).chunks_exact(2);
        return out.iter_mut().zip(bytes).for_each(|(x, b)| *x = bf16::from_le_bytes([b[0], b[1]]));
    }
    let mut numbers = vec![0.0; tensor.cols];
    formats::dequantize_row(tensor, row, &mut numbers);
    out.iter_mut().zip(&numbers).for_each(|(x, number)| *x = bf16::from_f32(*number));
}

// === impl Table ===

impl Table {
    pub(super) fn new(backend: &CudaBackend, tensor: &Tensor) -> Result<Self, Error> {
        formats::check(tensor)?;
        if !tensor.cols.is_multiple_of(8) {
            let problem = format!("{} columns; a multiple of 8 was expected", tensor.cols);
            return Err(Error::Tensor { name: tensor.name.clone(), problem });
        }
        let numbers = Arc::new(convert(backend, &[tensor])?);
        lock(&backend.tables.0).push((tensor.data.clone(), numbers.clone()));
        Ok(Self { numbers, columns: tensor.cols })
    }
}

// === impl Tables ===

impl Tables {
    /// The table that a matrix is.
    fn find(&self, tensors: &[&Tensor]) -> Option<Arc<Memory<bf16>>> {
        let [tensor] = tensors else { return None };
        let same = |bytes: &Bytes| bytes.as_ptr() == tensor.data.as_ptr() && bytes.len() == tensor.data.len();
        lock(&self.0).iter().find(|(bytes, _)| same(bytes)).map(|(_, numbers)| numbers.clone())
    }
}

// === impl Vector ===

impl Vector {
    pub(super) fn new(device: &Arc<dyn Device>, tensor: &Tensor) -> Result<Self, Error> {
        if tensor.rows != 1 {
            let problem = format!("a vector has one row, not {}", tensor.rows);
            return Err(Error::Tensor { name: tensor.name.clone(), problem });
        }
        let numbers: Vec<bf16> = formats::dequantized(tensor)?.into_iter().map(bf16::from_f32).collect();
        Memory::from_slice(device, &numbers).map(Self)
    }
}

// === impl Rotation ===

impl Rotation {
    pub(super) fn new(device: &Arc<dyn Device>, rope: &Rope) -> Result<Self, Error> {
        let Rope { frequencies, pairing, magnitude } = rope;
        Ok(Self {
            frequencies: Memory::from_slice(device, frequencies)?,
            pairing: *pairing,
            magnitude: *magnitude,
        })
    }
}
