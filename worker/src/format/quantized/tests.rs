//! A quantized checkpoint computes what its numbers, written out, compute.

use std::collections::BTreeMap;

use half::{bf16, f16};
use serde_json::{Value, json};
use volley_kernels::{BLOCK_TOKENS, Backend, Batch, BlockId, Sequence, cpu::Activations};
use volley_twin::{Schedule, Twin};

use super::*;
use crate::{
    decoder::{Capacity, in_layer},
    format::safetensors,
    model::{Model, Qkv},
    shard, testing,
};

/// How the layers of a checkpoint are written: each says what its numbers are.
type Write = fn(&mut Checkpoint, &str, usize, usize) -> Vec<f32>;

/// What a checkpoint's file will have.
#[derive(Default)]
struct Checkpoint {
    tensors: BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)>,
    noise: u64,
}

// === impl Checkpoint ===

impl Checkpoint {
    fn noise(&mut self) -> u32 {
        self.noise =
            self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.noise >> 33) as u32
    }

    fn codes(&mut self, count: usize, most: u32) -> Vec<u8> {
        (0..count).map(|_| (self.noise() % (most + 1)) as u8).collect()
    }

    /// Numbers around `size` that 16 bits hold.
    fn scales(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count)
            .map(|_| bf16::from_f32(size * (0.5 + self.noise() as f32 / (1u64 << 31) as f32)).to_f32())
            .collect()
    }

    fn add(&mut self, layer: &str, what: &str, dtype: &'static str, shape: &[usize], data: Vec<u8>) {
        self.tensors.insert(format!("{layer}.{what}"), (dtype, shape.to_vec(), data));
    }

    fn add_f32(&mut self, layer: &str, what: &str, shape: &[usize], numbers: &[f32]) {
        self.add(layer, what, "F32", shape, numbers.iter().flat_map(|x| x.to_le_bytes()).collect());
    }

    fn add_bf16(&mut self, layer: &str, what: &str, shape: &[usize], numbers: &[f32]) {
        self.add(
            layer,
            what,
            "BF16",
            shape,
            numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        );
    }

    fn add_f16(&mut self, layer: &str, what: &str, shape: &[usize], numbers: &[f32]) {
        self.add(
            layer,
            what,
            "F16",
            shape,
            numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        );
    }

    /// Words of eight codes; `code` says which the `i`-th of a word is.
    fn add_words(
        &mut self,
        layer: &str,
        what: &str,
        shape: [usize; 2],
        code: impl Fn(usize, usize, usize) -> u8,
    ) {
        let word = |at: usize| {
            (0..8).fold(0u32, |all, i| all | u32::from(code(at / shape[1], at % shape[1], i)) << (4 * i))
        };
        let data = (0..shape[0] * shape[1]).flat_map(|at| word(at).to_le_bytes()).collect();
        self.add(layer, what, "I32", &shape, data);
    }

    /// The file's tensors, read back.
    fn read(&self, config: &Value) -> Result<Weights, Error> {
        let folder = tempfile::tempdir().unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (dtype, shape, bytes)) in &self.tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
            data.extend(bytes);
        }
        let header = Value::Object(header).to_string();
        let file = folder.path().join("model.safetensors");
        std::fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())
            .unwrap();
        let config = json!({"quantization_config": config});
        let scheme = scheme(&config, &folder.path().join("config.json"))?;
        Ok(Weights { scheme, ..safetensors::open(folder.path(), &[file])? })
    }
}

fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let magnitude =
        if exponent == 0 { fraction * 2f32.powi(-6) } else { (1.0 + fraction) * 2f32.powi(exponent - 7) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The size of scales such that random codes of that size make a product about as large as what is multiplied.
fn size(cols: usize, codes: f32) -> f32 {
    1.0 / (cols as f32).sqrt() / codes
}

/// e4m3 codes with a scale that `scale` says the place of.
fn floats(
    file: &mut Checkpoint,
    layer: &str,
    rows: usize,
    cols: usize,
    scale: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    // Nothing that is no number.
    let codes: Vec<u8> = file.codes(rows * cols, 255).into_iter().map(|code| code & 0xfe).collect();
    file.add(layer, "weight", "F8_E4M3", &[rows, cols], codes.clone());
    codes.iter().enumerate().map(|(i, &code)| scale(i / cols, i % cols) * e4m3(code)).collect()
}

fn fp8_by_tensor(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    let scale = file.scales(1, size(cols, 120.0))[0];
    file.add_f32(layer, "weight_scale", &[], &[scale]);
    file.add_f32(layer, "input_scale", &[], &[0.37]); // of no concern
    floats(file, layer, rows, cols, |_, _| scale)
}

fn fp8_by_block(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    let shape = [rows.div_ceil(128), cols.div_ceil(128)];
    let scales = file.scales(shape[0] * shape[1], size(cols, 120.0));
    file.add_f32(layer, "weight_scale_inv", &shape, &scales);
    floats(file, layer, rows, cols, |row, col| scales[row / 128 * shape[1] + col / 128])
}

fn fp8_by_channel(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    let scales = file.scales(rows, size(cols, 120.0));
    file.add_bf16(layer, "weight_scale", &[rows, 1], &scales);
    floats(file, layer, rows, cols, |row, _| scales[row])
}

fn int8(
    file: &mut Checkpoint,
    layer: &str,
    rows: usize,
    cols: usize,
    group: usize,
    packed: bool,
) -> Vec<f32> {
    let (codes, groups) = (file.codes(rows * cols, 255), cols / group);
    let scales = file.scales(rows * groups, size(cols, 70.0));
    file.add_bf16(layer, "weight_scale", &[rows, groups], &scales);
    match packed {
        // Half of the range added, four a word.
        true => file.add(
            layer,
            "weight_packed",
            "I32",
            &[rows, cols / 4],
            codes.iter().map(|code| code ^ 0x80).collect(),
        ),
        false => file.add(layer, "weight", "I8", &[rows, cols], codes.clone()),
    }
    let number =
        |(i, &code): (usize, &u8)| scales[i / cols * groups + i % cols / group] * f32::from(code as i8);
    codes.iter().enumerate().map(number).collect()
}

fn int8_by_channel(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    int8(file, layer, rows, cols, cols, false)
}

fn int8_by_group(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    int8(file, layer, rows, cols, 32, false)
}

fn int8_packed(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    int8(file, layer, rows, cols, cols, true)
}

/// 4-bit codes `[rows, cols]`; scales and zero points `[rows, cols / 32]`; and the numbers.
fn int4(
    file: &mut Checkpoint,
    rows: usize,
    cols: usize,
    zeros: (u8, u8),
) -> (Vec<u8>, Vec<f32>, Vec<u8>, Vec<f32>) {
    let (codes, groups) = (file.codes(rows * cols, 15), cols / 32);
    let scales = file.scales(rows * groups, size(cols, 5.0));
    let (least, most) = zeros;
    let zeros: Vec<u8> =
        file.codes(rows * groups, (most - least).into()).into_iter().map(|zero| least + zero).collect();
    let number = |(i, &code): (usize, &u8)| {
        let group = i / cols * groups + i % cols / 32;
        scales[group] * (f32::from(code) - f32::from(zeros[group]))
    };
    let numbers = codes.iter().enumerate().map(number).collect();
    (codes, scales, zeros, numbers)
}

fn int4_packed(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    let (codes, scales, _, numbers) = int4(file, rows, cols, (8, 8));
    file.add_words(layer, "weight_packed", [rows, cols / 8], |row, word, i| codes[row * cols + 8 * word + i]);
    file.add_bf16(layer, "weight_scale", &[rows, cols / 32], &scales);
    file.add(
        layer,
        "weight_shape",
        "I64",
        &[2],
        [rows, cols].iter().flat_map(|n| (*n as u64).to_le_bytes()).collect(),
    );
    numbers
}

fn int4_packed_with_zeros(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    let (codes, scales, zeros, numbers) = int4(file, rows, cols, ZEROS);
    let groups = cols / 32;
    file.add_words(layer, "weight_packed", [rows, cols / 8], |row, word, i| codes[row * cols + 8 * word + i]);
    file.add_bf16(layer, "weight_scale", &[rows, groups], &scales);
    file.add_words(layer, "weight_zero_point", [rows / 8, groups], |word, group, i| {
        zeros[(8 * word + i) * groups + group]
    });
    numbers
}

fn gptq_of(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize, less: u8) -> Vec<f32> {
    let (codes, scales, zeros, numbers) = int4(file, rows, cols, ZEROS);
    let groups = cols / 32;
    let by_group: Vec<f32> = (0..groups * rows).map(|i| scales[i % rows * groups + i / rows]).collect();
    file.add_words(layer, "qweight", [cols / 8, rows], |word, row, i| codes[row * cols + 8 * word + i]);
    file.add_words(layer, "qzeros", [groups, rows / 8], |group, word, i| {
        zeros[(8 * word + i) * groups + group] - less
    });
    file.add_f16(layer, "scales", &[groups, rows], &by_group);
    let order = (0..cols as u32).flat_map(|col| (col / 32).to_le_bytes()).collect();
    file.add(layer, "g_idx", "I32", &[cols], order);
    numbers
}

fn gptq(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    gptq_of(file, layer, rows, cols, 1)
}

fn gptq_v2(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    gptq_of(file, layer, rows, cols, 0)
}

fn awq(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let (codes, scales, zeros, numbers) = int4(file, rows, cols, ZEROS);
    let groups = cols / 32;
    let by_group: Vec<f32> = (0..groups * rows).map(|i| scales[i % rows * groups + i / rows]).collect();
    file.add_words(layer, "qweight", [cols, rows / 8], |col, word, i| {
        codes[(8 * word + ORDER[i]) * cols + col]
    });
    file.add_words(layer, "qzeros", [groups, rows / 8], |group, word, i| {
        zeros[(8 * word + ORDER[i]) * groups + group]
    });
    file.add_f16(layer, "scales", &[groups, rows], &by_group);
    numbers
}

/// What compressed-tensors says of its weights.
fn compressed(format: &str, bits: u32, kind: &str, strategy: &str) -> Value {
    let weights =
        json!({"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": true, "group_size": null});
    json!({
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": null}},
        "ignore": ["lm_head"], "kv_cache_scheme": null, "sparsity_config": {"format": "dense"},
    })
}

/// Every format, and what its layers are stored as.
fn formats() -> Vec<(&'static str, Value, Write, DType)> {
    let fp8 = |more: Value| {
        let mut config = json!({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let bits4 = |method: &str, key: &str, value: &str| json!({"quant_method": method, "bits": 4, "group_size": 32, key: value});
    let by_tensor = json!({"quant_method": "fp8", "activation_scheme": "static"});
    vec![
        ("fp8 by tensor", by_tensor, fp8_by_tensor, DType::E4m3),
        ("fp8 by block", fp8(json!({"weight_block_size": [128, 128]})), fp8_by_block, DType::E4m3),
        ("fp8 by channel", compressed("float-quantized", 8, "float", "channel"), fp8_by_channel, DType::E4m3),
        ("int8 by channel", compressed("int-quantized", 8, "int", "channel"), int8_by_channel, DType::Int8),
        ("int8 by group", compressed("int-quantized", 8, "int", "group"), int8_by_group, DType::Int8),
        ("int8, packed", compressed("pack-quantized", 8, "int", "channel"), int8_packed, DType::Int8),
        ("int4, packed", compressed("pack-quantized", 4, "int", "group"), int4_packed, DType::Int4),
        (
            "int4 with zeros",
            compressed("pack-quantized", 4, "int", "group"),
            int4_packed_with_zeros,
            DType::Int4,
        ),
        ("gptq", bits4("gptq", "checkpoint_format", "gptq"), gptq, DType::Int4),
        ("gptq v2", bits4("gptq", "checkpoint_format", "gptq_v2"), gptq_v2, DType::Int4),
        ("awq", bits4("awq", "version", "gemm"), awq, DType::Int4),
    ]
}

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
                file.noise = tensor.name.bytes().fold(7, |all, byte| all * 31 + u64::from(byte) & 0xff_ffff);
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

/// Zero points as they are found: further off the middle, sums are differences of large numbers.
const ZEROS: (u8, u8) = (5, 11);

const CAPACITY: Capacity = Capacity { rows: 96, sequences: 1 };

/// The logits of 90 tokens: enough for the large tiles.
fn logits<B: Backend>(ranks: Vec<B>, model: &Model) -> Vec<f32> {
    let mut group = testing::group(ranks, model, CAPACITY, 6);
    let blocks = (0..90u32.div_ceil(BLOCK_TOKENS as u32)).map(BlockId).collect();
    let sequences = vec![Sequence { first_row: 0, rows: 90, position: 0, blocks }];
    group.forward(Batch { tokens: (0..90).map(|i| i * 31 % 288).collect(), sequences });
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
        assert_eq!(on_cpu(&model, Activations::F32), expected, "{name}");
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
    says(json!({"quant_method": "gptq", "bits": 8}), "gptq of 8 bits; supported: 4");
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
