//! A backend in plain f32 loops, one row and one head at a time: slow, obvious, and independent of the real
//! kernels. Tests hold the decoder against it.

use std::collections::HashMap;

use volley_kernels::{
    Activation, BLOCK_TOKENS, Backend, Batch, BlockId, DType, Draw, Drawn, Error, Heads, Logprobs, Norm,
    Rope, RopePairing, Tensor,
};

pub(crate) struct Naive;

pub(crate) struct Matrix {
    rows: usize,
    cols: usize,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

pub(crate) struct Rows {
    cols: usize,
    data: Vec<f32>,
}

/// Keys and values by place.
pub(crate) struct Cache(HashMap<Place, (Vec<f32>, Vec<f32>)>);

/// Layer, block, token within the block.
type Place = (usize, BlockId, usize);

// === impl Naive ===

impl Backend for Naive {
    type Linear = Matrix;
    type Table = Matrix;
    type Vector = Vec<f32>;
    type Buffer = Rows;
    type Cache = Cache;

    fn linear(&self, parts: &[(Tensor, Option<Tensor>)]) -> Result<Matrix, Error> {
        let mut matrix = Matrix { rows: 0, cols: parts[0].0.cols, weights: vec![], bias: vec![] };
        for (weights, bias) in parts {
            matrix.rows += weights.rows;
            matrix.weights.extend(numbers(weights));
            matrix.bias.extend(bias.as_ref().map_or(vec![0.0; weights.rows], numbers));
        }
        Ok(matrix)
    }

    fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Matrix, Error> {
        self.linear(&[(gate.clone(), None), (up.clone(), None)])
    }

    fn table(&self, tensor: &Tensor) -> Result<Matrix, Error> {
        self.linear(&[(tensor.clone(), None)])
    }

    fn vector(&self, tensor: &Tensor) -> Result<Vec<f32>, Error> {
        Ok(numbers(tensor))
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Rows, Error> {
        Ok(Rows { cols, data: vec![0.0; rows * cols] })
    }

    fn cache(&self, _: usize, _: Heads, _: usize) -> Result<Cache, Error> {
        Ok(Cache(HashMap::new()))
    }

    fn block_bytes(&self, layers: usize, heads: Heads) -> usize {
        layers * heads.kv_heads * heads.dim * 2 * 4 * BLOCK_TOKENS
    }

    fn embed(&self, batch: &Batch, table: &Matrix, x: &mut Rows) {
        for (row, token) in batch.tokens.iter().enumerate() {
            x.row_mut(row).copy_from_slice(&table.weights[*token as usize * table.cols..][..table.cols]);
        }
    }

    fn norm_linear(&self, rows: usize, x: &Rows, norm: &Norm<Vec<f32>>, w: &Matrix, out: &mut Rows) {
        for row in 0..rows {
            let y = w.apply(&normed(x.row(row), norm));
            out.row_mut(row).copy_from_slice(&y);
        }
    }

    fn rope_and_store(
        &self,
        batch: &Batch,
        layer: usize,
        heads: Heads,
        rope: &Rope,
        qkv: &mut Rows,
        cache: &mut Cache,
    ) {
        let Heads { heads: q, kv_heads: kv, dim, .. } = heads;
        for sequence in &batch.sequences {
            for i in 0..sequence.rows {
                let position = sequence.position + i;
                let row = qkv.row_mut(sequence.first_row + i);
                row[..(q + kv) * dim].chunks_exact_mut(dim).for_each(|head| rotate(head, position, rope));
                let (keys, values) = row[q * dim..].split_at(kv * dim);
                let place = (layer, sequence.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
                cache.0.insert(place, (keys.to_vec(), values.to_vec()));
            }
        }
    }

    fn attention(
        &self,
        batch: &Batch,
        layer: usize,
        heads: Heads,
        qkv: &Rows,
        cache: &Cache,
        out: &mut Rows,
    ) {
        let Heads { heads: q, kv_heads: kv, dim, scale } = heads;
        for sequence in &batch.sequences {
            for i in 0..sequence.rows {
                let past: Vec<_> = (0..=sequence.position + i)
                    .map(|p| &cache.0[&(layer, sequence.blocks[p / BLOCK_TOKENS], p % BLOCK_TOKENS)])
                    .collect();
                let row = sequence.first_row + i;
                for head in 0..q {
                    let query = &qkv.row(row)[head * dim..][..dim];
                    let shared = head / (q / kv) * dim..head / (q / kv) * dim + dim;
                    let scores = past.iter().map(|(k, _)| dot(query, &k[shared.clone()]) * scale);
                    let scores = softmax(&scores.collect::<Vec<_>>());
                    let out = &mut out.row_mut(row)[head * dim..][..dim];
                    out.fill(0.0);
                    for (score, (_, v)) in scores.iter().zip(&past) {
                        out.iter_mut().zip(&v[shared.clone()]).for_each(|(o, v)| *o += score * v);
                    }
                }
            }
        }
    }

    fn linear_add(&self, rows: usize, a: &Rows, w: &Matrix, x: &mut Rows) {
        for row in 0..rows {
            let y = w.apply(a.row(row));
            x.row_mut(row).iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }

    fn gated_linear(
        &self,
        rows: usize,
        x: &Rows,
        norm: &Norm<Vec<f32>>,
        w: &Matrix,
        activation: Activation,
        out: &mut Rows,
    ) {
        assert_eq!(activation, Activation::Silu);
        for row in 0..rows {
            let y = w.apply(&normed(x.row(row), norm));
            let (gate, up) = y.split_at(w.rows / 2);
            let gated = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
            out.row_mut(row).iter_mut().zip(gated).for_each(|(o, y)| *o = y);
        }
    }

    fn logits(&self, rows: &[usize], x: &Rows, norm: &Norm<Vec<f32>>, w: &Matrix, out: &mut Rows) {
        for (i, row) in rows.iter().enumerate() {
            out.row_mut(i).copy_from_slice(&w.apply(&normed(x.row(*row), norm)));
        }
    }

    /// Greedy, or the given token: what sampling makes of logits is the kernels' to test.
    fn draw(&self, logits: &Rows, draws: &[Draw]) -> Vec<Drawn> {
        let one = |(row, draw): (usize, &Draw)| {
            let logits = logits.row(row);
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            let best = order.iter().find(|token| !draw.banned.contains(token)).unwrap();
            let token = draw.given.unwrap_or(*best);
            let probabilities = softmax(logits);
            let logprob = |token: u32| probabilities[token as usize].ln();
            let logprobs = draw.logprobs.map(|n| Logprobs {
                logprob: logprob(token),
                top: order.iter().take(n as usize).map(|token| (*token, logprob(*token))).collect(),
            });
            Drawn { token, logprobs, mirostat: None }
        };
        draws.iter().enumerate().map(one).collect()
    }

    fn copy_blocks(&self, cache: &mut Cache, copies: &[(BlockId, BlockId)]) {
        for (from, to) in copies {
            let copied: Vec<_> = cache
                .0
                .iter()
                .filter(|((_, block, _), _)| block == from)
                .map(|((layer, _, token), kv)| ((*layer, *to, *token), kv.clone()))
                .collect();
            cache.0.extend(copied);
        }
    }

    fn read(&self, buffer: &Rows, rows: usize) -> Vec<f32> {
        buffer.data[..rows * buffer.cols].to_vec()
    }

    fn numerics(&self) -> String {
        "naive".to_owned()
    }
}

// === impl Rows ===

impl Rows {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..][..self.cols]
    }
}

// === impl Matrix ===

impl Matrix {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        self.weights.chunks_exact(self.cols).zip(&self.bias).map(|(row, bias)| dot(row, x) + bias).collect()
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype {
        DType::F32 => {
            tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
        DType::BF16 => tensor.data.chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
        other => panic!("{other:?}"),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn normed(x: &[f32], norm: &Norm<Vec<f32>>) -> Vec<f32> {
    let scale = (dot(x, x) / x.len() as f32 + norm.epsilon).sqrt().recip();
    x.iter().zip(&norm.gain).map(|(x, gain)| x * scale * gain).collect()
}

fn softmax(x: &[f32]) -> Vec<f32> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = x.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

fn rotate(head: &mut [f32], position: usize, rope: &Rope) {
    let pairs = rope.frequencies.len();
    for (i, frequency) in rope.frequencies.iter().enumerate() {
        let (a, b) = match rope.pairing {
            RopePairing::Adjacent => (2 * i, 2 * i + 1),
            RopePairing::Halves => (i, i + pairs),
        };
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
    }
}
