use volley_kernels::{
    BLOCK_TOKENS, Sequence,
    cpu::{Activations, CpuBackend, CpuOptions, formats::dequantized},
};

use super::*;
use crate::testing;

/// Nothing is rounded on the way: what is off is wrong.
fn backend() -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: 2, activations: Activations::F32, isa: None }).unwrap()
}

/// The logits of every position, with the prompt cut into steps of these sizes.
fn logits<B: Backend>(decoder: &mut Decoder<B>, tokens: &[u32], steps: &[usize]) -> Vec<f32> {
    let blocks: Vec<_> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).rev().map(BlockId).collect();
    let (mut position, mut logits) = (0, Vec::new());
    for rows in steps {
        let sequence = Sequence { first_row: 0, rows: *rows, position, blocks: blocks.clone() };
        let batch = Batch { tokens: tokens[position..position + rows].to_vec(), sequences: vec![sequence] };
        decoder.forward(batch);
        logits.extend(decoder.logits(&(0..*rows).collect::<Vec<_>>()));
        decoder.finish().unwrap();
        position += rows;
    }
    logits
}

#[test]
fn logits_agree_with_transformers_to_1e_4_of_their_range() {
    for name in ["tiny-llama", "tiny-qwen2"] {
        let fixture = testing::fixture(name);
        let mut decoder = testing::decoder(backend(), &fixture.model, Capacity { rows: 64, sequences: 1 }, 8);
        for steps in [&[40][..], &[1, 16, 22, 1]] {
            let logits = logits(&mut decoder, &fixture.tokens, steps);
            let range = fixture.logits.iter().fold(0f32, |max, x| max.max(x.abs()));
            let off = logits.iter().zip(&fixture.logits).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
            assert_eq!(logits.len(), fixture.logits.len());
            assert!(off <= 1e-4 * range, "{name}: off by {off} in a range of {range}");
        }
    }
}

#[test]
fn the_output_matrix_turns_final_hidden_states_into_logits() {
    let fixture = testing::fixture("tiny-llama");
    let (width, tokens) = (fixture.model.description.width, &fixture.tokens);
    let mut decoder = testing::decoder(backend(), &fixture.model, Capacity { rows: 64, sequences: 1 }, 8);
    let logits = logits(&mut decoder, tokens, &[tokens.len()]);
    let table = fixture.model.weights.tensors().find(|tensor| tensor.name == "model.embed_tokens.weight");
    let output = dequantized(table.unwrap()).unwrap();
    let hidden = decoder.hidden(vec![3..5, 0..1, 39..40]).unwrap().concat();
    for (hidden, row) in hidden.chunks(width).zip([3, 4, 0, 39]) {
        let logits = &logits[row * output.len() / width..];
        for (weights, logit) in output.chunks(width).zip(logits) {
            let product: f32 = hidden.iter().zip(weights).map(|(a, b)| a * b).sum();
            assert!((product - logit).abs() < 1e-3, "{product} is not {logit}");
        }
    }
}

#[test]
fn progress_ends_at_the_total() {
    let fixture = testing::fixture("tiny-llama");
    let mut seen = Vec::new();
    let capacity = Capacity { rows: 1, sequences: 1 };
    let mut progress = |done, total| seen.push((done, total));
    let model = fixture.model.description.clone();
    Decoder::load(backend(), model, &fixture.model.weights, capacity, &mut progress, |_| Ok(1)).unwrap();
    let total = fixture.model.weights.tensors().map(|tensor| tensor.data.len() as u64).sum::<u64>();
    assert!(seen.is_sorted() && seen.iter().all(|(done, of)| done <= of && *of == total));
    assert_eq!((seen[0], *seen.last().unwrap()), ((0, total), (total, total)));
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let fixture = testing::fixture("tiny-llama");
    let load = |change: fn(&mut Description)| {
        let mut model = fixture.model.description.clone();
        change(&mut model);
        let capacity = Capacity { rows: 1, sequences: 1 };
        let loaded =
            Decoder::load(backend(), model, &fixture.model.weights, capacity, &mut |_, _| (), |_| Ok(1));
        loaded.err().unwrap().to_string()
    };
    let error = load(|model| model.layers = 3);
    assert!(error.ends_with("tensor model.layers.2.self_attn.q_proj.weight: is missing"), "{error}");
    let error = load(|model| model.hidden = 63);
    assert!(error.contains("mlp.gate_proj.weight: has 64 rows of 32 numbers, expected 63 of 32"), "{error}");
    let error = load(|model| model.qkv_bias = Bias::Always);
    assert!(error.contains("self_attn.q_proj.bias: is missing"), "{error}");
}
