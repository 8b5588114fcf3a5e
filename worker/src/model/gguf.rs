//! A description from GGUF metadata.

use volley_kernels::Rope;

use super::{
    Bias, Description, NormKind, Sizes, Windows,
    family::{self, Family},
    gguf_rope::Rotations,
};
use crate::{Error, format::gguf::Gguf};

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
    let rotations = Rotations { gguf, family, architecture, head_dim, context: sizes.context };
    let rope = |local: bool| match learned {
        true => Ok(Rope { frequencies: vec![], pairing: family.gguf_pairing, magnitude: 1.0 }),
        false => rotations.rope(local),
    };
    let sizes = Sizes { context: rotations.context()?, ..sizes };
    sizes.check(&gguf.file)?;
    let windows = windows(gguf, family, architecture, sizes.layers)?;
    let [attention_cap, softcap] = softcaps(gguf, family, architecture)?;
    let mut heads = sizes.heads(&windows);
    heads.softcap = attention_cap;
    if let Some(scale) = above_zero(gguf, &key("attention.scale"))? {
        heads.scale = scale;
    } else if family.wide_scale == Some(sizes.layers) {
        heads.scale = (sizes.width as f32 / sizes.heads as f32).powf(-0.5);
    }
    Ok(Description {
        architecture: family.name.to_owned(),
        layers: sizes.layers as usize,
        width: width as usize,
        hidden: sizes.hidden as usize,
        heads,
        local: sizes.local(&windows, || rope(true))?,
        vocab: sizes.vocab as usize,
        context: sizes.context as usize,
        positions: learned.then_some(sizes.context as usize),
        norm: family.norm,
        epsilon: gguf.f64(&epsilon)?.ok_or_else(|| gguf.missing(&epsilon))? as f32,
        gain_offset: 0.0,
        joint_norms: family.joint_norms,
        embedding_scale: if family.gemma { (width as f32).sqrt() } else { 1.0 },
        softcap,
        rope: rope(false)?,
        activation: family.activation,
        qkv_bias: family.qkv_bias,
        output_bias: family.bias,
        mlp_bias: if family.bias == Bias::Always { Bias::Always } else { Bias::Never },
        tied: !gguf.weights.contains(family.gguf_names.output),
        names: family.gguf_names,
    })
}

/// A number above 0, if the key is there.
fn above_zero(gguf: &Gguf, key: &str) -> Result<Option<f32>, Error> {
    match gguf.f64(key)?.map(|number| number as f32) {
        Some(number) if !(number.is_finite() && number > 0.0) => {
            let problem = format!("{number}; expected a number above 0");
            Err(Error::malformed(&gguf.file, format!("key {key}"), problem))
        }
        number => Ok(number),
    }
}

/// The window, and the layers that have it.
fn windows(gguf: &Gguf, family: &Family, architecture: &str, layers: u64) -> Result<Windows, Error> {
    let key = |name: &str| format!("{architecture}.attention.{name}");
    let window = gguf.u64(&key("sliding_window"))?;
    let pattern = key("sliding_window_pattern");
    if family.joint_norms && window.is_some() {
        let problem = "OLMo 3 is not supported";
        return Err(Error::unsupported(&gguf.file, format!("key {}", key("sliding_window")), problem));
    }
    match gguf.u64(&pattern)?.or(family.pattern) {
        Some(0) => Err(Error::malformed(&gguf.file, format!("key {pattern}"), "0; expected 1 or more")),
        every => Ok(Windows::every(window, layers, every)),
    }
}

/// Of attention's scores and of logits.
fn softcaps(gguf: &Gguf, family: &Family, architecture: &str) -> Result<[Option<f32>; 2], Error> {
    let cap = |name: &str, usual: Option<f64>| {
        let cap = above_zero(gguf, &format!("{architecture}.{name}"))?;
        Ok::<_, Error>(cap.or(usual.map(|cap| cap as f32)))
    };
    let [scores, logits] = family.softcaps.map_or([None, None], |caps| caps.map(Some));
    Ok([cap("attn_logit_softcapping", scores)?, cap("final_logit_softcapping", logits)?])
}
