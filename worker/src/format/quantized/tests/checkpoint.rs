//! Checkpoints of every format, written by their definitions: random codes, and what these stand for.

use std::collections::BTreeMap;

use half::{bf16, f16};
use serde_json::{Value, json};
use volley_kernels::DType;

use super::super::scheme;
use crate::{
    Error,
    format::{Weights, safetensors},
};

/// Zero points as they are found: further off the middle, sums are differences of large numbers.
const ZEROS: (u8, u8) = (5, 11);

/// How the layers of a checkpoint are written: each says what its numbers are.
pub(super) type Write = fn(&mut Checkpoint, &str, usize, usize) -> Vec<f32>;

/// What a checkpoint's file will have.
#[derive(Default)]
pub(super) struct Checkpoint {
    pub(super) tensors: BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)>,
    pub(super) noise: u64,
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

    pub(super) fn add(
        &mut self,
        layer: &str,
        what: &str,
        dtype: &'static str,
        shape: &[usize],
        data: Vec<u8>,
    ) {
        self.tensors.insert(format!("{layer}.{what}"), (dtype, shape.to_vec(), data));
    }

    pub(super) fn add_f32(&mut self, layer: &str, what: &str, shape: &[usize], numbers: &[f32]) {
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
    pub(super) fn read(&self, config: &Value) -> Result<Weights, Error> {
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

fn gptq_of_8_bits(file: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Vec<f32> {
    let (codes, groups) = (file.codes(rows * cols, 255), cols / 32);
    let scales = file.scales(groups * rows, size(cols, 70.0));
    // Four inputs a word, the words of all outputs one after another.
    let at = |i: usize| (i / 4 % rows) * cols + i / 4 / rows * 4 + i % 4;
    file.add(layer, "qweight", "I32", &[cols / 4, rows], (0..rows * cols).map(|i| codes[at(i)]).collect());
    file.add(layer, "qzeros", "I32", &[groups, rows / 4], vec![127; groups * rows]);
    file.add_f16(layer, "scales", &[groups, rows], &scales);
    let number = |i: usize| scales[i % cols / 32 * rows + i / cols] * (f32::from(codes[i]) - 128.0);
    (0..rows * cols).map(number).collect()
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
pub(super) fn compressed(format: &str, bits: u32, kind: &str, strategy: &str) -> Value {
    let weights =
        json!({"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": true, "group_size": null});
    json!({
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": null}},
        "ignore": ["lm_head"], "kv_cache_scheme": null, "sparsity_config": {"format": "dense"},
    })
}

/// Every format, and what its layers are stored as.
pub(super) fn formats() -> Vec<(&'static str, Value, Write, DType)> {
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
        ("gptq of 8 bits", json!({"quant_method": "gptq", "bits": 8}), gptq_of_8_bits, DType::Int8),
        ("modelopt", json!({"quant_method": "modelopt", "quant_algo": "FP8"}), fp8_by_tensor, DType::E4m3),
        ("awq", bits4("awq", "version", "gemm"), awq, DType::Int4),
    ]
}
