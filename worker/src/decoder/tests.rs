use std::sync::Arc;

use volley_kernels::{
    Activation, BLOCK_TOKENS, DType, Drawn, History, Logprobs, Mirostat, Penalties, Sequence, Tensor,
    cpu::{Activations, CpuBackend, CpuOptions, formats::dequantized},
};

use super::*;
use volley_twin::{Schedule, Twin};

use crate::{
    model::{Bias, Model},
    testing,
};

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
        let batch = Batch::new(tokens[position..position + rows].to_vec(), vec![sequence]);
        decoder.forward(batch);
        logits.extend(decoder.logits(&(0..*rows).collect::<Vec<_>>()));
        decoder.finish().unwrap();
        position += rows;
    }
    logits
}

#[test]
fn logits_agree_with_transformers_to_1e_4_of_their_range() {
    let directories = testing::FIXTURES.map(|name| (name, testing::fixture(name)));
    let files = testing::GGUF_FIXTURES.map(|name| (name, testing::gguf_fixture(name)));
    // StarCoder's GELU is the exact one.
    let mut exact = testing::fixture("tiny-gpt-bigcode");
    exact.model.description.activation = Activation::GeluErf;
    exact.logits = exact.logits_gelu.take().unwrap();
    let all = directories.into_iter().chain(files).map(|(name, fixture)| (name, fixture, 1e-4));
    // What its approximation gives is 7e-5 off.
    for (name, fixture, most) in all.chain([("exact GELU", exact, 1e-5)]) {
        let mut decoder = testing::decoder(backend(), &fixture.model, Capacity { rows: 64, sequences: 1 }, 8);
        for steps in [&[40][..], &[1, 16, 22, 1]] {
            let logits = logits(&mut decoder, &fixture.tokens, steps);
            let range = fixture.logits.iter().fold(0f32, |max, x| max.max(x.abs()));
            let off = logits.iter().zip(&fixture.logits).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
            assert_eq!(logits.len(), fixture.logits.len());
            assert!(off <= most * range, "{name}: off by {off} in a range of {range}");
        }
    }
}

#[test]
fn the_output_matrix_turns_final_hidden_states_into_logits() {
    for (fixture, table) in
        [("tiny-llama", "model.embed_tokens.weight"), ("tiny-gpt-bigcode", "transformer.wte.weight")]
    {
        hidden_states_give_logits(testing::fixture(fixture), table);
    }
}

fn hidden_states_give_logits(fixture: testing::Fixture, table: &str) {
    let (width, tokens) = (fixture.model.description.width, &fixture.tokens);
    let mut decoder = testing::decoder(backend(), &fixture.model, Capacity { rows: 64, sequences: 1 }, 8);
    let logits = logits(&mut decoder, tokens, &[tokens.len()]);
    let table = fixture.model.weights.tensors().find(|tensor| tensor.name == table);
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

/// Tokens that follow from a number.
fn tokens(length: usize, number: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 31 + number * 17) % 288).collect()
}

/// The root of the mean square of the differences, relative to the numbers.
fn difference(numbers: &[f32], others: &[f32]) -> f32 {
    assert_eq!(numbers.len(), others.len());
    let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|x| f64::from(x * x)).sum::<f64>();
    let off = squares(&mut numbers.iter().zip(others).map(|(a, b)| a - b));
    (off / squares(&mut numbers.iter().copied())).sqrt() as f32
}

#[test]
fn a_gpu_s_logits_are_the_cpu_s_for_every_kind_of_weights() {
    // The first is long enough for the large tiles, and for a GPU's own instructions.
    let (long, short) = (tokens(150, 1), tokens(40, 2));
    for (formats, arch) in [
        ([DType::BF16, DType::BF16, DType::BF16], 90),
        ([DType::BF16, DType::BF16, DType::BF16], 80),
        ([DType::Q4_0, DType::Q4_0, DType::Q4_1], 90),
        ([DType::Q4_1, DType::Q8_0, DType::Q8_0], 80),
    ] {
        let model = testing::made_up(formats);
        let capacity = Capacity { rows: 160, sequences: 1 };
        let mut cpu = testing::decoder(backend(), &model, capacity, 12);
        let twin = Twin::with_arch(Schedule::ALL[5], arch);
        let mut gpu = testing::decoder(testing::cuda(twin, false), &model, capacity, 12);
        for (tokens, steps) in [(&long, &[150][..]), (&short, &[1, 16, 22, 1])] {
            let (expected, got) = (logits(&mut cpu, tokens, steps), logits(&mut gpu, tokens, steps));
            let off = difference(&expected, &got);
            // Some two dozen roundings to bf16's 8 bits.
            assert!(off <= 0.02, "{formats:?} on sm_{arch}: off by {off}");
        }
    }
}

#[test]
fn long_prompts_meet_packed_weights_in_large_tiles_on_gpus_without_kernels_for_that() {
    let (model, tokens) = (testing::made_up([DType::Q4_1, DType::Q8_0, DType::Q8_0]), tokens(520, 5));
    let mut cpu = testing::decoder(backend(), &model, Capacity { rows: 520, sequences: 1 }, 33);
    let expected = logits(&mut cpu, &tokens, &[520]);
    for (rows, deterministic, large) in [(520, false, true), (511, false, false), (520, true, false)] {
        let twin = Arc::new(Twin::with_arch(Schedule::ALL[1], 80));
        let backend = testing::cuda(twin.clone(), deterministic);
        let mut gpu = testing::decoder(backend, &model, Capacity { rows, sequences: 1 }, 33);
        let got = logits(&mut gpu, &tokens[..rows], &[rows]);
        let off = difference(&expected[..got.len()], &got);
        assert!(off <= 0.02, "{rows} rows: off by {off}");
        let unpacked: Vec<_> =
            twin.launched().into_iter().filter(|name| name.starts_with("dequantize")).collect();
        let all = ["dequantize_w4", "dequantize_w8_grouped"];
        assert_eq!(unpacked, if large { &all[..] } else { &[] }, "{rows} rows");
    }
}

#[test]
fn a_gpu_s_logits_are_the_cpu_s_for_every_family() {
    let (long, short) = (tokens(150, 1), tokens(40, 2));
    let exact = testing::families().into_iter().find(|(name, _)| *name == "tiny-gpt-bigcode");
    let exact = exact.map(|(name, mut model)| {
        model.description.activation = Activation::GeluErf;
        (name, model)
    });
    for (fixture, model) in testing::families().into_iter().chain(exact) {
        let capacity = Capacity { rows: 160, sequences: 1 };
        let mut cpu = testing::decoder(backend(), &model, capacity, 12);
        let twin = Twin::with_arch(Schedule::ALL[2], 80);
        let mut gpu = testing::decoder(testing::cuda(twin, false), &model, capacity, 12);
        for (tokens, steps) in [(&long, &[150][..]), (&short, &[1, 16, 22, 1])] {
            let (expected, got) = (logits(&mut cpu, tokens, steps), logits(&mut gpu, tokens, steps));
            let off = difference(&expected, &got);
            assert!(off <= 0.02, "{fixture}: off by {off}");
        }
        let ranges = vec![3..5, 39..40];
        let (expected, got) = (cpu.hidden(ranges.clone()).unwrap(), gpu.hidden(ranges).unwrap());
        assert!(difference(&expected.concat(), &got.concat()) <= 0.02, "{fixture}: hidden states");
    }
}

#[test]
fn deterministic_logits_have_the_same_bits_however_a_prompt_is_cut() {
    deterministic_logits_are_the_same(testing::made_up([DType::BF16, DType::BF16, DType::Q8_0]));
    testing::families().into_iter().for_each(|(_, model)| deterministic_logits_are_the_same(model));
}

fn deterministic_logits_are_the_same(model: Model) {
    let tokens = tokens(90, 3);
    let capacity = Capacity { rows: 96, sequences: 1 };
    let mut expected = Vec::new();
    for (arch, schedule) in [(90, Schedule::ALL[0]), (80, Schedule::ALL[7])] {
        let twin = Twin::with_arch(schedule, arch);
        let mut gpu = testing::decoder(testing::cuda(twin, true), &model, capacity, 6);
        for steps in [&[90][..], &[1, 16, 65, 7, 1]] {
            let logits = logits(&mut gpu, &tokens, steps);
            if expected.is_empty() {
                expected.clone_from(&logits);
            }
            assert_eq!(logits, expected, "sm_{arch}");
        }
    }
}

/// Draws of all kinds, some of which a GPU leaves to the host.
fn draws() -> Vec<Draw> {
    let mut history = History::default();
    (0..60).for_each(|token| history.prompt(token * 3));
    (0..200).for_each(|token| history.generated(token * token % 97));
    let penalties = Penalties { frequency: 0.4, presence: 0.3, repetition: 1.2, history: history.into() };
    let hot = Draw { temperature: 0.9, logprobs: Some(3), ..Draw::default() };
    let mask: Vec<u32> = (0..7).map(|i| 0x5a5a_1234u32.rotate_left(i)).collect();
    let kinds = [
        Draw::default(),
        hot.clone(),
        Draw { top_k: 5, logprobs: None, ..hot.clone() },
        Draw { top_p: 0.6, ..hot.clone() },
        Draw { min_p: 0.2, top_k: 40, top_p: 0.9, ..hot.clone() },
        Draw { typical_p: 0.5, ..hot.clone() },
        Draw { mirostat: Some(Mirostat::start(3.0, 0.1)), ..hot.clone() },
        Draw { penalties: Some(penalties.clone()), ..hot.clone() },
        Draw {
            penalties: Some(penalties),
            banned: vec![0, 3, 9, 250],
            bias: [(3, 9.0), (12, 4.0)].into(),
            ..hot.clone()
        },
        Draw { allowed: Some(mask.clone()), ..hot.clone() },
        Draw { allowed: Some(mask), bias: [(1, 8.0)].into(), temperature: 0.0, ..hot.clone() },
        Draw { given: Some(17), ..hot.clone() },
        Draw { logprobs: Some(200), ..hot.clone() },
        Draw { logprobs: Some(0), temperature: 0.0, ..hot },
    ];
    let numbered =
        |(i, draw): (u32, Draw)| Draw { seed: u64::from(i) * 7, choice: i % 3, position: i, ..draw };
    (0..).zip(kinds.iter().cycle().take(56).cloned()).map(numbered).collect()
}

#[test]
fn a_gpu_draws_what_the_cpu_draws_from_its_logits() {
    let model = testing::made_up([DType::BF16; 3]);
    let twin = Twin::new(Schedule::ALL[6]);
    let mut gpu =
        testing::decoder(testing::cuda(twin, false), &model, Capacity { rows: 64, sequences: 1 }, 4);
    let logits = logits(&mut gpu, &tokens(56, 4), &[56]);
    let (rows, draws) = ((0..56).collect::<Vec<_>>(), draws());
    let drawn = gpu.draw(&rows, &draws).unwrap().wait().unwrap();

    let data = logits.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let table = Tensor::new("logits", DType::F32, 56, 288, data.into()).unwrap();
    let cpu = backend();
    let table = cpu.table(&table).unwrap();
    let mut buffer = cpu.buffer(56, 288, Content::Logits).unwrap();
    let mut batch = Batch::new((0..56).collect(), vec![]);
    cpu.embed(&mut batch, &table, 1.0, None, &mut buffer);
    let expected = cpu.draw(&mut batch, &mut buffer, &draws).unwrap().wait().unwrap();
    for ((drawn, expected), draw) in drawn.iter().zip(&expected).zip(&draws) {
        assert_eq!((drawn.token, drawn.mirostat), (expected.token, expected.mirostat), "{draw:?}");
        let tokens = |drawn: &Drawn| {
            drawn.logprobs.as_ref().map(|l| l.top.iter().map(|(token, _)| *token).collect::<Vec<_>>())
        };
        assert_eq!(tokens(drawn), tokens(expected), "{draw:?}");
        let numbers = |drawn: &Drawn| {
            let logprobs = drawn.logprobs.clone().unwrap_or(Logprobs { logprob: 0.0, top: vec![] });
            logprobs.top.iter().map(|(_, x)| *x).chain([logprobs.logprob]).collect::<Vec<_>>()
        };
        let off =
            numbers(drawn).iter().zip(numbers(expected)).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-5, "{draw:?}: {drawn:?}, not {expected:?}");
    }
    let different: std::collections::HashSet<u32> = drawn.iter().map(|drawn| drawn.token).collect();
    assert!(different.len() > 20, "there was a choice");
}

#[test]
fn steps_that_decode_find_room_in_their_graphs_whatever_their_lengths() {
    let mut numbers = 1u64;
    let mut below = |end: usize| {
        numbers = numbers.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (numbers >> 33) as usize % end
    };
    for ((_, mut model), deterministic) in
        testing::families().into_iter().zip([true, false].into_iter().cycle())
    {
        model.description.context = 8192;
        let twin = Arc::new(
            Twin::with_arch(Schedule::ALL[0], [80, 90][below(2)]).on_paper(std::time::Duration::ZERO),
        );
        let backend = testing::cuda(twin.clone(), deterministic);
        let mut gpu = testing::decoder(backend, &model, Capacity { rows: 96, sequences: 64 }, 600);
        let most = (16 * model.description.heads.kv_heads / model.description.heads.heads).clamp(1, 3);
        for _ in 0..150 {
            let (sequences, longest) = (1 + below(64 / most), 1 + below(8000));
            let mut batch = Batch::default();
            for _ in 0..sequences {
                let (first_row, rows, position) = (batch.tokens.len(), 1 + below(most), below(longest));
                let blocks =
                    (0..(position + rows).div_ceil(BLOCK_TOKENS)).map(|_| BlockId(below(600) as u32));
                batch.sequences.push(Sequence { first_row, rows, position, blocks: blocks.collect() });
                batch.tokens.resize(first_row + rows, 7);
            }
            gpu.forward(batch);
            gpu.draw(&[0], &[Draw::default()]).unwrap().wait().unwrap();
        }
        assert!(twin.graphs() > 50, "{} graphs", twin.graphs());
    }
}
