//! The files for routers, built from GGUF metadata.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{CHAT_TEMPLATE, CONFIG, Specials, TOKENIZER, Text, byte_level, ends_a_turn, push_new, sentence};
use crate::{Error, format::gguf::Gguf};

const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// A file's vocabulary.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: Vec<&'a str>,
    pub(super) kinds: Vec<TokenKind>,
    /// The first id of each text.
    pub(super) ids: HashMap<&'a str, u32>,
}

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Builds the files.
pub(crate) fn build(gguf: &Gguf, vocab: usize) -> Result<Text, Error> {
    let vocabulary = Vocabulary::read(gguf)?;
    let model_key = "tokenizer.ggml.model";
    let (tokenizer, adds_bos) = match gguf.str(model_key)?.ok_or_else(|| gguf.missing(model_key))? {
        "gpt2" => byte_level::build(gguf, &vocabulary)?,
        "llama" => (sentence::build(gguf, &vocabulary)?, true),
        other => {
            let problem = format!("{other}; supported: gpt2 (byte-level BPE), llama (SentencePiece)");
            return Err(Error::unsupported(&gguf.file, format!("key {model_key}"), problem));
        }
    };
    let token = |name: &str| -> Result<Option<u32>, Error> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match gguf.u64(&key)? {
            Some(id) if id >= vocab as u64 => {
                let problem = format!("{id}; expected one of the {vocab} tokens");
                Err(Error::malformed(&gguf.file, format!("key {key}"), problem))
            }
            id => Ok(id.map(|id| id as u32)),
        }
    };
    let specials = Specials {
        bos: token("bos")?,
        eos: token("eos")?,
        add_bos: gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos),
    };
    let mut stop: Vec<u32> = specials.eos.into_iter().collect();
    for name in ["eot", "eom"] {
        token(name)?.into_iter().for_each(|id| push_new(&mut stop, id));
    }
    for (id, text) in vocabulary.special() {
        if ends_a_turn(text) {
            push_new(&mut stop, id);
        }
    }
    let mut files =
        BTreeMap::from([(TOKENIZER, to_bytes(&tokenizer)), (CONFIG, to_bytes(&specials.config()))]);
    if let Some(template) = gguf.str(TEMPLATE_KEY)? {
        files.insert(CHAT_TEMPLATE, Bytes::copy_from_slice(template.as_bytes()));
    }
    Ok(Text { files, bos: specials.bos_of_prompts(), stop })
}

fn to_bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

// === impl Vocabulary ===

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self, Error> {
        let key = "tokenizer.ggml.tokens";
        let tokens = gguf.strings(key)?.ok_or_else(|| gguf.missing(key))?;
        let key = "tokenizer.ggml.token_type";
        let kinds = match gguf.integers(key)? {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(codes) if codes.len() == tokens.len() => {
                codes.into_iter().map(TokenKind::from_code).collect()
            }
            Some(codes) => {
                let problem =
                    format!("{} entries; expected one for each of {} tokens", codes.len(), tokens.len());
                return Err(Error::malformed(&gguf.file, format!("key {key}"), problem));
            }
        };
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, text) in (0u32..).zip(&tokens) {
            ids.entry(*text).or_insert(id);
        }
        Ok(Self { tokens, kinds, ids })
    }

    /// The model's `vocab` object.
    pub(super) fn to_json(&self) -> Value {
        self.ids_in_order()
            .map(|(id, text)| (text.to_owned(), id.into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// The tokens that are found in text before anything else is done to it. Special ones are left out of decoded
    /// text.
    pub(super) fn added_tokens(&self) -> Value {
        self.ids_in_order()
            .filter_map(|(id, text)| {
                let special = match self.kinds[id as usize] {
                    TokenKind::Control | TokenKind::Unknown => true,
                    TokenKind::UserDefined => false,
                    _ => return None,
                };
                Some(json!({
                    "id": id, "content": text, "special": special,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                }))
            })
            .collect()
    }

    fn special(&self) -> impl Iterator<Item = (u32, &'a str)> {
        self.ids_in_order().filter(|(id, _)| self.kinds[*id as usize] == TokenKind::Control)
    }

    /// Each text once, by its first id.
    fn ids_in_order(&self) -> impl Iterator<Item = (u32, &'a str)> {
        (0u32..).zip(self.tokens.iter().copied()).filter(|(id, text)| self.ids.get(text) == Some(id))
    }
}

// === impl TokenKind ===

impl TokenKind {
    fn from_code(code: i64) -> Self {
        match code {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}
