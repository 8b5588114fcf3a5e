//! A quantized checkpoint computes what its numbers, written out, compute.

mod checkpoint;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use volley_kernels::{
    BLOCK_TOKENS, Backend, Batch, BlockId, Sequence,
    cpu::{Activations, formats::dequantized},
};
use volley_twin::{Schedule, Twin};

use self::checkpoint::{Checkpoint, Write, compressed, formats};
use super::*;
use crate::{
    decoder::{Capacity, in_layer},
    model::{Model, Qkv},
    shard, testing,
};

/// A model with such layers but for the first layer's values, which are left plain; and one with their numbers.
fn both(config: &Value, write: Write) -> (Model, Model) {
    let (mut model, mut plain) = (testing::wide([DType::BF16; 3]), testing::wide([DType::BF16; 3]));
    let (file, numbers) = checkpoint(&model, write);
    model.weights = file.read(config).unwrap();
    let written = |tensor: &Tensor| match numbers.get(&tensor.name) {
        Some(numbers) => {
            let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            Tensor::new(&tensor.name, DType::F32, tensor.rows, tensor.cols, data.into()).unwrap()
        }
        None => tensor.clone(),
    };
    plain.weights = Weights::of(plain.weights.tensors().map(written).collect());
    (model, plain)
}

fn checkpoint(model: &Model, write: Write) -> (Checkpoint, BTreeMap<String, Vec<f32>>) {
    let (mut file, mut numbers) = (Checkpoint::default(), BTreeMap::new());
    for tensor in model.weights.tensors() {
        let kept = tensor.name == in_layer(values(model), 0);
        let names = model.description.names;
        let table = [names.embedding, names.output].contains(&tensor.name.as_str());
        match tensor.name.strip_suffix(".weight") {
            Some(layer) if tensor.rows > 1 && !table && !kept => {
                file.noise =
                    tensor.name.bytes().fold(7, |all, byte| (all * 31 + u64::from(byte)) & 0xff_ffff);
                numbers.insert(tensor.name.clone(), write(&mut file, layer, tensor.rows, tensor.cols));
            }
            _ => {
                let dtype = if tensor.dtype == DType::F32 { "F32" } else { "BF16" };
                let shape = if tensor.rows == 1 { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] };
                file.tensors.insert(tensor.name.clone(), (dtype, shape, tensor.data.to_vec()));
            }
        }
    }
    (file, numbers)
}

/// The name of the projection to values, and of that to hidden columns.
fn values(model: &Model) -> &'static str {
    match model.description.names.qkv {
        Qkv::Apart([_, _, values]) => values,
        Qkv::Stacked(name) => name,
    }
}

const CAPACITY: Capacity = Capacity { rows: 96, sequences: 1 };

/// The logits of 90 tokens: enough for the large tiles.
fn logits<B: Backend>(ranks: Vec<B>, model: &Model) -> Vec<f32> {
    let mut group = testing::group(ranks, model, CAPACITY, 6);
    let blocks = (0..90u32.div_ceil(BLOCK_TOKENS as u32)).map(BlockId).collect();
    let sequences = vec![Sequence { first_row: 0, rows: 90, position: 0, blocks }];
    group.forward(Batch::new((0..90).map(|i| i * 31 % 288).collect(), sequences));
    let logits = group.logits(&(0..90).collect::<Vec<_>>());
    group.finish().unwrap();
    logits
}

fn on_cpu(model: &Model, activations: Activations) -> Vec<f32> {
    logits(testing::cpus(1, activations), model)
}

fn on_gpu(model: &Model, arch: u32) -> Vec<f32> {
    let twin = Twin::with_arch(Schedule::ALL[5], arch);
    logits(vec![testing::cuda(twin, false)], model)
}

/// The root of the mean square of the differences, relative to the numbers.
fn difference(numbers: &[f32], others: &[f32]) -> f32 {
    let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|x| f64::from(x * x)).sum::<f64>();
    let off = squares(&mut numbers.iter().zip(others).map(|(a, b)| a - b));
    (off / squares(&mut numbers.iter().copied())).sqrt() as f32
}

#[test]
fn every_format_computes_what_its_numbers_do_on_a_cpu() {
    for (name, config, write, stored) in formats() {
        let (model, plain) = both(&config, write);
        assert_eq!(model.weight_format(), stored, "{name}");
        let expected = on_cpu(&plain, Activations::F32);
        assert!(on_cpu(&model, Activations::F32) == expected, "{name}");
        // Activations, and the codes of floats, are rounded to 8 bits.
        let off = difference(&expected, &on_cpu(&model, Activations::Int8));
        assert!(off > 0.0 && off <= 0.03, "{name}: off by {off}");
    }
}

#[test]
fn every_format_computes_what_its_numbers_do_on_a_gpu() {
    for (name, config, write, _) in formats() {
        let (model, plain) = both(&config, write);
        let expected = on_cpu(&plain, Activations::F32);
        for arch in [80, 90] {
            let off = difference(&expected, &on_gpu(&model, arch));
            assert!(off <= 0.02, "{name} on sm_{arch}: off by {off}");
        }
    }
}

#[test]
fn ranks_have_their_parts_of_codes_and_scales() {
    for (name, config, write, _) in formats() {
        let (model, _) = both(&config, write);
        let whole = on_cpu(&model, Activations::F32);
        shard::check(&model, 2).unwrap();
        let off = difference(&whole, &logits(testing::cpus(2, Activations::F32), &model));
        assert!(off <= 1e-5, "{name}: off by {off}");
    }
    // 64 of 256 columns are half a block.
    let (_, config, write, _) = formats().swap_remove(1);
    let (model, _) = both(&config, write);
    let error = shard::check(&model, 4).unwrap_err().to_string();
    let expected = "--tensor-parallel 4: 64 of the 256 columns of model.layers.0.mlp.down_proj.weight are not whole \
                    blocks of 128, as it is quantized; what works for this model: 1, 2";
    assert_eq!(error, expected);
}

#[test]
fn a_model_s_layers_are_made_eight_bits_on_request_and_nothing_else_is() {
    let plain = || testing::wide([DType::BF16; 3]);
    let expected = on_cpu(&plain(), Activations::F32);
    for (dtype, most) in [(DType::Int8, 0.02), (DType::E4m3, 0.08)] {
        let made = plain().converted(dtype);
        assert_eq!(made.weight_format(), dtype);
        let by_cpu = on_cpu(&made, Activations::F32);
        let off = difference(&expected, &by_cpu);
        assert!(off > 1e-3 && off <= most, "{dtype:?}: off by {off}");
        for arch in [80, 90] {
            let off = difference(&by_cpu, &on_gpu(&made, arch));
            assert!(off <= 0.02, "{dtype:?} on sm_{arch}: off by {off}");
        }
        // Layers have half the bytes, tables and vectors what they had.
        let bytes = |model: &Model, table: bool| {
            let names = model.description.names;
            let is_table = |tensor: &&Tensor| [names.embedding, names.output].contains(&tensor.name.as_str());
            let tensors =
                model.weights.tensors().filter(|tensor| tensor.rows > 1 && is_table(tensor) == table);
            tensors.map(|tensor| 2 * tensor.rows * tensor.cols).sum::<usize>() as u64
        };
        let (whole, layers) = (plain().bytes_on_gpu(), bytes(&plain(), false));
        assert!(layers > whole / 2 && made.bytes_on_gpu() == whole - layers / 2);
    }
    // What is quantized stays, but for blocks of floats, which would be bf16.
    for (name, config, write, stored) in formats() {
        let (model, _) = both(&config, write);
        let kept = on_gpu(&model, 90);
        let model = model.converted(DType::Int8);
        let blocks = name == "fp8 by block";
        assert_eq!(model.weight_format(), if blocks { DType::Int8 } else { stored });
        let off = difference(&kept, &on_gpu(&model, 90));
        assert!(off <= 0.03 && (!blocks || off > 0.0), "{name}: off by {off}");
    }
}

#[test]
fn layers_that_stayed_plain_are_as_they_were() {
    for (name, config, write, _) in formats() {
        let (model, plain) = both(&config, write);
        let (kept, rows) = (in_layer(values(&model), 0), 256);
        let get = |model: &Model| model.weights.get(&kept, rows, 64).unwrap();
        assert_eq!((get(&model).dtype, get(&model).data), (DType::BF16, get(&plain).data), "{name}");
    }
}

#[test]
fn a_checkpoint_that_is_wrong_says_what_is() {
    let layer = "model.layers.0.mlp.up_proj";
    let says = |name: &str, change: &dyn Fn(&mut Checkpoint, &str), expected: &str| {
        let (_, config, write, _) = formats().into_iter().find(|(format, ..)| *format == name).unwrap();
        let mut model = testing::wide([DType::BF16; 3]);
        let mut file = checkpoint(&model, write).0;
        change(&mut file, layer);
        model.weights = file.read(&config).unwrap();
        let got = model.weights.get(&format!("{layer}.weight"), 256, 64);
        let error = got.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(layer) && error.contains(expected), "{name}: {error}");
    };
    let remove = |what: &'static str| {
        move |file: &mut Checkpoint, layer: &str| {
            file.tensors.remove(&format!("{layer}.{what}")).unwrap();
        }
    };
    let reshape = |what: &'static str, shape: &'static [usize]| {
        move |file: &mut Checkpoint, layer: &str| {
            file.tensors.get_mut(&format!("{layer}.{what}")).unwrap().1 = shape.to_vec();
        }
    };
    says("fp8 by tensor", &remove("weight_scale"), "up_proj.weight_scale: is missing");
    says(
        "fp8 by tensor",
        &reshape("weight", &[64, 256]),
        "up_proj.weight: has shape [64, 256], expected [256, 64]",
    );
    says(
        "fp8 by tensor",
        &|file, layer| file.add_f32(layer, "weight_scale", &[], &[f32::NAN]),
        "a scale is NaN",
    );
    says(
        "fp8 by tensor",
        &|file, layer| file.add(layer, "weight", "F8_E5M2", &[256, 64], vec![0; 1 << 14]),
        "stored as F8_E5M2; supported: F8_E4M3, I8",
    );
    says(
        "fp8 by tensor",
        &|file, layer| file.add(layer, "weight_scale", "F8_E8M0", &[], vec![0]),
        "weight_scale: stored as F8_E8M0; supported: F32 F16 BF16",
    );
    says(
        "fp8 by channel",
        &|file, layer| file.add_f32(layer, "weight_scale", &[7], &[1.0; 7]),
        "has 1 × 7 scales; expected one, 256, groups of 256 rows of 64",
    );
    says(
        "fp8 by block",
        &|file, layer| file.add_f32(layer, "weight_scale_inv", &[3, 1], &[1.0; 3]),
        "or 2 × 1 of blocks",
    );
    says(
        "int8 by group",
        &|file, layer| file.add_f32(layer, "weight_scale", &[256, 3], &[1.0; 768]),
        "has 256 × 3 scales",
    );
    says(
        "int8 by channel",
        &|file, layer| file.add(layer, "weight_zero_point", "I8", &[256, 1], vec![3; 256]),
        "8-bit codes with zero points",
    );
    says(
        "int4, packed",
        &reshape("weight_packed", &[8, 256]),
        "weight_packed: has shape [8, 256], expected [256, 8]",
    );
    says(
        "int4 with zeros",
        &reshape("weight_zero_point", &[2, 32]),
        "weight_zero_point: has shape [2, 32], expected [32, 2]",
    );
    says("gptq", &remove("qzeros"), "up_proj.qzeros: is missing");
    says("gptq", &remove("scales"), "up_proj.scales: is missing");
    says(
        "gptq",
        &reshape("scales", &[256, 2]),
        "has 256 × 2 scales; expected groups of 64 inputs × 256 outputs",
    );
    says(
        "gptq",
        &|file, layer| {
            let order = (0..64u32).flat_map(|col| (col % 2).to_le_bytes()).collect();
            file.add(layer, "g_idx", "I32", &[64], order);
        },
        "g_idx: the inputs are reordered (desc_act, actorder); supported: groups in order",
    );
    says(
        "gptq of 8 bits",
        &|file, layer| file.add(layer, "qzeros", "I32", &[2, 64], vec![126; 512]),
        "qzeros: 8-bit codes with zero points",
    );
    says("awq", &reshape("qweight", &[32, 64]), "qweight: has shape [32, 64], expected [64, 32]");
    says(
        "awq",
        &|file, layer| file.add(layer, "qzeros", "I64", &[2, 32], vec![0; 512]),
        "qzeros: stored as I64, expected I32",
    );
    says(
        "awq",
        &|file, layer| file.add(layer, "qzeros", "I32", &[2, 32], vec![0; 8]),
        "take 256 bytes, the file has 8",
    );
}

#[test]
fn what_was_packed_by_earlier_versions_of_compressed_tensors_is_read() {
    let (name, config, write, _) = formats().swap_remove(7);
    assert_eq!(name, "int4 with zeros");
    let model = testing::wide([DType::BF16; 3]);
    let (mut file, numbers) = checkpoint(&model, write);
    // Zero points of signed bytes, and an order that there isn't.
    let layer = "model.layers.0.mlp.up_proj";
    let (_, _, words) = &file.tensors[&format!("{layer}.weight_zero_point")];
    let zero = |at: usize| words[(at / 2 / 8 * 2 + at % 2) * 4 + at / 2 % 8 / 2] >> (at / 2 % 2 * 4) & 15;
    let zeros = (0..512).map(|at| zero(at).wrapping_sub(8)).collect();
    file.add(layer, "weight_zero_point", "I8", &[256, 2], zeros);
    file.add(layer, "weight_g_idx", "I32", &[64], vec![0xff; 256]);
    let name = format!("{layer}.weight");
    let read = file.read(&config).unwrap().get(&name, 256, 64).unwrap();
    assert_eq!(dequantized(&read).unwrap(), numbers[&name]);
}

#[test]
fn methods_that_are_not_read_are_named() {
    let says = |config: Value, expected: &str| {
        let error = Checkpoint::default().read(&config).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("config.json: key quantization_config: ") && error.contains(expected),
            "{error}"
        );
    };
    says(
        json!({"quant_method": "bitsandbytes"}),
        "quant_method bitsandbytes; supported: fp8 (e4m3), compressed-tensors",
    );
    says(json!({}), "no quant_method; supported: fp8");
    says(json!({"quant_method": 3}), "invalid type");
    says(json!({"quant_method": "fp8", "fmt": "e5m2"}), "fp8 stored as e5m2; supported: e4m3");
    says(json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), "blocks of 0 × 128");
    says(json!({"quant_method": "gptq", "bits": 3}), "gptq of 3 bits; supported: 4, 8");
    says(json!({"quant_method": "awq", "bits": 8}), "awq of 8 bits; supported: 4");
    says(json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "modelopt, NVFP4; supported: FP8");
    says(json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "gptq stored as marlin");
    says(
        json!({"quant_method": "awq", "bits": 4, "version": "gemv"}),
        "awq stored for gemv; supported: gemm",
    );
    says(json!({"quant_method": "awq", "bits": 4, "zero_point": false}), "awq without zero points");
    says(
        compressed("nvfp4-pack-quantized", 4, "float", "tensor_group"),
        "nvfp4-pack-quantized: float of 4 bits by tensor_group",
    );
    says(
        compressed("pack-quantized", 3, "int", "group"),
        "pack-quantized: int of 3 bits by group; supported:",
    );
    let with = |key: &str, value: Value| {
        let mut config = compressed("int-quantized", 8, "int", "channel");
        config[key] = value;
        config
    };
    says(with("quantization_status", json!("frozen")), "status frozen; supported: compressed");
    says(with("sparsity_config", json!({"format": "sparse-24-bitmask"})), "sparse as sparse-24-bitmask");
    says(with("transform_config", json!({"config_groups": {"a": {}}})), "with transforms");
    says(with("config_groups", json!({})), "without quantized weights");
    let plain = Checkpoint::default();
    assert_eq!(plain.read(&Value::Null).unwrap().scheme, None);
}
