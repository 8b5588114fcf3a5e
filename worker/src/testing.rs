//! What several test modules need.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use half::{bf16, f16};
use volley_kernels::{
    Backend, DType, Heads, Peers, Tensor,
    cpu::{Activations, CpuBackend, CpuOptions},
    cuda::{AllReduce, CudaBackend, CudaOptions, Memory},
};
use volley_twin::Twin;

use crate::{
    decoder::{Capacity, Decoder},
    format::Weights,
    group::Group,
    model::{Bias, Mlp, Model, NormKind, Qkv},
};

/// A tiny model and what transformers computes with it (tests/fixtures/make.py).
pub(crate) struct Fixture {
    pub(crate) model: Model,
    pub(crate) tokens: Vec<u32>,
    /// `[tokens, vocab]`.
    pub(crate) logits: Vec<f32>,
    /// The same with the exact GELU, where that was computed.
    pub(crate) logits_gelu: Option<Vec<f32>>,
}

/// The fixtures, a family each.
pub(crate) const FIXTURES: [&str; 7] = [
    "tiny-llama",
    "tiny-mistral",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-phi3",
    "tiny-gpt-bigcode",
    "tiny-starcoder2",
];

/// Those that are there as GGUF files, too.
pub(crate) const GGUF_FIXTURES: [&str; 4] =
    ["tiny-qwen3", "tiny-phi3", "tiny-gpt-bigcode", "tiny-starcoder2"];

/// The folder of a fixture.
pub(crate) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Opens a fixture.
pub(crate) fn fixture(name: &str) -> Fixture {
    let folder = folder(name);
    let expected = crate::format::safetensors::open(&folder, &[folder.join("expected.safetensors")]).unwrap();
    let numbers = |name| {
        let tensor = expected.tensors().find(|tensor| tensor.name == name)?;
        Some(
            tensor
                .data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect::<Vec<_>>(),
        )
    };
    let tokens = numbers("tokens").unwrap().into_iter().map(|token| token as u32).collect();
    let (logits, logits_gelu) = (numbers("logits").unwrap(), numbers("logits_gelu"));
    Fixture { model: Model::open(&folder).unwrap(), tokens, logits, logits_gelu }
}

/// Opens a fixture's GGUF file.
pub(crate) fn gguf_fixture(name: &str) -> Fixture {
    Fixture { model: Model::open(&folder(name).join("model.gguf")).unwrap(), ..fixture(name) }
}

/// Loads a fixture's decoder.
pub(crate) fn decoder<B: Backend>(
    backend: B,
    model: &Model,
    capacity: Capacity,
    blocks: usize,
) -> Decoder<B> {
    let description = model.description.clone();
    Decoder::load(backend, description, &model.weights, capacity, &mut |_, _| (), |_| Ok(blocks)).unwrap()
}

/// Loads the decoders of all ranks, or of the only one.
pub(crate) fn group<B: Backend>(ranks: Vec<B>, model: &Model, capacity: Capacity, blocks: usize) -> Group<B> {
    let mut others = ranks.into_iter();
    let first = others.next().unwrap();
    let first = || Ok((decoder(first, model, capacity, blocks), ()));
    let other = |backend| Ok(decoder(backend, model, capacity, blocks));
    Group::load(first, others.collect(), other).unwrap().0
}

/// So many ranks, each of what `backend` gives.
pub(crate) fn ranks<B>(ranks: usize, backend: impl Fn(Peers) -> B) -> Vec<B> {
    Peers::group(ranks).into_iter().map(backend).collect()
}

/// The CPU as so many ranks; as a single one it is in no group.
pub(crate) fn cpus(ranks: usize, activations: Activations) -> Vec<CpuBackend> {
    let cpu = || CpuBackend::new(CpuOptions { threads: 1, activations, isa: None }).unwrap();
    if ranks == 1 { vec![cpu()] } else { self::ranks(ranks, |peers| cpu().in_group(peers)) }
}

/// The CUDA backend over a twin of a GPU. Weights go there in many pieces.
pub(crate) fn cuda(twin: impl Into<Arc<Twin>>, deterministic: bool) -> CudaBackend {
    cuda_with(twin, CudaOptions { deterministic, ..CudaOptions::default() })
}

pub(crate) fn cuda_with(twin: impl Into<Arc<Twin>>, options: CudaOptions) -> CudaBackend {
    CudaBackend::new(twin.into(), CudaOptions { staging: 2048, ..options })
}

/// What stands for NCCL in tests: sums over the twins of a group, in whatever order.
struct Sums(Peers);

// === impl Sums ===

impl AllReduce for Sums {
    fn sum(&self, memory: &mut Memory<bf16>, numbers: usize) -> Result<(), volley_kernels::Error> {
        let leave = |mine: &mut [f32]| {
            let own = memory.read_part(0..numbers)?;
            mine.iter_mut().zip(own).for_each(|(mine, own)| *mine = own.to_f32());
            Ok(())
        };
        let sum = |all: &[&[f32]], i: usize| bf16::from_f32(all.iter().rev().map(|part| part[i]).sum());
        let take = |all: &[&[f32]]| (0..numbers).map(|i| sum(all, i)).collect::<Vec<_>>();
        let sums = self.0.exchange(numbers, leave, take)?;
        memory.write_at(0, &sums)
    }

    fn abort(&self) {
        self.0.fail("aborted");
    }
}

/// Ranks over these twins, which add up among themselves.
pub(crate) fn reducing(twins: Vec<Arc<Twin>>) -> Vec<CudaBackend> {
    let sums = Peers::group(twins.len()).into_iter().map(|peers| Box::new(Sums(peers)));
    let rank = |((twin, peers), sums): ((Arc<Twin>, Peers), Box<Sums>)| {
        cuda(twin, false).in_group(peers).reducing(sums)
    };
    twins.into_iter().zip(Peers::group(sums.len())).zip(sums).map(rank).collect()
}

/// How the matrices of a made-up model are stored: queries, keys and others, values, what goes down.
pub(crate) type Formats = [DType; 3];

/// A model of random numbers in shapes that GPUs have kernels for (the fixtures' heads are too narrow), with the
/// text and the positions of the fixture `tiny-llama`.
pub(crate) fn made_up(formats: Formats) -> Model {
    random_model("tiny-llama", heads(4, 2), 96, formats)
}

/// The same, wide enough for four ranks, with biases of all projections of attention.
pub(crate) fn wide(formats: Formats) -> Model {
    let mut model = random_model("tiny-llama", heads(8, 4), 256, formats);
    model.description.output_bias = Bias::Always;
    model
}

/// The same for other families that can be shared out.
pub(crate) fn wide_families() -> Vec<(&'static str, Model)> {
    let names = ["tiny-mistral", "tiny-qwen3", "tiny-phi3", "tiny-starcoder2"];
    names.map(|name| (name, random_model(name, heads(8, 4), 256, [DType::BF16; 3]))).into()
}

/// In shapes that GPUs have kernels for.
fn heads(heads: usize, kv_heads: usize) -> Heads {
    Heads { heads, kv_heads, dim: 64, scale: 0.125, window: None }
}

fn random_model(fixture: &str, heads: Heads, hidden: usize, formats: Formats) -> Model {
    let mut model = self::fixture(fixture).model;
    let description = &mut model.description;
    let heads = Heads { window: description.heads.window, ..heads };
    (description.heads, description.width, description.hidden) = (heads, 64, hidden);
    description.qkv_bias = Bias::Always;
    if description.positions.is_none() {
        description.rope.frequencies = (0..32).map(|i| 10_000f32.powf(-i as f32 / 32.0)).collect();
    }
    let (width, names) = (description.width, description.names);
    let (query, key) = (heads.heads * heads.dim, heads.kv_heads * heads.dim);
    let [most, values, down] = formats;
    let mut tensors = vec![random(names.embedding, DType::BF16, description.vocab, width)];
    let mut add = |name: &str, layer: usize, dtype, rows, cols, bias: Bias| {
        let name = name.replace("{}", &layer.to_string());
        tensors.push(random(&name, dtype, rows, cols));
        if bias == Bias::Always {
            let rows = if dtype == DType::F32 { cols } else { rows };
            tensors.push(random(&name.replace(".weight", ".bias"), DType::F32, 1, rows));
        }
    };
    if let (Some(name), Some(rows)) = (names.positions, description.positions) {
        add(name, 0, DType::BF16, rows, width, Bias::Never);
    }
    let norm_bias = if description.norm == NormKind::Layer { Bias::Always } else { Bias::Never };
    for layer in 0..description.layers {
        let mut part = |name, dtype, rows, cols, bias| add(name, layer, dtype, rows, cols, bias);
        match names.qkv {
            Qkv::Apart([q, k, v]) => {
                part(q, most, query, width, Bias::Always);
                part(k, most, key, width, Bias::Always);
                part(v, values, key, width, Bias::Always);
            }
            Qkv::Stacked(name) => part(name, most, query + 2 * key, width, Bias::Always),
        }
        let mlp_bias = description.mlp_bias;
        part(names.attention_output, most, width, query, Bias::Always);
        match names.mlp {
            Mlp::Gated(both) => {
                both.into_iter().for_each(|name| part(name, most, hidden, width, Bias::Never));
            }
            Mlp::Stacked(name) => part(name, most, 2 * hidden, width, Bias::Never),
            Mlp::Plain(up) => part(up, most, hidden, width, mlp_bias),
        }
        part(names.down, down, width, hidden, mlp_bias);
        for name in names.head_norms.into_iter().flatten() {
            part(name, DType::F32, 1, heads.dim, Bias::Never);
        }
        for name in [names.attention_norm, names.mlp_norm] {
            part(name, DType::F32, 1, width, norm_bias);
        }
    }
    add(names.final_norm, 0, DType::F32, 1, width, norm_bias);
    if !description.tied {
        add(names.output, 0, DType::BF16, description.vocab, width, Bias::Never);
    }
    model.weights = Weights::of(tensors);
    model
}

/// Families that differ in more than names from [`made_up`]'s, with heads for which a GPU has kernels.
pub(crate) fn families() -> Vec<(&'static str, Model)> {
    // StarCoder's are many over one.
    let of = |name| if name == "tiny-gpt-bigcode" { heads(48, 1) } else { heads(4, 2) };
    let names = GGUF_FIXTURES.into_iter().chain(["tiny-mistral"]);
    names.map(|name| (name, random_model(name, of(name), 96, [DType::BF16; 3]))).collect()
}

/// Random numbers that follow from the name: around 1 in a vector of gains, else such that a product is about as large
/// as what is multiplied.
fn random(name: &str, dtype: DType, rows: usize, cols: usize) -> Tensor {
    let mut state = name.bytes().fold(1u64, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let size = 1.7 / (cols as f32).sqrt();
    let mut number = |size: f32| ((next() % 4001) as f32 / 2000.0 - 1.0) * size;
    let data: Vec<u8> = match dtype {
        DType::F32 if name.ends_with(".weight") => {
            (0..cols).flat_map(|_| (1.0 + number(0.3)).to_le_bytes()).collect()
        }
        DType::F32 => (0..rows * cols).flat_map(|_| number(0.3).to_le_bytes()).collect(),
        DType::BF16 => (0..rows * cols).flat_map(|_| bf16::from_f32(number(size)).to_le_bytes()).collect(),
        _ => {
            let (numbers, bytes) = dtype.block();
            assert_eq!(numbers, 32);
            let levels = if bytes > 32 { 128.0 } else { 8.0 };
            let mut blocks = Vec::new();
            for _ in 0..rows * cols / numbers {
                blocks.extend(f16::from_f32(size / levels).to_le_bytes());
                if dtype == DType::Q4_1 {
                    blocks.extend(f16::from_f32(-size).to_le_bytes());
                }
                blocks.resize(blocks.len().next_multiple_of(bytes), 0);
                let codes = if bytes > 32 { 32 } else { 16 };
                let at = blocks.len() - codes;
                blocks[at..].fill_with(|| (number(127.9) as i8) as u8);
            }
            blocks
        }
    };
    Tensor::new(name, dtype, rows, cols, Bytes::from(data)).unwrap()
}

/// Writes GGUF files.
#[derive(Clone, Default)]
pub(crate) struct GgufWriter {
    pairs: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

// === impl GgufWriter ===

impl GgufWriter {
    fn pair(mut self, key: &str, code: u32, value: &[u8]) -> Self {
        self.pairs.retain(|(known, _)| known != key);
        self.pairs.push((key.to_owned(), [&code.to_le_bytes(), value].concat()));
        self
    }

    fn array(self, key: &str, code: u32, count: usize, elements: &[u8]) -> Self {
        let head = [&code.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.pair(key, 9, &[&head, elements].concat())
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.pair(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.pair(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.pair(key, 7, &[value.into()])
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        self.pair(key, 8, &string(value))
    }

    pub(crate) fn strings(self, key: &str, values: &[&str]) -> Self {
        let elements = values.iter().flat_map(|value| string(value)).collect::<Vec<_>>();
        self.array(key, 8, values.len(), &elements)
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        self.array(key, 5, values.len(), &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        self.array(key, 6, values.len(), &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    /// A tensor: sizes fastest first, GGML's type code, its bytes.
    pub(crate) fn tensor(mut self, name: &str, sizes: &[u64], code: u32, data: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), sizes.to_vec(), code, data));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            file.extend([string(key), value.clone()].concat());
        }
        let mut offset = 0u64;
        for (name, sizes, code, data) in &self.tensors {
            file.extend(string(name));
            file.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|size| file.extend(size.to_le_bytes()));
            file.extend(code.to_le_bytes());
            file.extend(offset.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, data) in &self.tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(data);
        }
        file
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A complete tiny GGUF model: one layer of 32 columns, two heads, byte-level BPE over `a`, `b`, `ab`, `</s>`.
pub(crate) fn tiny_gguf() -> GgufWriter {
    let zeros = |numbers: usize| vec![0; numbers * 4];
    let mut writer = GgufWriter::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 64)
        .u32("llama.attention.head_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strings("tokenizer.ggml.tokens", &["a", "b", "ab", "</s>"])
        .i32s("tokenizer.ggml.token_type", &[1, 1, 1, 3])
        .strings("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.eos_token_id", 3)
        .tensor("token_embd.weight", &[32, 4], 0, zeros(128))
        .tensor("output_norm.weight", &[32], 0, zeros(32));
    for (name, rows, cols) in [
        ("attn_q", 32, 32),
        ("attn_k", 32, 32),
        ("attn_v", 32, 32),
        ("attn_output", 32, 32),
        ("ffn_gate", 64, 32),
        ("ffn_up", 64, 32),
        ("ffn_down", 32, 64),
    ] {
        // Q8_0: 34 bytes for 32 numbers.
        let data = vec![0; rows * cols / 32 * 34];
        writer = writer.tensor(&format!("blk.0.{name}.weight"), &[cols as u64, rows as u64], 8, data);
    }
    for name in ["attn_norm", "ffn_norm"] {
        writer = writer.tensor(&format!("blk.0.{name}.weight"), &[32], 0, zeros(32));
    }
    writer
}

/// What transformers says about SmolLM2 (tests/reference).
#[derive(serde::Deserialize)]
pub(crate) struct Reference {
    pub(crate) items: Vec<ReferenceItem>,
}

#[derive(serde::Deserialize)]
pub(crate) struct ReferenceItem {
    pub(crate) prompt_text: String,
    pub(crate) prompt_ids: Vec<u32>,
    pub(crate) gen_ids: Vec<u32>,
    pub(crate) gen_text: String,
}

pub(crate) fn reference() -> Reference {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reference/smollm2-135m-instruct.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The SmolLM2 file that the reference is about, where the environment names it.
pub(crate) fn reference_model() -> Option<PathBuf> {
    let path = std::env::var_os("VOLLEY_TEST_MODEL");
    if path.is_none() {
        println!(
            "not checked against the reference: VOLLEY_TEST_MODEL names no SmolLM2-135M-Instruct.Q4_1.gguf"
        );
    }
    path.map(PathBuf::from)
}
