//! The model that simulated workers serve: what its tokens say, and which one comes next.
//!
//! The next token is a hash of all tokens before it, of the seed, the choice and the sampler's state: the exactness
//! rule and nothing more. So what one sequence gets alone is what it must get in any cluster.

use std::sync::{Arc, LazyLock};

use volley_proto::v1::{Logprobs, ModelCard, Sampling};
use volley_router::engine::Model;

use crate::random::mix;

#[path = "../../../router/src/fixture.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)] // the router's tests use the rest
mod tokenizer;

/// Two bytes of "é" and four of "🚀" are tokens of their own, so characters are cut; some words are long.
const WORDS: [&[u8]; 4] = [b"the", b" end", b"ab", "né".as_bytes()];
/// What a model says, each as likely; the last ends a text.
const SPOKEN: [u32; 24] = [
    97, 98, 99, 100, 101, 32, 10, 46, 0xC3, 0xA9, 0xF0, 0x9F, 0x9A, 0x80, 256, 257, 258, 259, 97, 98, 32, 99,
    46, END,
];
/// Ends a text.
pub const END: u32 = tokenizer::WORDS + WORDS.len() as u32 + 1;
/// The model's context window, tokens.
pub const CONTEXT: usize = 96;

static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| {
    let card = ModelCard {
        vocab_size: END + 1,
        stop_tokens: vec![END],
        context_length: CONTEXT as u32,
        numerics_class: "simulated".into(),
        ..tokenizer::card()
    };
    match Model::new(card, &tokenizer::byte_level(&WORDS), None) {
        Ok(model) => Arc::new(model),
        Err(error) => unreachable!("the fixture is a model: {error}"),
    }
});

/// The model as routers know it.
pub fn model() -> Arc<Model> {
    MODEL.clone()
}

/// A running digest of tokens: of those before, and one more.
pub fn digest(before: u64, token: u32) -> u64 {
    mix(before ^ u64::from(token).rotate_left(40))
}

/// The digest of `tokens`.
pub fn digest_all(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0, |before, &token| digest(before, token))
}

/// The token after those of `digest`. `banned`: not the end.
pub fn draw(digest: u64, seed: u64, choice: u32, mirostat: Option<f32>, banned: bool) -> u32 {
    let state = u64::from(mirostat.map_or(0, f32::to_bits));
    let drawn = mix(mix(digest ^ seed) ^ u64::from(choice) << 32 ^ state);
    let choices = SPOKEN.len() - usize::from(banned);
    SPOKEN[drawn as usize % choices]
}

/// A sampler's state before its first draw here; `moved` is what it was elsewhere.
pub fn first_state(moved: Option<f32>, sampling: &Sampling) -> Option<f32> {
    sampling.mirostat_target.map(|target| moved.unwrap_or(2.0 * target))
}

/// A sampler's state after one more token.
pub fn next_state(state: f32, token: u32) -> f32 {
    (state * 31.0 + token as f32) % 1009.0
}

/// The log-probability of `token` after those of `digest`.
pub fn score(digest: u64, token: u32) -> Logprobs {
    Logprobs { logprob: -((mix(digest ^ u64::from(token)) >> 44) as f32), ..Default::default() }
}
