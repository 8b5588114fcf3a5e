//! The operations of a forward pass.

use half::bf16;

use super::{
    CudaBackend,
    buffer::{Buffer, Cache, Numbers},
    group,
    step::Step,
    weights::{Linear, Rotation, Table, Vector, Weights},
};
use crate::{
    Activation, Error, Heads, Norm, Rotary,
    cuda::{
        Device, Memory, View, ViewMut,
        ops::{
            self, Activate, Attention, Embed, Factors, Function, Gemm, GemmOutput, HeadNorms, LayerNorm,
            PackedGemm, QkvStore, RmsNorm, Skinny, SkinnyOut, SkinnyScratch, SkinnyWeights,
        },
    },
};

/// From so many rows on, products are taken in larger tiles, unless rows must not depend on their neighbours.
const MANY_ROWS: usize = 65;

/// What a product is written to.
enum Out<'a> {
    Activations(ViewMut<'a, bf16>),
    /// What isn't rounded yet, in rows so far apart: logits, a rank's part of a sum.
    Parts(ViewMut<'a, f32>, usize),
}

/// Rows to be normed, with what is added to them first.
struct Rows<'a> {
    x: View<'a, bf16>,
    /// Becomes `x + residual`, and is what is normed.
    residual: Option<ViewMut<'a, bf16>>,
    out: ViewMut<'a, bf16>,
    count: usize,
    columns: usize,
}

impl CudaBackend {
    /// What positions add is left beside `x`, as the products are.
    pub(super) fn run_embed(
        &self,
        step: &mut Step,
        table: &Table,
        positions: Option<&Table>,
        x: &mut Buffer,
    ) -> Result<(), Error> {
        x.pending = false;
        let (rows, columns) = (step.rows.count(), table.columns);
        let drawn = Some(step.draws.drawn());
        let gather = |tokens: View<'_, u32>, table: &Table, out: ViewMut<'_, bf16>| {
            let table = table.numbers.view();
            ops::embed(self.device(), &Embed { tokens, drawn, table, out, columns, scale: 1.0 })
        };
        gather(step.rows.tokens(), table, x.activations_mut(rows)?)?;
        if let Some(positions) = positions {
            let addend = x.addend.as_mut().ok_or_else(|| no_residual("embed"))?;
            gather(step.rows.positions(), positions, addend.slice_mut(0..rows * columns))?;
            x.pending = true;
        }
        Ok(())
    }

    pub(super) fn run_norm_linear(
        &self,
        step: &mut Step,
        x: &mut Buffer,
        norm: &Norm<Vector>,
        w: &Linear,
        out: &mut Buffer,
    ) -> Result<(), Error> {
        let rows = step.rows.count();
        self.normalize(step, x, norm)?;
        let normed = step.normed.slice(0..rows * x.cols);
        self.product(&mut step.scratch, rows, normed, w, Out::Activations(out.activations_mut(rows)?))
    }

    pub(super) fn run_rope_and_store(
        &self,
        step: &mut Step,
        layer: usize,
        heads: Heads,
        Rotary { rope, norms }: Rotary<'_, Rotation, Vector>,
        qkv: &mut Buffer,
        cache: &mut Cache,
    ) -> Result<(), Error> {
        let op = QkvStore {
            qkv: ops::Queries::InPlace(qkv.activations_mut(step.rows.count())?),
            bias: None,
            norms: norms.map(|norms| HeadNorms {
                q: norms.query.0.view(),
                k: norms.key.0.view(),
                epsilon: norms.epsilon,
            }),
            cache: cache.pages_mut(layer),
            slots: step.rows.slots(),
            positions: step.rows.positions(),
            frequencies: rope.frequencies.view(),
            pairing: rope.pairing,
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            dim: heads.dim,
        };
        ops::qkv_store(self.device(), &op)
    }

    pub(super) fn run_attention(
        &self,
        step: &mut Step,
        layer: usize,
        heads: Heads,
        qkv: &Buffer,
        cache: &Cache,
        out: &mut Buffer,
    ) -> Result<(), Error> {
        if heads != step.limits.heads {
            let problem = format!("{heads:?} in a step for {:?}", step.limits.heads);
            return Err(Error::Arguments { operation: "attention", problem });
        }
        let rows = step.rows.count();
        step.pages = cache.pages_of_a_layer();
        for planned in step.rows.plans() {
            let op = Attention {
                planned,
                q: qkv.activations(rows)?,
                q_stride: qkv.cols,
                pages: cache.pages(layer),
                scratch: step.sums.view_mut(),
                out: out.activations_mut(rows)?,
            };
            ops::attention(self.device(), &op)?;
        }
        Ok(())
    }

    /// Leaves the product beside `x`: the norm that reads `x` next adds it.
    pub(super) fn run_linear_add(
        &self,
        step: &mut Step,
        a: &Buffer,
        w: &Linear,
        x: &mut Buffer,
    ) -> Result<(), Error> {
        let rows = step.rows.count();
        self.settle(step, x)?;
        let (a, numbers) = (a.activations(rows)?, rows * x.cols);
        let Some(addend) = &mut x.addend else {
            return Err(no_residual("linear_add"));
        };
        if let (Some(peers), None) = (&self.peers, &self.sums) {
            let out = Out::Parts(step.part.slice_mut(0..numbers), x.cols);
            self.product(&mut step.scratch, rows, a, w, out)?;
            group::sum(peers, &step.part, numbers, addend)?;
        } else {
            let out = Out::Activations(addend.slice_mut(0..numbers));
            self.product(&mut step.scratch, rows, a, w, out)?;
        }
        if let (Some(peers), Some(sums)) = (&self.peers, &self.sums) {
            let summed = sums.sum(addend, numbers);
            summed.or_else(|error| peers.check().and(Err(error)))?; // the first to fail says why
        }
        x.pending = true;
        Ok(())
    }

    pub(super) fn run_activated_linear(
        &self,
        step: &mut Step,
        x: &mut Buffer,
        norm: &Norm<Vector>,
        w: &Linear,
        activation: Activation,
        out: &mut Buffer,
    ) -> Result<(), Error> {
        let rows = step.rows.count();
        self.normalize(step, x, norm)?;
        let normed = step.normed.slice(0..rows * x.cols);
        let pairs = step.pairs.slice_mut(0..rows * w.outputs);
        self.product(&mut step.scratch, rows, normed, w, Out::Activations(pairs))?;
        let columns = out.cols;
        let op = Activate {
            x: step.pairs.slice(0..rows * w.outputs),
            out: out.activations_mut(rows)?,
            rows,
            columns,
            function: match activation {
                Activation::Silu => Function::Silu,
                Activation::GeluTanh => Function::GeluTanh,
                Activation::GeluErf => Function::GeluErf,
            },
            gated: w.gated,
        };
        ops::activate(self.device(), &op)
    }

    pub(super) fn run_logits(
        &self,
        step: &mut Step,
        rows: &[usize],
        x: &Buffer,
        norm: &Norm<Vector>,
        w: &Linear,
        out: &mut Buffer,
    ) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let (count, columns) = (rows.len(), x.cols);
        if count > step.limits.draws {
            let problem = format!("{count} rows; {} are the most", step.limits.draws);
            return Err(Error::Arguments { operation: "logits", problem });
        }
        let chosen = step.draws.choose(rows)?;
        let chosen = step.draws.staging().view(&chosen);
        let [own, more] = &mut step.chosen;
        let (mut own, mut more) = (own.slice_mut(0..count * columns), more.slice_mut(0..count * columns));
        let all = x.activations(step.rows.count())?;
        let gather = |table: View<'_, bf16>, out: ViewMut<'_, bf16>| {
            ops::embed(self.device(), &Embed { tokens: chosen, drawn: None, table, out, columns, scale: 1.0 })
        };
        gather(all, own.reborrow())?;
        let addend = x.addend.as_ref().filter(|_| x.pending);
        if let Some(addend) = addend {
            gather(addend.slice(0..all.len()), more.reborrow())?;
        }
        let (x, residual) = match addend {
            Some(_) => (more.view(), Some(own.reborrow())),
            None => (own.view(), None),
        };
        let rows = Rows { x, residual, out: step.normed.slice_mut(0..count * columns), count, columns };
        rows.norm(self.device(), norm)?;
        let stride = out.stride;
        let logits = out.logits_mut()?;
        let parts = Out::Parts(logits.slice_mut(0..count * stride), stride);
        self.product(&mut step.scratch, count, step.normed.slice(0..count * columns), w, parts)?;
        match &self.peers {
            None => Ok(()),
            Some(peers) => group::gather(peers, count, w.outputs, logits, stride),
        }
    }

    /// Norms the step's rows of `x`, with what was to be added to it.
    fn normalize(&self, step: &mut Step, x: &mut Buffer, norm: &Norm<Vector>) -> Result<(), Error> {
        let (rows, normed) = (step.rows.count(), &mut step.normed);
        x.settled(rows, normed)?.norm(self.device(), norm)?;
        x.pending = false;
        Ok(())
    }

    /// Adds what is to be added to `x`.
    fn settle(&self, step: &mut Step, x: &mut Buffer) -> Result<(), Error> {
        if !x.pending {
            return Ok(());
        }
        // The norm adds as a side effect; with which gains is of no interest.
        let Step { rows, normed, chosen: [any, _], .. } = step;
        let any = any.slice(0..x.cols);
        x.settled(rows.count(), normed)?.rms_norm(self.device(), any, 1.0)?;
        x.pending = false;
        Ok(())
    }

    /// `out = x · Wᵀ + b`.
    fn product(
        &self,
        scratch: &mut SkinnyScratch,
        rows: usize,
        x: View<'_, bf16>,
        w: &Linear,
        out: Out<'_>,
    ) -> Result<(), Error> {
        let whole = match &out {
            Out::Activations(_) => true,
            Out::Parts(_, stride) => *stride == w.outputs,
        };
        let large = !self.options.deterministic && rows >= MANY_ROWS && whole && w.outputs.is_multiple_of(8);
        let hopper = self.device().properties().arch == 90;
        if large && (hopper || matches!(w.weights, Weights::Bf16(_))) {
            return match out {
                Out::Activations(c) => large_product(self.device(), rows, x, w, c),
                Out::Parts(c, _) => large_product(self.device(), rows, x, w, c),
            };
        }
        let weights = match &w.weights {
            Weights::Bf16(numbers) => SkinnyWeights::Bf16 { numbers: numbers.view(), cols: w.inputs },
            Weights::Packed(packed) => SkinnyWeights::Packed(packed),
        };
        let (out, out_stride) = match out {
            Out::Activations(out) => (SkinnyOut::Bf16(out), w.outputs),
            Out::Parts(out, stride) => (SkinnyOut::F32(out), stride),
        };
        let bias = w.bias.as_ref().map(|bias| bias.view());
        let mut op = Skinny { x, x_stride: w.inputs, weights, bias, out, out_stride, tokens: rows, scratch };
        ops::skinny(self.device(), &mut op)
    }
}

fn no_residual(operation: &'static str) -> Error {
    Error::Arguments { operation, problem: "only the residual stream is added to".into() }
}

// === impl Buffer ===

impl Buffer {
    /// The first `count` rows, with what is to be added to them, on their way through a norm.
    fn settled<'a>(&'a mut self, count: usize, out: &'a mut Memory<bf16>) -> Result<Rows<'a>, Error> {
        let columns = self.cols;
        let range = 0..count * columns;
        let out = out.slice_mut(range.clone());
        let Numbers::Activations(numbers) = &mut self.numbers else {
            return Err(Error::Arguments { operation: "norm", problem: "of logits".into() });
        };
        let (x, residual) = match &self.addend {
            Some(addend) if self.pending => (addend.slice(range.clone()), Some(numbers.slice_mut(range))),
            _ => (numbers.slice(range), None),
        };
        Ok(Rows { x, residual, out, count, columns })
    }
}

// === impl Rows ===

impl Rows<'_> {
    fn norm(self, device: &dyn Device, norm: &Norm<Vector>) -> Result<(), Error> {
        match norm {
            Norm::Rms { gain, epsilon } => self.rms_norm(device, gain.0.view(), *epsilon),
            Norm::Layer { gain, bias, epsilon } => {
                let Self { x, residual, out, count: rows, columns } = self;
                let (gain, bias, epsilon) = (gain.0.view(), Some(bias.0.view()), *epsilon);
                ops::layer_norm(device, &LayerNorm { x, residual, gain, bias, out, rows, columns, epsilon })
            }
        }
    }

    fn rms_norm(self, device: &dyn Device, gain: View<'_, bf16>, epsilon: f32) -> Result<(), Error> {
        let Self { x, residual, out, count: rows, columns } = self;
        ops::rms_norm(device, &RmsNorm { x, residual, gain, out, rows, columns, epsilon })
    }
}

fn large_product<C: GemmOutput>(
    device: &dyn Device,
    m: usize,
    a: View<'_, bf16>,
    w: &Linear,
    c: ViewMut<'_, C>,
) -> Result<(), Error> {
    let (bias, n, k) = (w.bias.as_ref().map(|bias| bias.view()), w.outputs, w.inputs);
    match &w.weights {
        Weights::Bf16(numbers) => {
            let factors = Factors::Bf16 { a, b: numbers.view() };
            let op = Gemm { factors, bias, add: false, c, m, n, k, a_stride: k, invariant: false };
            ops::gemm(device, &op)
        }
        Weights::Packed(weights) => {
            let op = PackedGemm { a, a_stride: k, weights, bias, add: false, c, m };
            ops::gemm_packed(device, &op)
        }
    }
}
