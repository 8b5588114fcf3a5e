//! What a rank of a tensor-parallel group has of a model (after Megatron-LM, arXiv 1909.08053).
//!
//! ```text
//! query, key, value           its heads: rows           nothing to exchange
//! gate, up                    its hidden units: rows
//! attention output, down      the columns for those     parts of sums, which all ranks add up
//! output matrix               its tokens: rows          the first rank gathers the logits
//! embedding, norms            all
//! ```

use std::ops::Range;

use volley_kernels::{Backend, Heads, Tensor};

use crate::{
    Error,
    decoder::{Part, in_layer},
    model::{Description, Model},
};

/// Which part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shard {
    rank: usize,
    ranks: usize,
}

// === impl Shard ===

impl Shard {
    /// That of a device: its rank's, or all.
    pub(crate) fn of<B: Backend>(backend: &B) -> Self {
        backend
            .peers()
            .map_or(Self { rank: 0, ranks: 1 }, |peers| Self { rank: peers.rank(), ranks: peers.ranks() })
    }

    /// How many ranks there are.
    pub(crate) fn ranks(self) -> usize {
        self.ranks
    }

    /// The sizes of the rank's part. Its vocabulary is what it has logits of: the first rank, all.
    pub(crate) fn description(self, whole: &Description) -> Description {
        let Heads { heads, kv_heads, .. } = whole.heads;
        let vocab = if self.rank == 0 { whole.vocab } else { self.range(whole.vocab).len() };
        Description {
            heads: Heads { heads: heads / self.ranks, kv_heads: kv_heads / self.ranks, ..whole.heads },
            hidden: whole.hidden / self.ranks,
            vocab,
            ..whole.clone()
        }
    }

    /// The rank's outputs of a matrix.
    pub(crate) fn outputs(self, matrix: Tensor) -> Result<Tensor, Error> {
        self.part(matrix, |matrix, shard| matrix.outputs(shard.range(matrix.rows)))
    }

    /// The same, with the biases of those outputs.
    pub(crate) fn outputs_of(self, (matrix, bias): Part) -> Result<Part, Error> {
        Ok((self.outputs(matrix)?, bias.map(|bias| self.inputs(bias)).transpose()?))
    }

    /// The rank's inputs of a matrix; or its numbers of a vector, such as the biases of its outputs.
    pub(crate) fn inputs(self, matrix: Tensor) -> Result<Tensor, Error> {
        self.part(matrix, |matrix, shard| matrix.inputs(shard.range(matrix.cols)))
    }

    /// The biases of parts of sums: they count once.
    pub(crate) fn once(self, bias: Option<Tensor>) -> Option<Tensor> {
        bias.filter(|_| self.rank == 0)
    }

    fn part(
        self,
        tensor: Tensor,
        cut: impl FnOnce(&Tensor, Self) -> Option<Tensor>,
    ) -> Result<Tensor, Error> {
        if self.ranks == 1 {
            return Ok(tensor);
        }
        let part = cut(&tensor, self).filter(|part| part.rows > 0 && part.cols > 0);
        part.ok_or_else(|| {
            let (name, ranks) = (tensor.name, self.ranks);
            Error::Config(format!("tensor {name} can't be shared out among {ranks} ranks"))
        })
    }

    fn range(self, size: usize) -> Range<usize> {
        size * self.rank / self.ranks..size * (self.rank + 1) / self.ranks
    }
}

/// Whether a model can be shared out among so many ranks; if not, why, and among how many it can.
pub(crate) fn check(model: &Model, ranks: usize) -> Result<(), Error> {
    let Some(problem) = problem(model, ranks)? else { return Ok(()) };
    let mut possible = Vec::new();
    for ranks in 1..=model.description.heads.kv_heads {
        if self::problem(model, ranks)?.is_none() {
            possible.push(ranks.to_string());
        }
    }
    let possible = possible.join(", ");
    Err(Error::Config(format!("--tensor-parallel {ranks}: {problem}; what works for this model: {possible}")))
}

/// Why a model can't be shared out among so many ranks.
fn problem(model: &Model, ranks: usize) -> Result<Option<String>, Error> {
    let Description { heads, hidden, width, layers, names, .. } = &model.description;
    if ranks == 0 || !heads.kv_heads.is_multiple_of(ranks) {
        let (queries, kv_heads) = (heads.heads, heads.kv_heads);
        let problem =
            format!("the {queries} heads over {kv_heads} key/value heads can't be shared out evenly");
        return Ok(Some(problem));
    }
    if ranks > 1 && model.description.joint_norms {
        return Ok(Some("its heads are normed together".to_owned()));
    }
    if !hidden.is_multiple_of(ranks) {
        return Ok(Some(format!("the {hidden} hidden columns can't be shared out evenly")));
    }
    for layer in 0..if ranks == 1 { 0 } else { *layers } {
        for (name, inputs) in [(names.attention_output, heads.heads * heads.dim), (names.down, *hidden)] {
            let (name, part) = (in_layer(name, layer), inputs / ranks);
            let Some(block) = model.weights.inseparable(&name, *width, inputs)? else { continue };
            if !part.is_multiple_of(block) {
                return Ok(Some(format!(
                    "{part} of the {inputs} columns of {name} are not whole blocks of {block}, as it is quantized"
                )));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use volley_kernels::DType;

    use super::*;
    use crate::testing;

    #[test]
    fn a_number_of_ranks_that_does_not_divide_says_which_do() {
        let model = testing::made_up([DType::Q4_0, DType::Q8_0, DType::Q4_1]);
        assert!(check(&model, 1).is_ok());
        let says = |model: &Model, ranks, expected: &str| {
            let error = check(model, ranks).unwrap_err().to_string();
            assert_eq!(error, expected);
        };
        says(
            &model,
            3,
            "--tensor-parallel 3: the 4 heads over 2 key/value heads can't be shared out evenly; what works for this \
             model: 1",
        );
        says(
            &model,
            2,
            "--tensor-parallel 2: 48 of the 96 columns of model.layers.0.mlp.down_proj.weight are not whole blocks of \
             32, as it is quantized; what works for this model: 1",
        );
        let mut wide = testing::wide([DType::Q4_0, DType::Q8_0, DType::Q4_1]);
        assert!(check(&wide, 2).is_ok() && check(&wide, 4).is_ok());
        says(
            &wide,
            8,
            "--tensor-parallel 8: the 8 heads over 4 key/value heads can't be shared out evenly; what works for this \
             model: 1, 2, 4",
        );
        let mut joint = testing::wide([DType::BF16; 3]);
        joint.description.joint_norms = true;
        says(&joint, 2, "--tensor-parallel 2: its heads are normed together; what works for this model: 1");
        wide.description.hidden = 257;
        assert!(check(&wide, 4).unwrap_err().to_string().contains("the 257 hidden columns can't be"));
    }

    #[test]
    fn the_parts_of_a_vocabulary_are_all_of_it() {
        let shards = (0..3).map(|rank| Shard { rank, ranks: 3 }.range(49_153));
        assert_eq!(shards.flatten().collect::<Vec<_>>(), (0..49_153).collect::<Vec<_>>());
    }
}
