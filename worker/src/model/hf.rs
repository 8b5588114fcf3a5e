//! A description from config.json.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use volley_kernels::{Activation, Rope, RopePairing};

use super::{
    Bias, Description, Sizes, cap_to_window,
    family::{self, Family},
    rope::{Scaling, frequencies},
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
    rope_theta: Option<f64>,
    /// Of a head's dimensions, so many turn.
    partial_rotary_factor: Option<f64>,
    /// Up to transformers 4.
    rope_scaling: Option<RopeParameters>,
    /// From transformers 5: base and scaling together.
    rope_parameters: Option<RopeParameters>,
}

#[derive(Clone, Default, Deserialize)]
struct RopeParameters {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// Which layers see no further back than a window.
enum Windows {
    None,
    Some(u64),
    All(u64),
}

/// Describes the model in a directory.
pub(super) fn describe(directory: &Directory) -> Result<Description, Error> {
    let file = directory.path.join("config.json");
    let architecture = directory.config["architectures"][0].as_str();
    let architecture = architecture
        .ok_or_else(|| Error::malformed(&file, "key architectures", "expected a list with one name"))?;
    let family = family::of_hf(architecture, &file)?;
    let config: Config = serde_json::from_value(renamed(directory.config.clone(), family))
        .map_err(|e| Error::malformed(&file, "configuration", e.to_string()))?;
    config.check(&file)?;
    let activation = match config.hidden_act.as_deref() {
        None => family.activation,
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Activation::GeluTanh,
        Some("gelu") => Activation::GeluErf,
        Some(other) => {
            let problem = format!("{other}; supported: silu, gelu, gelu_pytorch_tanh");
            return Err(Error::unsupported(&file, "key hidden_act", problem));
        }
    };
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
    let (window, context) = match config.windows() {
        Windows::None => (None, sizes.context),
        Windows::All(window) => (Some(window), sizes.context),
        Windows::Some(window) => (None, cap_to_window(sizes.context, Some(window))),
    };
    let bias = |usual: Bias| match usual {
        Bias::Always if config.use_bias != Some(false) => Bias::Always,
        _ if config.attention_bias => Bias::Always,
        _ => Bias::Never,
    };
    let learned = family.hf_names.positions.is_some();
    let frequencies = if learned { vec![] } else { config.rope(file, sizes.head_dim)? };
    Ok(Description {
        architecture: family.name.to_owned(),
        layers: sizes.layers as usize,
        width: sizes.width as usize,
        hidden: sizes.hidden as usize,
        heads: sizes.heads(window),
        vocab: sizes.vocab as usize,
        context: context as usize,
        positions: learned.then_some(sizes.context as usize),
        norm: family.norm,
        epsilon: config.rms_norm_eps,
        rope: Rope { frequencies, pairing: RopePairing::Halves },
        activation,
        qkv_bias: bias(family.qkv_bias),
        output_bias: bias(family.bias),
        mlp_bias: if family.bias == Bias::Always { bias(family.bias) } else { Bias::Never },
        tied: config.tie_word_embeddings || !directory.weights.contains(family.hf_names.output),
        names: family.hf_names,
    })
}

/// The configuration under the names that most families use.
fn renamed(mut config: Value, family: &Family) -> Value {
    if let Some(config) = config.as_object_mut() {
        for (theirs, ours) in family.hf_keys {
            if let Some(value) = config.remove(*theirs) {
                config.insert((*ours).to_owned(), value);
            }
        }
    }
    config
}

// === impl Config ===

impl Config {
    fn windows(&self) -> Windows {
        let Some(window) =
            self.sliding_window.filter(|window| *window > 0 && self.use_sliding_window != Some(false))
        else {
            return Windows::None;
        };
        let (without, layers) = match &self.layer_types {
            Some(types) => {
                (types.iter().filter(|kind| *kind == "full_attention").count() as u64, types.len() as u64)
            }
            None => (self.max_window_layers.unwrap_or(0), self.num_hidden_layers),
        };
        match without {
            0 => Windows::All(window),
            without if without >= layers => Windows::None,
            _ => Windows::Some(window),
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
        if self.multi_query == Some(false) {
            return unsupported("multi_query", true);
        }
        if self.scale_attn_weights == Some(false) {
            return unsupported("scale_attn_weights", true);
        }
        Ok(())
    }

    fn rope(&self, file: PathBuf, head_dim: u64) -> Result<Vec<f32>, Error> {
        let parameters =
            self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).cloned().unwrap_or_default();
        let base = parameters.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let need = |value: Option<f64>, key: &str| {
            value.filter(|value| value.is_finite() && *value > 0.0).ok_or_else(|| {
                Error::malformed(&file, format!("rope scaling: {key}"), "expected a number above 0")
            })
        };
        let scaling = match parameters.rope_type.as_deref() {
            None | Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear { factor: need(parameters.factor, "factor")? },
            Some("llama3") => Scaling::Llama3 {
                factor: need(parameters.factor, "factor")?,
                low: need(parameters.low_freq_factor, "low_freq_factor")?,
                high: need(parameters.high_freq_factor, "high_freq_factor")?,
                original_context: need(
                    parameters.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            },
            Some(other) => {
                let problem = format!("{other}; supported: default, linear, llama3");
                return Err(Error::unsupported(&file, "rope scaling", problem));
            }
        };
        let base = need(Some(base), "rope_theta")?;
        let part = parameters.partial_rotary_factor.or(self.partial_rotary_factor).unwrap_or(1.0);
        let dims = (head_dim as f64 * part) as u64;
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            let problem = format!("{part}; expected an even number of the {head_dim} dimensions of a head");
            return Err(Error::malformed(&file, "key partial_rotary_factor", problem));
        }
        Ok(frequencies(dims as usize, base, scaling))
    }
}
