//! What several test modules need.

use std::path::PathBuf;

use volley_kernels::Backend;

use crate::{
    decoder::{Capacity, Decoder},
    model::Model,
};

/// A tiny model and what transformers computes with it (tests/fixtures/make.py).
pub(crate) struct Fixture {
    pub(crate) model: Model,
    pub(crate) tokens: Vec<u32>,
    /// `[tokens, vocab]`.
    pub(crate) logits: Vec<f32>,
}

/// The folder of a fixture.
pub(crate) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Opens a fixture.
pub(crate) fn fixture(name: &str) -> Fixture {
    let folder = folder(name);
    let expected = crate::format::safetensors::open(&folder, &[folder.join("expected.safetensors")]).unwrap();
    let numbers = |name| {
        let tensor = expected.tensors().find(|tensor| tensor.name == name).unwrap();
        tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let tokens = numbers("tokens").into_iter().map(|token| token as u32).collect();
    Fixture { model: Model::open(&folder).unwrap(), tokens, logits: numbers("logits") }
}

/// Loads a fixture's decoder.
pub(crate) fn decoder<B: Backend>(backend: B, model: &Model, capacity: Capacity) -> Decoder<B> {
    Decoder::load(backend, model.description.clone(), &model.weights, capacity, &mut |_, _| ()).unwrap()
}
