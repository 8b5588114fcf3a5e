//! tokenizer.json for SentencePiece (`tokenizer.ggml.model` = llama): BPE with byte fallback.
//!
//! SentencePiece joins the two neighbours whose union has the best score; a merge list says the same when it
//! holds every way to make a token of two others, the best token first.

use serde_json::{Value, json};

use super::gguf::{TokenKind, Vocabulary};
use crate::{Error, format::gguf::Gguf};

const SCORES: &str = "tokenizer.ggml.scores";
/// Stands for a space.
const SPACE: &str = "▁";
/// No SentencePiece vocabulary has a longer token; longer ones get no merges (finding them is quadratic).
const MAX_PIECE: usize = 256;

/// Builds it.
pub(super) fn build(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let scores = gguf.floats(SCORES)?.ok_or_else(|| gguf.missing(SCORES))?;
    if scores.len() != vocabulary.tokens.len() {
        let problem =
            format!("{} entries; expected one for each of {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(Error::malformed(&gguf.file, format!("key {SCORES}"), problem));
    }
    let add_space = gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = vocabulary.kinds.iter().position(|kind| *kind == TokenKind::Unknown);
    let replace =
        |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });

    let mut normalizers = Vec::new();
    let mut decoders =
        vec![replace(SPACE, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if add_space {
        normalizers.push(json!({ "type": "Prepend", "prepend": SPACE }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    normalizers.push(replace(" ", SPACE));
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE",
            "unk_token": unknown.map(|id| vocabulary.tokens[id]),
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.to_json(),
            "merges": merges(vocabulary, &scores),
        },
    }))
}

/// Every way to make a normal token of two others, the best-scored token first.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Value {
    let part = |text: &str| {
        let id = *vocabulary.ids.get(text)?;
        (vocabulary.kinds[id as usize] == TokenKind::Normal).then_some(id)
    };
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if part(token) != Some(id as u32) || token.len() > MAX_PIECE {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if part(left).is_some() && part(right).is_some() {
                merges.push((scores[id], [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, pair)| json!(pair)).collect()
}
