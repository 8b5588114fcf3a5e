//! The files for routers, from a Hugging Face directory.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::{CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, Specials, TOKENIZER, Text, ends_a_turn, push_new};
use crate::{Error, format::directory::Directory};

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Reads them.
pub(crate) fn read(directory: &Directory) -> Result<Text, Error> {
    let missing = |name: &str| Error::malformed(&directory.path, name, "is missing");
    let source = directory.text(TOKENIZER)?.ok_or_else(|| missing(TOKENIZER))?;
    let tokenizer: Tokenizer = source
        .parse()
        .map_err(|e: tokenizers::Error| Error::malformed(&directory.path, TOKENIZER, e.to_string()))?;
    let tokenizer_config = directory.json(TOKENIZER_CONFIG)?.unwrap_or_default();
    let generation_config = directory.json(GENERATION_CONFIG)?.unwrap_or_default();

    let id_of = |key: &str| tokenizer.token_to_id(token_text(&tokenizer_config[key])?);
    let mut stop = Vec::new();
    id_of("eos_token").into_iter().for_each(|id| push_new(&mut stop, id));
    for ids in [&generation_config["eos_token_id"], &directory.config["eos_token_id"]] {
        token_ids(ids).for_each(|id| push_new(&mut stop, id));
    }
    let mut turn_ends: Vec<u32> = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special && ends_a_turn(&token.content))
        .map(|(id, _)| id)
        .collect();
    turn_ends.sort_unstable();
    turn_ends.into_iter().for_each(|id| push_new(&mut stop, id));

    let specials = Specials {
        bos: id_of("bos_token").or_else(|| token_ids(&directory.config["bos_token_id"]).next()),
        eos: stop.first().copied(),
        add_bos: first_added(&tokenizer, directory)?,
    };
    let mut files = BTreeMap::from([
        (TOKENIZER, Bytes::from(source)),
        (CONFIG, Bytes::from(specials.config().to_string())),
    ]);
    let template = match directory.text(CHAT_TEMPLATE)? {
        Some(template) => Some(template),
        None => chat_template(&tokenizer_config["chat_template"]),
    };
    files.extend(template.map(|template| (CHAT_TEMPLATE, Bytes::from(template))));
    files.extend(directory.text(GENERATION_CONFIG)?.map(|text| (GENERATION_CONFIG, Bytes::from(text))));
    Ok(Text { files, bos: specials.bos_of_prompts(), stop })
}

/// Whether the tokenizer's own post-processing puts a token before a text.
fn first_added(tokenizer: &Tokenizer, directory: &Directory) -> Result<bool, Error> {
    let first = |add_special| {
        let encoding = tokenizer.encode_fast("a", add_special);
        let encoding = encoding.map_err(|e| Error::malformed(&directory.path, TOKENIZER, e.to_string()))?;
        Ok::<_, Error>(encoding.get_ids().first().copied())
    };
    Ok(first(true)? != first(false)?)
}

/// A token is written as its text, or as an object that holds it.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// One id or a list of them.
fn token_ids(value: &Value) -> impl Iterator<Item = u32> + '_ {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok())
}

/// A template, or the one named `default` (else the first) of several.
fn chat_template(value: &Value) -> Option<String> {
    let templates = match value {
        Value::String(template) => return Some(template.clone()),
        Value::Array(templates) => templates,
        _ => return None,
    };
    let chosen = templates.iter().find(|template| template["name"] == "default").or(templates.first())?;
    chosen["template"].as_str().map(str::to_owned)
}
