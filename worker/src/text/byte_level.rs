//! tokenizer.json for byte-level BPE (`tokenizer.ggml.model` = gpt2).

use serde_json::{Value, json};

use super::gguf::Vocabulary;
use crate::{Error, format::gguf::Gguf};

const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";

/// Llama 3's split: contractions, words with what stands before them, up to three digits, punctuation, space.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: the same with single digits.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging, by the name that GGUF files give it.
struct Pre {
    names: &'static [&'static str],
    /// Composes characters first (Unicode NFC).
    nfc: bool,
    /// Before the byte level's own cut, which is GPT-2's unless a regex replaces it.
    cut: Cut,
    /// Whether a whole piece that is a token is taken as it is.
    ignore_merges: bool,
    /// Whether a prompt starts with BOS where the file doesn't say.
    adds_bos: bool,
}

enum Cut {
    Gpt2,
    DigitsThenGpt2,
    Regex(&'static str),
}

const PRES: &[Pre] = &[
    Pre { names: &["gpt-2", "default"], nfc: false, cut: Cut::Gpt2, ignore_merges: false, adds_bos: false },
    Pre {
        names: &["smollm", "starcoder", "refact"],
        nfc: false,
        cut: Cut::DigitsThenGpt2,
        ignore_merges: false,
        adds_bos: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        nfc: false,
        cut: Cut::Regex(LLAMA3_SPLIT),
        ignore_merges: true,
        adds_bos: true,
    },
    Pre {
        names: &["dbrx"], // Phi 4
        nfc: false,
        cut: Cut::Regex(LLAMA3_SPLIT),
        ignore_merges: false,
        adds_bos: false,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen"],
        nfc: true,
        cut: Cut::Regex(QWEN2_SPLIT),
        ignore_merges: false,
        adds_bos: false,
    },
];

/// Builds it; also whether prompts start with BOS where the file doesn't say.
pub(super) fn build(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<(Value, bool), Error> {
    let name = gguf.str(PRE)?.unwrap_or("default");
    let pre = PRES.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let supported: Vec<_> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
        let problem =
            format!("the pre-tokenizer {name} is not supported; supported: {}", supported.join(", "));
        Error::unsupported(&gguf.file, format!("key {PRE}"), problem)
    })?;
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": pre.nfc.then(|| json!({ "type": "NFC" })),
        "pre_tokenizer": pre.to_json(),
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "unk_token": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary.to_json(),
            "merges": merges(gguf, vocabulary)?,
        },
    });
    Ok((tokenizer, pre.adds_bos))
}

/// The merges as pairs; each side and the result must be tokens.
fn merges(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let merges = gguf.strings(MERGES)?.ok_or_else(|| gguf.missing(MERGES))?;
    let known = |text: &str| vocabulary.ids.contains_key(text);
    let pair = |merge: &&str| {
        let (left, right) = merge.split_once(' ')?;
        let whole = [left, right].concat();
        (known(left) && known(right) && known(&whole)).then(|| json!([left, right]))
    };
    let pairs = merges.iter().map(|merge| {
        pair(merge).ok_or_else(|| {
            let problem = format!("{merge:?}; expected two tokens that make a third");
            Error::malformed(&gguf.file, format!("key {MERGES}"), problem)
        })
    });
    pairs.collect::<Result<Vec<_>, _>>().map(Value::from)
}

// === impl Pre ===

impl Pre {
    fn to_json(&self) -> Value {
        let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let sequence =
            |first: Value, second: Value| json!({ "type": "Sequence", "pretokenizers": [first, second] });
        match self.cut {
            Cut::Gpt2 => byte_level(true),
            Cut::DigitsThenGpt2 => {
                sequence(json!({ "type": "Digits", "individual_digits": true }), byte_level(true))
            }
            Cut::Regex(regex) => {
                let split = json!({
                    "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false,
                });
                sequence(split, byte_level(false))
            }
        }
    }
}
