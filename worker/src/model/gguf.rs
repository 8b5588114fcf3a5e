//! A description from GGUF metadata.

use volley_kernels::{DType, Rope};

use super::{
    Bias, Description, NormKind, Sizes, family,
    rope::{Scaling, frequencies},
};
use crate::{Error, format::gguf::Gguf};

/// Divisors of the rotation frequencies, one per pair, in files of Llama 3.1 and later.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The same where they depend on a text's length (longrope).
const LONGROPE_FACTORS: &str = "rope_factors_short.weight";

/// Describes the model in a file.
pub(super) fn describe(gguf: &Gguf) -> Result<Description, Error> {
    let architecture =
        gguf.str("general.architecture")?.ok_or_else(|| gguf.missing("general.architecture"))?;
    let family = family::of_gguf(architecture, &gguf.file)?;
    let key = |name: &str| format!("{architecture}.{name}");
    let need = |name: &str| gguf.u64(&key(name))?.ok_or_else(|| gguf.missing(&key(name)));

    let (width, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = match gguf.u64(&key("attention.key_length"))? {
        Some(dim) => dim,
        None => width / heads.max(1),
    };
    let vocab = gguf.strings("tokenizer.ggml.tokens")?.map(|tokens| tokens.len() as u64);
    let sizes = Sizes {
        layers: need("block_count")?,
        width,
        hidden: need("feed_forward_length")?,
        heads,
        kv_heads: gguf.u64(&key("attention.head_count_kv"))?.or(family.kv_heads).unwrap_or(heads),
        head_dim,
        vocab: vocab.ok_or_else(|| gguf.missing("tokenizer.ggml.tokens"))?,
        context: need("context_length")?,
    };
    sizes.check(&gguf.file)?;
    if let Some(dim) = gguf.u64(&key("attention.value_length"))?
        && dim != head_dim
    {
        let problem = format!("{dim}; expected the keys' {head_dim}");
        return Err(Error::unsupported(
            &gguf.file,
            format!("key {}", key("attention.value_length")),
            problem,
        ));
    }
    let epsilon = key(match family.norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    });
    let learned = family.gguf_names.positions.is_some();
    let frequencies = if learned { vec![] } else { rope(gguf, architecture, head_dim)? };
    let window = gguf.u64(&key("attention.sliding_window"))?.filter(|window| *window > 0);
    Ok(Description {
        architecture: family.name.to_owned(),
        layers: sizes.layers as usize,
        width: width as usize,
        hidden: sizes.hidden as usize,
        heads: sizes.heads(window),
        vocab: sizes.vocab as usize,
        context: sizes.context as usize,
        positions: learned.then_some(sizes.context as usize),
        norm: family.norm,
        epsilon: gguf.f64(&epsilon)?.ok_or_else(|| gguf.missing(&epsilon))? as f32,
        rope: Rope { frequencies, pairing: family.gguf_pairing },
        activation: family.activation,
        qkv_bias: family.qkv_bias,
        output_bias: family.bias,
        mlp_bias: if family.bias == Bias::Always { Bias::Always } else { Bias::Never },
        tied: !gguf.weights.contains(family.gguf_names.output),
        names: family.gguf_names,
    })
}

fn rope(gguf: &Gguf, architecture: &str, head_dim: u64) -> Result<Vec<f32>, Error> {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let dims = gguf.u64(&key("dimension_count"))?.unwrap_or(head_dim);
    if dims == 0 || dims > head_dim || dims % 2 != 0 {
        let problem = format!("{dims}; expected an even number up to the head dimension {head_dim}");
        return Err(Error::malformed(&gguf.file, format!("key {}", key("dimension_count")), problem));
    }
    let base = gguf.f64(&key("freq_base"))?.unwrap_or(10_000.0);
    let scaling_key = key("scaling.type");
    let scaling = match gguf.str(&scaling_key)? {
        None | Some("none") => Scaling::None,
        Some("linear") => {
            let factor = gguf.f64(&key("scaling.factor"))?.unwrap_or(1.0);
            Scaling::Linear { factor }
        }
        Some(other) => {
            let problem = format!("{other}; supported: none, linear, and {ROPE_FACTORS}");
            return Err(Error::unsupported(&gguf.file, format!("key {scaling_key}"), problem));
        }
    };
    if gguf.weights.contains(LONGROPE_FACTORS) {
        let problem = format!("longrope is not supported; supported: none, linear, and {ROPE_FACTORS}");
        return Err(Error::unsupported(&gguf.file, format!("tensor {LONGROPE_FACTORS}"), problem));
    }
    let mut rope = frequencies(dims as usize, base, scaling);
    if let Some(factors) = gguf.weights.find(ROPE_FACTORS, 1, rope.len())? {
        if factors.dtype != DType::F32 {
            let problem = format!("stored as {:?}; expected F32", factors.dtype);
            return Err(Error::unsupported(&gguf.file, format!("tensor {ROPE_FACTORS}"), problem));
        }
        for (frequency, factor) in rope.iter_mut().zip(factors.data.chunks_exact(4)) {
            *frequency /= f32::from_le_bytes([factor[0], factor[1], factor[2], factor[3]]);
        }
    }
    if rope.iter().any(|frequency| !frequency.is_finite()) {
        return Err(Error::malformed(
            &gguf.file,
            "rope",
            "base, factor or rope_freqs give no finite frequencies",
        ));
    }
    Ok(rope)
}
