use volley_kernels::{
    BLOCK_TOKENS, DType,
    cpu::{Activations, CpuBackend},
};
use volley_twin::{Schedule, Twin};

use super::*;
use crate::{
    decoder::Capacity,
    model::{Bias, Model},
    testing::{self, Formats},
};

const CAPACITY: Capacity = Capacity { rows: 64, sequences: 4 };

/// The formats of weights that quantize, and that don't.
const FORMATS: [Formats; 2] = [[DType::BF16; 3], [DType::Q4_0, DType::Q8_0, DType::Q4_1]];

/// A prompt of 40 tokens that follow from a number.
fn tokens(number: u32) -> Vec<u32> {
    (0..40).map(|i| (i * 31 + number * 17) % 288).collect()
}

/// The logits of a prompt's positions, run in steps of these sizes.
fn logits<B: Backend>(group: &mut Group<B>, steps: &[usize]) -> Vec<f32> {
    let (tokens, mut position, mut logits) = (tokens(1), 0, Vec::new());
    let blocks: Vec<_> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).rev().map(BlockId).collect();
    for rows in steps {
        let sequence = kernels::Sequence { first_row: 0, rows: *rows, position, blocks: blocks.clone() };
        let tokens = tokens[position..position + rows].to_vec();
        group.forward(Batch::new(tokens, vec![sequence]));
        logits.extend(group.logits(&(0..*rows).collect::<Vec<_>>()));
        group.finish().unwrap();
        position += rows;
    }
    logits
}

fn load(ranks: usize, model: &Model, activations: Activations) -> Group<CpuBackend> {
    testing::group(testing::cpus(ranks, activations), model, CAPACITY, 8)
}

/// The root of the mean square of the differences, relative to the numbers.
fn difference(numbers: &[f32], others: &[f32]) -> f64 {
    assert_eq!(numbers.len(), others.len());
    let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|x| f64::from(x * x)).sum::<f64>();
    let off = squares(&mut numbers.iter().zip(others).map(|(a, b)| a - b));
    (off / squares(&mut numbers.iter().copied())).sqrt()
}

#[test]
fn two_and_four_ranks_have_the_logits_of_one() {
    for formats in FORMATS {
        let qwen = testing::wide(formats);
        let mut llama = testing::wide(formats);
        (llama.description.qkv_bias, llama.description.output_bias) = (Bias::Never, Bias::Never);
        for model in [qwen, llama] {
            // Nothing is rounded but f32 sums in another order; 8-bit activations may round to a neighbour.
            for (activations, tolerance) in [(Activations::F32, 2e-6), (Activations::Int8, 5e-3)] {
                let one = logits(&mut load(1, &model, activations), &[40]);
                for ranks in [2, 4] {
                    let mut group = load(ranks, &model, activations);
                    let several = logits(&mut group, &[40]);
                    let off = difference(&one, &several);
                    assert!(off <= tolerance, "{ranks} ranks, {formats:?}, {activations:?}: off by {off}");
                    // Another run, cut otherwise: the same bits.
                    assert_eq!(logits(&mut group, &[1, 16, 22, 1]), several);
                    assert_eq!(logits(&mut load(ranks, &model, activations), &[30, 10]), several);
                }
            }
        }
    }
}

#[test]
fn ranks_on_gpus_have_the_logits_of_one_cpu() {
    for (formats, deterministic, arch) in [(FORMATS[0], false, 90), (FORMATS[1], true, 80)] {
        let model = testing::wide(formats);
        let expected = logits(&mut load(1, &model, Activations::F32), &[40]);
        for ranks in [2, 4] {
            let gpus = testing::ranks(ranks, |peers| {
                let twin = Twin::with_arch(Schedule::ALL[peers.rank()], arch);
                testing::cuda(twin, deterministic).in_group(peers)
            });
            let mut group = testing::group(gpus, &model, CAPACITY, 8);
            let whole = logits(&mut group, &[40]);
            let off = difference(&expected, &whole);
            assert!(off <= 0.02, "{ranks} ranks, {formats:?}: off by {off}");
            if deterministic {
                assert_eq!(logits(&mut group, &[1, 16, 22, 1]), whole);
            }
        }
    }
}

#[test]
fn gpus_that_add_up_among_themselves_have_the_logits_of_one_cpu() {
    let model = testing::wide(FORMATS[0]);
    let expected = logits(&mut load(1, &model, Activations::F32), &[40]);
    let gpus = testing::reducing((0..4).map(|i| Twin::new(Schedule::ALL[i]).into()).collect());
    let off = difference(&expected, &logits(&mut testing::group(gpus, &model, CAPACITY, 8), &[40]));
    assert!(off <= 0.02, "off by {off}");
}

#[test]
fn the_rank_that_can_not_load_says_why() {
    let model = testing::wide(FORMATS[0]);
    let agree = |backend: CpuBackend| {
        backend.peers().map_or(Ok(1), |peers| peers.least(1))?;
        Ok(testing::decoder(backend, &model, CAPACITY, 1))
    };
    for fails in [0, 1, 2] {
        let load = |backend: CpuBackend| match backend.peers().map(|peers| peers.rank()) == Some(fails) {
            true => Err(Error::Config(format!("no room on {fails}"))),
            false => agree(backend),
        };
        let mut ranks = testing::cpus(3, Activations::F32).into_iter();
        let first = ranks.next().unwrap();
        let loaded = Group::load(|| Ok((load(first)?, ())), ranks.collect(), load);
        assert_eq!(loaded.err().unwrap().to_string(), format!("no room on {fails}"));
    }
}
