//! A model's tensors, by their role: read, checked, cut to a rank's part, and handed to the backend.

use bytes::Bytes;
use volley_kernels::{Backend, DType, HeadNorms, Norm, Tensor, cpu::formats::dequantized};

use super::Layer;
use crate::{
    Error,
    format::Weights,
    model::{Bias, Description, Mlp, NormKind, Qkv},
    shard::Shard,
};

/// A matrix, and its bias if it has one.
pub(crate) type Part = (Tensor, Option<Tensor>);

/// Takes tensors out of the file by their role, and reports how far loading is.
pub(super) struct Loader<'a, B> {
    pub(super) backend: &'a B,
    pub(super) model: &'a Description,
    pub(super) shard: Shard,
    pub(super) weights: &'a Weights,
    pub(super) progress: &'a mut dyn FnMut(u64, u64),
    pub(super) done: u64,
    pub(super) total: u64,
}

// === impl Loader ===

impl<B: Backend> Loader<'_, B> {
    pub(super) fn layer(&mut self, layer: usize) -> Result<Layer<B>, Error> {
        let (backend, model, names) = (self.backend, self.model, self.model.names);
        let (query, key) = (model.heads.heads * model.heads.dim, model.heads.kv_heads * model.heads.dim);
        let qkv = self.qkv(layer, [query, key, key])?;
        let attention_output = self.inputs(names.attention_output, layer, query, model.output_bias)?;
        let mlp = self.mlp(layer)?;
        let down = self.inputs(names.down, layer, model.hidden, model.mlp_bias)?;
        Ok(Layer {
            attention_norm: self.norm_if(names.attention_norm, layer)?,
            qkv: backend.linear(&qkv)?,
            head_norms: names.head_norms.map(|names| self.head_norms(names, layer)).transpose()?,
            attention_output: backend.linear(&[attention_output])?,
            attention_post_norm: self.norm_if(names.attention_post_norm, layer)?,
            mlp_norm: self.norm_if(names.mlp_norm, layer)?,
            mlp,
            down: backend.linear(&[down])?,
            mlp_post_norm: self.norm_if(names.mlp_post_norm, layer)?,
        })
    }

    /// Queries, keys and values: so many rows each in the whole model.
    fn qkv(&mut self, layer: usize, rows: [usize; 3]) -> Result<Vec<Part>, Error> {
        let bias = self.model.qkv_bias;
        match self.model.names.qkv {
            Qkv::Apart(names) => {
                let parts = names.into_iter().zip(rows);
                parts.map(|(name, rows)| self.outputs(name, layer, rows, bias)).collect()
            }
            Qkv::Stacked(name) => self.stacked(name, layer, &rows, bias),
        }
    }

    fn mlp(&mut self, layer: usize) -> Result<B::Linear, Error> {
        let (backend, hidden) = (self.backend, self.model.hidden);
        let linear = match self.model.names.mlp {
            Mlp::Gated([gate, up]) => {
                let (gate, _) = self.outputs(gate, layer, hidden, Bias::Never)?;
                backend.gated(&gate, &self.outputs(up, layer, hidden, Bias::Never)?.0)?
            }
            Mlp::Stacked(name) => {
                let parts = self.stacked(name, layer, &[hidden, hidden], Bias::Never)?;
                backend.gated(&parts[0].0, &parts[1].0)?
            }
            Mlp::Plain(up) => backend.linear(&[self.outputs(up, layer, hidden, self.model.mlp_bias)?])?,
        };
        Ok(linear)
    }

    /// The rank's outputs of a matrix over the residual stream.
    fn outputs(&mut self, name: &str, layer: usize, rows: usize, bias: Bias) -> Result<Part, Error> {
        let part = self.part(name, layer, rows, self.model.width, bias)?;
        self.made(self.shard.outputs_of(part)?)
    }

    /// The rank's inputs of a matrix whose products are added to the residual stream.
    fn inputs(&mut self, name: &str, layer: usize, cols: usize, bias: Bias) -> Result<Part, Error> {
        let (matrix, bias) = self.part(name, layer, self.model.width, cols, bias)?;
        self.made((self.shard.inputs(matrix)?, self.shard.once(bias)))
    }

    /// The rank's outputs of matrices that the file keeps below each other, so many rows each, with their biases.
    fn stacked(&mut self, name: &str, layer: usize, rows: &[usize], bias: Bias) -> Result<Vec<Part>, Error> {
        let (matrix, bias) = self.part(name, layer, rows.iter().sum(), self.model.width, bias)?;
        let mut first = 0;
        let mut cut = |rows: &usize| -> Option<Part> {
            let range = first..first + rows;
            first += rows;
            let bias = match &bias {
                Some(bias) => Some(bias.inputs(range.clone())?),
                None => None,
            };
            Some((matrix.outputs(range)?, bias))
        };
        let parts = rows.iter().map(&mut cut).collect::<Option<Vec<_>>>();
        // A quantized bias may have blocks that belong to two parts.
        let parts = parts.ok_or_else(|| {
            let problem = "its parts' biases are not whole blocks".to_owned();
            Error::Kernel(volley_kernels::Error::Tensor { name: matrix.name.clone(), problem })
        })?;
        parts.into_iter().map(|part| self.made(self.shard.outputs_of(part)?)).collect()
    }

    /// The same, quantized if that was asked for.
    fn made(&self, (matrix, bias): Part) -> Result<Part, Error> {
        Ok((self.weights.made(matrix)?, bias))
    }

    /// A matrix and its bias.
    fn part(
        &mut self,
        name: &str,
        layer: usize,
        rows: usize,
        cols: usize,
        bias: Bias,
    ) -> Result<Part, Error> {
        Ok((self.tensor(name, layer, rows, cols)?, self.bias(name, layer, rows, bias)?))
    }

    pub(super) fn positions(&mut self) -> Result<Option<B::Table>, Error> {
        let (Some(name), Some(rows)) = (self.model.names.positions, self.model.positions) else {
            return Ok(None);
        };
        let table = self.tensor(name, 0, rows, self.model.width)?;
        Ok(Some(self.backend.table(&table)?))
    }

    /// A norm that not all families have.
    fn norm_if(&mut self, name: Option<&str>, layer: usize) -> Result<Option<Norm<B::Vector>>, Error> {
        let backend = self.backend;
        name.map(|name| self.norm(name, layer, |tensor| Ok(backend.vector(tensor)?))).transpose()
    }

    /// A norm whose vectors are made so.
    pub(super) fn norm<V>(
        &mut self,
        name: &str,
        layer: usize,
        vector: impl Fn(&Tensor) -> Result<V, Error>,
    ) -> Result<Norm<V>, Error> {
        let (width, epsilon) = (self.model.width, self.model.epsilon);
        let gain = vector(&self.gain(name, layer, width)?)?;
        match self.model.norm {
            NormKind::Rms => Ok(Norm::Rms { gain, epsilon }),
            NormKind::Layer => {
                let bias = vector(&self.tensor(&name.replace(".weight", ".bias"), layer, 1, width)?)?;
                Ok(Norm::Layer { gain, bias, epsilon })
            }
        }
    }

    fn head_norms(&mut self, names: [&str; 2], layer: usize) -> Result<HeadNorms<B::Vector>, Error> {
        let (heads, epsilon) = (self.model.heads, self.model.epsilon);
        let together = if self.model.joint_norms { [heads.heads, heads.kv_heads] } else { [1, 1] };
        let [query, key] = together.map(|heads_of| heads_of * heads.dim);
        let query = self.backend.vector(&self.gain(names[0], layer, query)?)?;
        let key = self.backend.vector(&self.gain(names[1], layer, key)?)?;
        Ok(HeadNorms { query, key, epsilon })
    }

    /// The gains of a norm, with what the file leaves out.
    fn gain(&mut self, name: &str, layer: usize, numbers: usize) -> Result<Tensor, Error> {
        let gain = self.tensor(name, layer, 1, numbers)?;
        if self.model.gain_offset == 0.0 {
            return Ok(gain);
        }
        let whole = dequantized(&gain)?.into_iter().map(|gain| gain + self.model.gain_offset);
        let data = Bytes::from_iter(whole.flat_map(f32::to_le_bytes));
        Ok(Tensor::new(gain.name, DType::F32, 1, numbers, data)?)
    }

    pub(super) fn tensor(
        &mut self,
        name: &str,
        layer: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Tensor, Error> {
        let tensor = self.weights.get(&in_layer(name, layer), rows, cols)?;
        (self.progress)(self.done, self.total);
        self.done += tensor.data.len() as u64;
        Ok(tensor)
    }

    fn bias(&mut self, name: &str, layer: usize, rows: usize, bias: Bias) -> Result<Option<Tensor>, Error> {
        let name = in_layer(name, layer).replace(".weight", ".bias");
        match bias {
            Bias::Never => Ok(None),
            Bias::IfPresent => self.weights.find(&name, 1, rows),
            Bias::Always => self.weights.get(&name, 1, rows).map(Some),
        }
    }
}

/// The name of a layer's tensor.
pub(crate) fn in_layer(name: &str, layer: usize) -> String {
    name.replace("{}", &layer.to_string())
}
