//! Weights on a device: bf16 as a checkpoint has them, quantized ones packed as the kernels read them.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use half::bf16;

use super::lock;
use crate::{
    DType, Error, Rope, RopePairing, Tensor,
    cpu::formats,
    cuda::{Device, Memory, PackedWeights, ops::DeviceWeights},
};

/// Numbers that are converted at a time.
const CHUNK: usize = 4 << 20;

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
}

/// Embedding tables, which may be output matrices too: the file's bytes, and where they went.
#[derive(Default)]
pub(super) struct Tables(Mutex<Vec<(Bytes, Arc<Memory<bf16>>)>>);

// === impl Linear ===

impl Linear {
    pub(super) fn new(
        device: &Arc<dyn Device>,
        tables: &Tables,
        parts: &[(Tensor, Option<Tensor>)],
        gated: bool,
    ) -> Result<Self, Error> {
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
        let weights = if tensors.iter().any(|tensor| is_plain(tensor)) {
            Weights::Bf16(tables.find(&tensors).map_or_else(|| convert(device, &tensors).map(Arc::new), Ok)?)
        } else {
            Weights::Packed(DeviceWeights::new(device, &PackedWeights::from_gguf(&tensors)?)?)
        };
        Ok(Self { weights, bias: bias(device, parts)?, outputs, inputs, gated })
    }
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

fn is_plain(tensor: &Tensor) -> bool {
    matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Matrices one below the other, as bf16.
fn convert(device: &Arc<dyn Device>, tensors: &[&Tensor]) -> Result<Memory<bf16>, Error> {
    let numbers = tensors.iter().map(|tensor| tensor.rows * tensor.cols).sum();
    let mut memory = Memory::new(device, numbers)?;
    let (mut at, mut chunk, mut row) = (0, Vec::new(), Vec::new());
    for tensor in tensors {
        row.resize(tensor.cols, 0.0);
        for i in 0..tensor.rows {
            formats::dequantize_row(tensor, i, &mut row);
            chunk.extend(row.iter().map(|x| bf16::from_f32(*x)));
            if chunk.len() >= CHUNK {
                memory.write_at(at, &chunk)?;
                at += chunk.len();
                chunk.clear();
            }
        }
    }
    memory.write_at(at, &chunk)?;
    Ok(memory)
}

// === impl Tables ===

impl Tables {
    /// Takes an embedding table.
    pub(super) fn table(&self, device: &Arc<dyn Device>, tensor: &Tensor) -> Result<Table, Error> {
        formats::check(tensor)?;
        if !tensor.cols.is_multiple_of(8) {
            let problem = format!("{} columns; a multiple of 8 was expected", tensor.cols);
            return Err(Error::Tensor { name: tensor.name.clone(), problem });
        }
        let numbers = Arc::new(convert(device, &[tensor])?);
        lock(&self.0).push((tensor.data.clone(), numbers.clone()));
        Ok(Table { numbers, columns: tensor.cols })
    }

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
        Ok(Self { frequencies: Memory::from_slice(device, &rope.frequencies)?, pairing: rope.pairing })
    }
}
