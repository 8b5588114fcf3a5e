//! The text half of a model, for routers: tokenizer.json, chat_template.jinja, config.json and
//! generation_config.json. The worker itself never touches text.
//!
//! ```text
//! gguf.rs        the files, built from GGUF metadata
//! byte_level.rs  ├ tokenizer.json for byte-level BPE
//! sentence.rs    └ tokenizer.json for SentencePiece
//! directory.rs   the files of a Hugging Face directory
//! ```

mod byte_level;
pub(crate) mod directory;
pub(crate) mod gguf;
mod sentence;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

const TOKENIZER: &str = "tokenizer.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// The files that routers fetch, and what the model card says of them.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) files: BTreeMap<&'static str, Bytes>,
    /// Put before a raw prompt.
    pub(crate) bos: Option<u32>,
    /// End of sequence and end of turn; the first is the model's own end of sequence.
    pub(crate) stop: Vec<u32>,
}

/// The tokens that a template names.
struct Specials {
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
}

// === impl Text ===

impl Text {
    /// What a request is pinned to: a hash over names and contents.
    pub(crate) fn hash(&self) -> String {
        volley_proto::files_hash(self.files.iter().map(|(name, content)| (*name, &content[..])))
    }

    /// tokenizer.json.
    pub(crate) fn tokenizer(&self) -> Bytes {
        self.files.get(TOKENIZER).cloned().unwrap_or_default()
    }

    pub(crate) fn has_chat_template(&self) -> bool {
        self.files.contains_key(CHAT_TEMPLATE)
    }
}

// === impl Specials ===

impl Specials {
    /// The config.json that routers get.
    fn config(&self) -> Value {
        json!({ "bos_token_id": self.bos, "eos_token_id": self.eos, "add_bos_token": self.add_bos })
    }

    fn bos_of_prompts(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }
}

/// Appends a token unless it is there already.
fn push_new(tokens: &mut Vec<u32>, token: u32) {
    if !tokens.contains(&token) {
        tokens.push(token);
    }
}

/// Whether a special token's text ends a turn or a text, as model families name it.
fn ends_a_turn(text: &str) -> bool {
    matches!(
        text,
        "<|im_end|>"
            | "<|eot_id|>"
            | "<|eom_id|>"
            | "<|endoftext|>"
            | "<|end_of_text|>"
            | "<|end|>"
            | "</s>"
            | "<end_of_turn>"
    )
}
