//! The model families: where they differ, and what their files call things (names.rs).

use std::path::Path;

use volley_kernels::{Activation, RopePairing};

use super::{Bias, Names, NormKind, names};
use crate::Error;

/// A family of models that one description fits.
#[derive(Debug)]
pub(super) struct Family {
    /// What the model card says.
    pub(super) name: &'static str,
    /// `general.architecture` in GGUF; Mistral's files call themselves llama.
    pub(super) gguf: Option<&'static str>,
    /// `architectures` in config.json.
    pub(super) hf: &'static str,
    /// How rotated pairs lie in a GGUF file (its converter reorders llama's rows).
    pub(super) gguf_pairing: RopePairing,
    pub(super) norm: NormKind,
    /// Where the file doesn't say.
    pub(super) activation: Activation,
    /// Query, key and value biases.
    pub(super) qkv_bias: Bias,
    /// Biases of the other projections.
    pub(super) bias: Bias,
    /// Where the file doesn't say; else as many as query heads.
    pub(super) kv_heads: Option<u64>,
    /// One layer of so many sees everything, the last of them, where the file doesn't say; else all are alike.
    pub(super) pattern: Option<u64>,
    /// The base by which the others turn, where it is another.
    pub(super) local_base: Option<f64>,
    /// Embeddings are multiplied by the root of the width, and checkpoints (not GGUF files) leave out a 1 of gains.
    pub(super) gemma: bool,
    /// Queries and keys are normed with all heads together.
    pub(super) joint_norms: bool,
    /// What bounds scores of attention, and logits, where a GGUF file doesn't say.
    pub(super) softcaps: Option<[f64; 2]>,
    /// Layers of the model whose scores are scaled by `width / heads` in place of the head's dimensions, in GGUF files,
    /// which don't say.
    pub(super) wide_scale: Option<u64>,
    pub(super) gguf_names: &'static Names,
    pub(super) hf_names: &'static Names,
    /// What config.json calls otherwise than most do, and what most call it.
    pub(super) hf_keys: &'static [(&'static str, &'static str)],
    /// What config.json may leave out: transformers' own numbers.
    pub(super) hf_defaults: &'static [(&'static str, f64)],
}

/// A model that reads more than text, of which the part that reads text is served.
#[derive(Debug)]
pub(super) struct Multimodal {
    pub(super) hf: &'static str,
    /// The same model without the rest; `text_config` is its configuration.
    pub(super) text: &'static str,
    /// What its tensors' names begin with here.
    pub(super) prefix: &'static str,
}

pub(super) const MULTIMODAL: &[Multimodal] = &[Multimodal {
    hf: "Gemma3ForConditionalGeneration",
    text: "Gemma3ForCausalLM",
    prefix: "language_model.",
}];

const LLAMA: Family = Family {
    name: "llama",
    gguf: Some("llama"),
    hf: "LlamaForCausalLM",
    gguf_pairing: RopePairing::Adjacent,
    norm: NormKind::Rms,
    activation: Activation::Silu,
    qkv_bias: Bias::IfPresent,
    bias: Bias::IfPresent,
    kv_heads: None,
    pattern: None,
    local_base: None,
    gemma: false,
    joint_norms: false,
    softcaps: None,
    wide_scale: None,
    gguf_names: &names::GGUF,
    hf_names: &names::HF,
    hf_keys: &[],
    hf_defaults: &[],
};

/// Llama 2 and 3, SmolLM2; Mistral; Qwen 2 and 2.5; Qwen 3; Phi 3 and 4; Gemma 2; Gemma 3; OLMo 2; StarCoder and
/// SantaCoder; StarCoder 2.
pub(super) const FAMILIES: &[Family] = &[
    LLAMA,
    Family { name: "mistral", gguf: None, hf: "MistralForCausalLM", qkv_bias: Bias::Never, ..LLAMA },
    Family {
        name: "qwen2",
        gguf: Some("qwen2"),
        hf: "Qwen2ForCausalLM",
        gguf_pairing: RopePairing::Halves,
        qkv_bias: Bias::Always,
        ..LLAMA
    },
    Family {
        name: "qwen3",
        gguf: Some("qwen3"),
        hf: "Qwen3ForCausalLM",
        gguf_pairing: RopePairing::Halves,
        gguf_names: &names::GGUF_HEAD_NORMS,
        hf_names: &names::HF_HEAD_NORMS,
        ..LLAMA
    },
    Family {
        name: "phi3",
        gguf: Some("phi3"),
        hf: "Phi3ForCausalLM",
        gguf_pairing: RopePairing::Halves,
        gguf_names: &names::GGUF_PHI3,
        hf_names: &names::HF_PHI3,
        ..LLAMA
    },
    GEMMA2,
    Family {
        name: "gemma3",
        gguf: Some("gemma3"),
        hf: "Gemma3ForCausalLM",
        pattern: Some(6),
        local_base: Some(10_000.0),
        softcaps: None,
        wide_scale: Some(62),
        hf_defaults: &[
            ("hidden_size", 2304.0),
            ("intermediate_size", 9216.0),
            ("num_hidden_layers", 26.0),
            ("num_attention_heads", 8.0),
            ("num_key_value_heads", 4.0),
            ("head_dim", 256.0),
            ("query_pre_attn_scalar", 256.0),
            ("vocab_size", 262_208.0),
            ("max_position_embeddings", 131_072.0),
            ("rms_norm_eps", 1e-6),
            ("sliding_window", 4096.0),
            ("rope_theta", 1e6),
        ],
        gguf_names: &names::GGUF_ALL_NORMS,
        hf_names: &names::HF_ALL_NORMS,
        ..GEMMA2
    },
    Family {
        name: "olmo2",
        gguf: Some("olmo2"),
        hf: "Olmo2ForCausalLM",
        gguf_pairing: RopePairing::Halves,
        joint_norms: true,
        gguf_names: &names::GGUF_OLMO2,
        hf_names: &names::HF_OLMO2,
        ..LLAMA
    },
    Family {
        name: "gpt_bigcode",
        gguf: Some("starcoder"),
        hf: "GPTBigCodeForCausalLM",
        kv_heads: Some(1),
        gguf_names: &names::GGUF_BIGCODE,
        hf_names: &names::HF_BIGCODE,
        hf_keys: &[
            ("n_layer", "num_hidden_layers"),
            ("n_embd", "hidden_size"),
            ("n_head", "num_attention_heads"),
            ("n_inner", "intermediate_size"),
            ("n_positions", "max_position_embeddings"),
            ("activation_function", "hidden_act"),
            ("layer_norm_epsilon", "rms_norm_eps"),
        ],
        ..STARCODER2
    },
    STARCODER2,
];

const GEMMA2: Family = Family {
    name: "gemma2",
    gguf: Some("gemma2"),
    hf: "Gemma2ForCausalLM",
    gguf_pairing: RopePairing::Halves,
    activation: Activation::GeluTanh,
    pattern: Some(2),
    gemma: true,
    softcaps: Some([50.0, 30.0]),
    wide_scale: Some(46),
    gguf_names: &names::GGUF_POST_NORMS,
    hf_names: &names::HF_POST_NORMS,
    hf_keys: &[("hidden_activation", "hidden_act")],
    ..LLAMA
};

const STARCODER2: Family = Family {
    name: "starcoder2",
    gguf: Some("starcoder2"),
    hf: "Starcoder2ForCausalLM",
    gguf_pairing: RopePairing::Halves,
    norm: NormKind::Layer,
    activation: Activation::GeluTanh,
    qkv_bias: Bias::Always,
    bias: Bias::Always,
    gguf_names: &names::GGUF_PLAIN,
    hf_names: &names::HF_STARCODER2,
    hf_keys: &[("norm_epsilon", "rms_norm_eps")],
    ..LLAMA
};

/// The family of a GGUF architecture.
pub(super) fn of_gguf(architecture: &str, file: &Path) -> Result<&'static Family, Error> {
    FAMILIES.iter().find(|family| family.gguf == Some(architecture)).ok_or_else(|| {
        let supported: Vec<_> = FAMILIES.iter().filter_map(|family| family.gguf).collect();
        unsupported(file, "key general.architecture", architecture, &supported)
    })
}

/// The family of config.json's `architectures`.
pub(super) fn of_hf(architecture: &str, file: &Path) -> Result<&'static Family, Error> {
    FAMILIES.iter().find(|family| family.hf == architecture).ok_or_else(|| {
        let supported: Vec<_> = FAMILIES.iter().map(|family| family.hf).collect();
        unsupported(file, "key architectures", architecture, &supported)
    })
}

fn unsupported(file: &Path, place: &str, found: &str, supported: &[&str]) -> Error {
    Error::unsupported(file, place, format!("{found} is not supported; supported: {}", supported.join(", ")))
}
