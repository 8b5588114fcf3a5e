//! The model card.

use std::time::UNIX_EPOCH;

use volley_kernels::DType;
use volley_proto::v1::ModelCard;

use crate::{
    config::{Config, Pooling},
    model::Model,
};

/// Says what a loaded model is; `numerics` is the backend's name for what decides its bits, if that can be named.
pub(crate) fn card(
    config: &Config,
    model: &Model,
    weights_hash: String,
    numerics: Option<String>,
) -> ModelCard {
    let Model { description, text, files, .. } = model;
    let weight_format = name(model.weight_format());
    // Two configurations over the same weights are two models, so the description counts too.
    let shape = blake3::hash(format!("{description:?}").as_bytes()).to_hex();
    let modified = files.first().and_then(|file| file.metadata().ok()?.modified().ok());
    ModelCard {
        name: config.name.clone(),
        hash: text.hash(),
        numerics_class: numerics.map_or_else(String::new, |numerics| {
            let made = model.weights.conversion().map_or_else(String::new, |to| format!("-made{}", name(to)));
            let shape = &shape[..16];
            format!("{weights_hash}-{shape}-{weight_format}{made}-{numerics}-tp{}", config.tensor_parallel)
        }),
        weights_hash,
        architecture: description.architecture.clone(),
        weight_format: weight_format.to_owned(),
        context_length: description.context as u32,
        vocab_size: description.vocab as u32,
        stop_tokens: text.stop.clone(),
        bos_token: text.bos,
        has_chat_template: text.has_chat_template(),
        pooling: match config.pooling {
            None => String::new(),
            Some(Pooling::Mean) => "mean".to_owned(),
            Some(Pooling::Last) => "last".to_owned(),
        },
        embedding_width: config.pooling.map_or(0, |_| description.width as u32),
        created: modified
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |age| age.as_secs()),
    }
}

fn name(format: DType) -> &'static str {
    match format {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::Q4_0 => "Q4_0",
        DType::Q4_1 => "Q4_1",
        DType::Q5_0 => "Q5_0",
        DType::Q5_1 => "Q5_1",
        DType::Q8_0 => "Q8_0",
        DType::Q4K => "Q4_K",
        DType::Q5K => "Q5_K",
        DType::Q6K => "Q6_K",
        DType::Int8 => "INT8",
        DType::Int4 => "INT4",
        DType::E4m3 => "FP8",
    }
}
