//! A description from config.json.

use std::path::PathBuf;

use serde::Deserialize;
use volley_kernels::{Activation, Rope, RopePairing};

use super::{
    Bias, Description, Sizes, cap_to_window,
    family::{self, HF_NAMES},
    rope::{Scaling, frequencies},
};
use crate::{Error, format::directory::Directory};

/// What config.json says, of what matters here.
#[derive(Deserialize)]
struct Config {
    num_hidden_layers: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    max_position_embeddings: u64,
    rms_norm_eps: f32,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<u64>,
    /// Qwen carries a window that it does not use.
    use_sliding_window: Option<bool>,
    rope_theta: Option<f64>,
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
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

fn silu() -> String {
    "silu".to_owned()
}

/// Describes the model in a directory.
pub(super) fn describe(directory: &Directory) -> Result<Description, Error> {
    let file = directory.path.join("config.json");
    let architecture = directory.config["architectures"][0].as_str();
    let architecture = architecture
        .ok_or_else(|| Error::malformed(&file, "key architectures", "expected a list with one name"))?;
    let family = family::of_hf(architecture, &file)?;
    let config: Config = serde_json::from_value(directory.config.clone())
        .map_err(|e| Error::malformed(&file, "configuration", e.to_string()))?;
    if config.mlp_bias {
        return Err(Error::unsupported(&file, "key mlp_bias", "true; only false is supported"));
    }
    let activation = match config.hidden_act.as_str() {
        "silu" | "swish" => Activation::Silu,
        "gelu_pytorch_tanh" => Activation::GeluTanh,
        other => {
            let problem = format!("{other}; supported: silu, gelu_pytorch_tanh");
            return Err(Error::unsupported(&file, "key hidden_act", problem));
        }
    };
    let sizes = Sizes {
        layers: config.num_hidden_layers,
        width: config.hidden_size,
        hidden: config.intermediate_size,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads),
        head_dim: config.head_dim.unwrap_or(config.hidden_size / config.num_attention_heads.max(1)),
        vocab: config.vocab_size,
        context: config.max_position_embeddings,
    };
    sizes.check(&file)?;
    let window = config.sliding_window.filter(|_| config.use_sliding_window != Some(false));
    let bias = if config.attention_bias { Bias::Always } else { Bias::Never };
    Ok(Description {
        architecture: family.name.to_owned(),
        layers: sizes.layers as usize,
        width: sizes.width as usize,
        hidden: sizes.hidden as usize,
        heads: sizes.heads(),
        vocab: sizes.vocab as usize,
        context: cap_to_window(sizes.context as usize, window),
        epsilon: config.rms_norm_eps,
        rope: Rope { frequencies: config.rope(file, sizes.head_dim)?, pairing: RopePairing::Halves },
        activation,
        qkv_bias: if family.qkv_bias == Bias::Always { Bias::Always } else { bias },
        output_bias: bias,
        tied: config.tie_word_embeddings || !directory.weights.contains(HF_NAMES.output),
        names: &HF_NAMES,
    })
}

// === impl Config ===

impl Config {
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
        Ok(frequencies(head_dim as usize, base, scaling))
    }
}
