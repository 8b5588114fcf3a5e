//! A description from config.json.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use volley_kernels::{Activation, Rope, RopePairing};

use super::{
    Bias, Description, Sizes, Windows,
    family::{self, Family, MULTIMODAL},
    hf_rope::{RopeParameters, Usual},
};
use crate::{Error, format::directory::Directory};

/// What config.json says, of what matters here.
#[derive(Deserialize)]
struct Config {
    num_hidden_layers: u64,
    hidden_size: u64,
    /// GPT's may be null.
    intermediate_size: Option<u64>,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    max_position_embeddings: u64,
    /// Phi's, before it was stretched.
    original_max_position_embeddings: Option<f64>,
    rms_norm_eps: f32,
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    /// StarCoder 2's word for biases everywhere.
    use_bias: Option<bool>,
    /// GPT-BigCode's for one key/value head.
    multi_query: Option<bool>,
    scale_attn_weights: Option<bool>,
    sliding_window: Option<u64>,
    /// Qwen carries a window that it does not use.
    use_sliding_window: Option<bool>,
    /// Qwen's first layers have none.
    max_window_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    /// Gemma's: one layer of so many sees everything.
    sliding_window_pattern: Option<u64>,
    use_bidirectional_attention: Option<bool>,
    /// Scores are divided by its root; else by that of a head's dimensions.
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    rope_theta: Option<f64>,
    /// Of layers with a window.
    rope_local_base_freq: Option<f64>,
    /// Of a head's dimensions, so many turn.
    partial_rotary_factor: Option<f64>,
    /// Up to transformers 4.
    rope_scaling: Option<RopeParameters>,
    /// From transformers 5: base and scaling together.
    rope_parameters: Option<RopeParameters>,
}

/// Describes the model in a directory.
pub(super) fn describe(directory: &Directory) -> Result<Description, Error> {
    let file = directory.path.join("config.json");
    let architecture = directory.config["architectures"][0].as_str();
    let architecture = architecture
        .ok_or_else(|| Error::malformed(&file, "key architectures", "expected a list with one name"))?;
    let family = family::of_hf(architecture, &file)?;
    let config: Config = serde_json::from_value(renamed(directory.config.clone(), family))
        .map_err(|e| Error::malformed(&file, "configuration", crate::error::plainly(&e)))?;
    config.check(&file)?;
    let heads = config.num_attention_heads;
    let sizes = Sizes {
        layers: config.num_hidden_layers,
        width: config.hidden_size,
        hidden: config.intermediate_size.unwrap_or(config.hidden_size.saturating_mul(4)),
        heads,
        kv_heads: config.num_key_value_heads.or(family.kv_heads).unwrap_or(heads),
        head_dim: config.head_dim.unwrap_or(config.hidden_size / config.num_attention_heads.max(1)),
        vocab: config.vocab_size,
        context: config.max_position_embeddings,
    };
    sizes.check(&file)?;
    let windows = config.windows(family, &file)?;
    let bias = |usual: Bias| match usual {
        Bias::Always if config.use_bias != Some(false) => Bias::Always,
        _ if config.attention_bias => Bias::Always,
        _ => Bias::Never,
    };
    let learned = family.hf_names.positions.is_some();
    let rope = |local: bool| {
        let (parameters, usual) = config.rope(family, &file, sizes.head_dim, local);
        match learned {
            true => Ok(Rope { frequencies: vec![], pairing: RopePairing::Halves, magnitude: 1.0 }),
            false => parameters.rope(&usual),
        }
    };
    let (parameters, usual) = config.rope(family, &file, sizes.head_dim, false);
    let sizes = Sizes { context: parameters.context(&usual)?, ..sizes };
    sizes.check(&file)?;
    let mut heads = sizes.heads(&windows);
    heads.softcap = positive(config.attn_logit_softcapping, "attn_logit_softcapping", &file)?;
    if let Some(scalar) = positive(config.query_pre_attn_scalar, "query_pre_attn_scalar", &file)? {
        heads.scale = scalar.powf(-0.5);
    }
    Ok(Description {
        architecture: family.name.to_owned(),
        layers: sizes.layers as usize,
        width: sizes.width as usize,
        hidden: sizes.hidden as usize,
        heads,
        local: sizes.local(&windows, || rope(true))?,
        vocab: sizes.vocab as usize,
        context: sizes.context as usize,
        positions: learned.then_some(sizes.context as usize),
        norm: family.norm,
        epsilon: config.rms_norm_eps,
        gain_offset: if family.gemma { 1.0 } else { 0.0 },
        joint_norms: family.joint_norms,
        embedding_scale: if family.gemma { (sizes.width as f32).sqrt() } else { 1.0 },
        softcap: positive(config.final_logit_softcapping, "final_logit_softcapping", &file)?,
        rope: rope(false)?,
        activation: config.activation(family, &file)?,
        qkv_bias: bias(family.qkv_bias),
        output_bias: bias(family.bias),
        mlp_bias: if family.bias == Bias::Always { bias(family.bias) } else { Bias::Never },
        tied: config.tie_word_embeddings || !directory.weights.contains(family.hf_names.output),
        names: family.hf_names,
    })
}

/// A number above 0, if there is one.
fn positive(value: Option<f64>, key: &str, file: &Path) -> Result<Option<f32>, Error> {
    match value.map(|value| value as f32) {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            Err(Error::malformed(file, format!("key {key}"), format!("{value}; expected a number above 0")))
        }
        value => Ok(value),
    }
}

/// Leaves of a model that reads more than text what reads text.
pub(super) fn only_text(directory: &mut Directory) {
    let architecture = directory.config["architectures"][0].as_str();
    let Some(model) = MULTIMODAL.iter().find(|model| architecture == Some(model.hf)) else { return };
    directory.config = directory.config["text_config"].take();
    if let Some(config) = directory.config.as_object_mut() {
        config.insert("architectures".to_owned(), json!([model.text]));
    }
    directory.weights.keep(model.prefix);
}

/// The configuration under the names that most families use.
fn renamed(mut config: Value, family: &Family) -> Value {
    if let Some(config) = config.as_object_mut() {
        for (theirs, ours) in family.hf_keys {
            if let Some(value) = config.remove(*theirs) {
                config.insert((*ours).to_owned(), value);
            }
        }
        for (key, number) in family.hf_defaults {
            let whole = number.fract() == 0.0;
            let number = if whole { json!(*number as u64) } else { json!(number) };
            config.entry(*key).or_insert(number);
        }
    }
    config
}

// === impl Config ===

impl Config {
    fn activation(&self, family: &Family, file: &Path) -> Result<Activation, Error> {
        match self.hidden_act.as_deref() {
            None => Ok(family.activation),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("gelu") => Ok(Activation::GeluErf),
            Some(other) => {
                let problem = format!("{other}; supported: silu, gelu, gelu_pytorch_tanh");
                Err(Error::unsupported(file, "key hidden_act", problem))
            }
        }
    }

    /// The window, and the layers that have it.
    fn windows(&self, family: &Family, file: &Path) -> Result<Windows, Error> {
        let window = self.sliding_window.filter(|_| self.use_sliding_window != Some(false));
        let layers = self.num_hidden_layers;
        let Some(types) = &self.layer_types else {
            let pattern = match self.sliding_window_pattern.or(family.pattern) {
                Some(0) => {
                    return Err(Error::malformed(
                        file,
                        "key sliding_window_pattern",
                        "0; expected 1 or more",
                    ));
                }
                pattern => pattern,
            };
            let mut windows = Windows::every(window, layers, pattern);
            let without = self.max_window_layers.unwrap_or(0).min(layers) as usize;
            windows.layers[..without].fill(false);
            return Ok(windows);
        };
        let local = |kind: &String| match kind.as_str() {
            "sliding_attention" => Some(true),
            "full_attention" => Some(false),
            _ => None,
        };
        match types.iter().map(local).collect::<Option<Vec<_>>>() {
            Some(local) if local.len() as u64 == layers => Ok(Windows { window, layers: local }),
            Some(_) => {
                let problem = format!("{} entries for {layers} layers", types.len());
                Err(Error::malformed(file, "key layer_types", problem))
            }
            None => {
                let problem = "expected sliding_attention and full_attention only";
                Err(Error::unsupported(file, "key layer_types", problem))
            }
        }
    }

    /// Refuses what the decoder doesn't compute.
    fn check(&self, file: &Path) -> Result<(), Error> {
        let unsupported = |key: &str, only: bool| {
            let problem = format!("{}; only {only} is supported", !only);
            Err(Error::unsupported(file, format!("key {key}"), problem))
        };
        if self.mlp_bias {
            return unsupported("mlp_bias", false);
        }
        if self.use_bidirectional_attention == Some(true) {
            return unsupported("use_bidirectional_attention", false);
        }
        if self.multi_query == Some(false) {
            return unsupported("multi_query", true);
        }
        if self.scale_attn_weights == Some(false) {
            return unsupported("scale_attn_weights", true);
        }
        Ok(())
    }

    /// What the rotation follows from: of the layers that have a window where others have none, or of the others.
    fn rope<'a>(
        &self,
        family: &Family,
        file: &'a Path,
        head_dim: u64,
        local: bool,
    ) -> (RopeParameters, Usual<'a>) {
        let mut parameters =
            self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).cloned().unwrap_or_default();
        let of_kind = if local { &mut parameters.sliding_attention } else { &mut parameters.full_attention };
        let mut base = self.rope_theta;
        if let Some(of_kind) = of_kind.take() {
            parameters = *of_kind;
        } else if let (Some(usual), true) = (family.local_base, local) {
            (parameters, base) = (RopeParameters::default(), self.rope_local_base_freq.or(Some(usual)));
        }
        let usual = Usual {
            base: base.unwrap_or(10_000.0),
            part: self.partial_rotary_factor.unwrap_or(1.0),
            head_dim,
            context: self.max_position_embeddings,
            original_context: self.original_max_position_embeddings,
            file,
        };
        (parameters, usual)
    }
}
