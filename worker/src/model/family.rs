//! The model families: what their files are called and where they differ.

use std::path::Path;

use volley_kernels::RopePairing;

use super::{Bias, Names};
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
    /// Query, key and value biases.
    pub(super) qkv_bias: Bias,
}

/// Llama 2 and 3, SmolLM2; Mistral; Qwen 2 and 2.5.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "llama",
        gguf: Some("llama"),
        hf: "LlamaForCausalLM",
        gguf_pairing: RopePairing::Adjacent,
        qkv_bias: Bias::IfPresent,
    },
    Family {
        name: "mistral",
        gguf: None,
        hf: "MistralForCausalLM",
        gguf_pairing: RopePairing::Adjacent,
        qkv_bias: Bias::Never,
    },
    Family {
        name: "qwen2",
        gguf: Some("qwen2"),
        hf: "Qwen2ForCausalLM",
        gguf_pairing: RopePairing::Halves,
        qkv_bias: Bias::Always,
    },
];

pub(super) const GGUF_NAMES: Names = Names {
    embedding: "token_embd.weight",
    attention_norm: "blk.{}.attn_norm.weight",
    query: "blk.{}.attn_q.weight",
    key: "blk.{}.attn_k.weight",
    value: "blk.{}.attn_v.weight",
    attention_output: "blk.{}.attn_output.weight",
    mlp_norm: "blk.{}.ffn_norm.weight",
    gate: "blk.{}.ffn_gate.weight",
    up: "blk.{}.ffn_up.weight",
    down: "blk.{}.ffn_down.weight",
    final_norm: "output_norm.weight",
    output: "output.weight",
};

pub(super) const HF_NAMES: Names = Names {
    embedding: "model.embed_tokens.weight",
    attention_norm: "model.layers.{}.input_layernorm.weight",
    query: "model.layers.{}.self_attn.q_proj.weight",
    key: "model.layers.{}.self_attn.k_proj.weight",
    value: "model.layers.{}.self_attn.v_proj.weight",
    attention_output: "model.layers.{}.self_attn.o_proj.weight",
    mlp_norm: "model.layers.{}.post_attention_layernorm.weight",
    gate: "model.layers.{}.mlp.gate_proj.weight",
    up: "model.layers.{}.mlp.up_proj.weight",
    down: "model.layers.{}.mlp.down_proj.weight",
    final_norm: "model.norm.weight",
    output: "lm_head.weight",
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
