//! Small tokenizers for the tests, one of each spelling.

use serde_json::{Value, json};
use volley_proto::v1::ModelCard;

/// The first id that is not a byte.
pub(crate) const WORDS: u32 = 256;

/// Every byte (by its value), then `words`, then the special tokens `<|im_start|>` and `<|im_end|>`. A word
/// is only found when merges lead to it, so texts are mostly bytes.
pub(crate) fn byte_level(words: &[&[u8]]) -> Vec<u8> {
    let spell = |bytes: &[u8]| bytes.iter().map(|byte| spelling(*byte)).collect::<String>();
    let names: Vec<String> =
        (0..=255_u8).map(|byte| spell(&[byte])).chain(words.iter().map(|word| spell(word))).collect();
    let vocab: serde_json::Map<String, Value> =
        names.iter().zip(0..).map(|(name, id)| (name.clone(), json!(id))).collect();
    let added = [special(names.len(), "<|im_start|>"), special(names.len() + 1, "<|im_end|>")];
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": []},
    });
    file.to_string().into_bytes()
}

/// The same, with the space put before the first word by the pre-tokenizer.
pub(crate) fn metaspace() -> Vec<u8> {
    let mut file: Value = serde_json::from_slice(&sentence_piece()).unwrap();
    file["normalizer"] = Value::Null;
    file["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    file.to_string().into_bytes()
}

/// Llama 2's: `<unk>`, `<s>`, `</s>`, the 256 bytes (from id 3), `▁` (259), then `a` to `z` (from 260).
pub(crate) fn sentence_piece() -> Vec<u8> {
    let names = ["<unk>", "<s>", "</s>"].into_iter().map(str::to_owned);
    let bytes = (0..=255).map(|byte: u8| format!("<0x{byte:02X}>"));
    let letters = std::iter::once('▁').chain('a'..='z').map(String::from);
    let vocab: serde_json::Map<String, Value> =
        names.chain(bytes).chain(letters).zip(0..).map(|(name, id)| (name, json!(id))).collect();
    let added = [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")];
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    });
    file.to_string().into_bytes()
}

/// ChatML with a default system message, in the way of SmolLM2's template.
pub(crate) const CHAT_TEMPLATE: &str = "{% for message in messages %}\
    {% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}\
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A card for [`byte_level`] without words: ends at `<|im_end|>`.
pub(crate) fn card() -> ModelCard {
    ModelCard {
        name: "tiny".into(),
        hash: "tiny-1".into(),
        context_length: 4096,
        vocab_size: WORDS + 2,
        stop_tokens: vec![WORDS + 1],
        has_chat_template: true,
        ..ModelCard::default()
    }
}

fn special(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// GPT-2's character of a byte.
fn spelling(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(&byte) {
        char::from(byte)
    } else {
        let before = (0..byte).filter(|byte| !printable(byte)).count() as u32;
        char::from_u32(0x100 + before).unwrap()
    }
}
