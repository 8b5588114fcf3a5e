//! Tensor names, by format and family.

/// Tensor names of a file; `{}` is the layer. A bias is named as what it belongs to, `bias` for `weight`.
#[derive(Debug, PartialEq)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    /// Where positions are learned, not rotated.
    pub(crate) positions: Option<&'static str>,
    /// Before attention.
    pub(crate) attention_norm: Option<&'static str>,
    pub(crate) qkv: Qkv,
    /// Norms of queries and keys.
    pub(crate) head_norms: Option<[&'static str; 2]>,
    pub(crate) attention_output: &'static str,
    /// After attention, before it is added.
    pub(crate) attention_post_norm: Option<&'static str>,
    /// Before the feed-forward layer.
    pub(crate) mlp_norm: Option<&'static str>,
    pub(crate) mlp: Mlp,
    pub(crate) down: &'static str,
    /// After the feed-forward layer, before it is added.
    pub(crate) mlp_post_norm: Option<&'static str>,
    pub(crate) final_norm: &'static str,
    pub(crate) output: &'static str,
}

/// The projections before attention.
#[derive(Debug, PartialEq)]
pub(crate) enum Qkv {
    /// Queries, keys, values.
    Apart([&'static str; 3]),
    /// The three below each other.
    Stacked(&'static str),
}

/// The projections before a feed-forward layer's activation.
#[derive(Debug, PartialEq)]
pub(crate) enum Mlp {
    /// Gate and up.
    Gated([&'static str; 2]),
    /// The two below each other.
    Stacked(&'static str),
    /// One, without a gate.
    Plain(&'static str),
}

pub(super) const GGUF: Names = Names {
    embedding: "token_embd.weight",
    positions: None,
    attention_norm: Some("blk.{}.attn_norm.weight"),
    qkv: Qkv::Apart(["blk.{}.attn_q.weight", "blk.{}.attn_k.weight", "blk.{}.attn_v.weight"]),
    head_norms: None,
    attention_output: "blk.{}.attn_output.weight",
    attention_post_norm: None,
    mlp_norm: Some("blk.{}.ffn_norm.weight"),
    mlp: Mlp::Gated(["blk.{}.ffn_gate.weight", "blk.{}.ffn_up.weight"]),
    down: "blk.{}.ffn_down.weight",
    mlp_post_norm: None,
    final_norm: "output_norm.weight",
    output: "output.weight",
};

pub(super) const GGUF_HEAD_NORMS: Names =
    Names { head_norms: Some(["blk.{}.attn_q_norm.weight", "blk.{}.attn_k_norm.weight"]), ..GGUF };

/// Gemma 2.
pub(super) const GGUF_POST_NORMS: Names = Names {
    attention_post_norm: Some("blk.{}.post_attention_norm.weight"),
    mlp_post_norm: Some("blk.{}.post_ffw_norm.weight"),
    ..GGUF
};

/// Gemma 3.
pub(super) const GGUF_ALL_NORMS: Names = Names { head_norms: GGUF_HEAD_NORMS.head_norms, ..GGUF_POST_NORMS };

pub(super) const GGUF_OLMO2: Names = Names { attention_norm: None, mlp_norm: None, ..GGUF_ALL_NORMS };

pub(super) const GGUF_PLAIN: Names = Names { mlp: Mlp::Plain("blk.{}.ffn_up.weight"), ..GGUF };

pub(super) const GGUF_BIGCODE: Names = Names {
    positions: Some("position_embd.weight"),
    qkv: Qkv::Stacked("blk.{}.attn_qkv.weight"),
    ..GGUF_PLAIN
};

pub(super) const GGUF_PHI3: Names =
    Names { qkv: Qkv::Stacked("blk.{}.attn_qkv.weight"), mlp: Mlp::Stacked("blk.{}.ffn_up.weight"), ..GGUF };

pub(super) const HF: Names = Names {
    embedding: "model.embed_tokens.weight",
    positions: None,
    attention_norm: Some("model.layers.{}.input_layernorm.weight"),
    qkv: Qkv::Apart([
        "model.layers.{}.self_attn.q_proj.weight",
        "model.layers.{}.self_attn.k_proj.weight",
        "model.layers.{}.self_attn.v_proj.weight",
    ]),
    head_norms: None,
    attention_output: "model.layers.{}.self_attn.o_proj.weight",
    attention_post_norm: None,
    mlp_norm: Some("model.layers.{}.post_attention_layernorm.weight"),
    mlp: Mlp::Gated(["model.layers.{}.mlp.gate_proj.weight", "model.layers.{}.mlp.up_proj.weight"]),
    down: "model.layers.{}.mlp.down_proj.weight",
    mlp_post_norm: None,
    final_norm: "model.norm.weight",
    output: "lm_head.weight",
};

pub(super) const HF_HEAD_NORMS: Names = Names {
    head_norms: Some(["model.layers.{}.self_attn.q_norm.weight", "model.layers.{}.self_attn.k_norm.weight"]),
    ..HF
};

/// Gemma 2.
pub(super) const HF_POST_NORMS: Names = Names {
    attention_post_norm: Some("model.layers.{}.post_attention_layernorm.weight"),
    mlp_norm: Some("model.layers.{}.pre_feedforward_layernorm.weight"),
    mlp_post_norm: Some("model.layers.{}.post_feedforward_layernorm.weight"),
    ..HF
};

/// Gemma 3.
pub(super) const HF_ALL_NORMS: Names = Names { head_norms: HF_HEAD_NORMS.head_norms, ..HF_POST_NORMS };

pub(super) const HF_OLMO2: Names = Names { attention_norm: None, mlp_norm: None, ..HF_ALL_NORMS };

pub(super) const HF_STARCODER2: Names = Names {
    mlp: Mlp::Plain("model.layers.{}.mlp.c_fc.weight"),
    down: "model.layers.{}.mlp.c_proj.weight",
    ..HF
};

pub(super) const HF_PHI3: Names = Names {
    qkv: Qkv::Stacked("model.layers.{}.self_attn.qkv_proj.weight"),
    mlp: Mlp::Stacked("model.layers.{}.mlp.gate_up_proj.weight"),
    ..HF
};

pub(super) const HF_BIGCODE: Names = Names {
    embedding: "transformer.wte.weight",
    positions: Some("transformer.wpe.weight"),
    attention_norm: Some("transformer.h.{}.ln_1.weight"),
    qkv: Qkv::Stacked("transformer.h.{}.attn.c_attn.weight"),
    head_norms: None,
    attention_output: "transformer.h.{}.attn.c_proj.weight",
    attention_post_norm: None,
    mlp_norm: Some("transformer.h.{}.ln_2.weight"),
    mlp: Mlp::Plain("transformer.h.{}.mlp.c_fc.weight"),
    down: "transformer.h.{}.mlp.c_proj.weight",
    mlp_post_norm: None,
    final_norm: "transformer.ln_f.weight",
    output: "lm_head.weight",
};
