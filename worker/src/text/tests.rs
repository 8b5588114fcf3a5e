//! The tokenizer that is built from GGUF metadata gives the tokens that the original tokenizer gives.

use std::path::Path;

use bytes::Bytes;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::*;
use crate::{Error, format::gguf::Gguf, model::Model, testing};

fn build(writer: testing::GgufWriter) -> Result<Text, Error> {
    let gguf = Gguf::parse(Path::new("m.gguf"), &Bytes::from(writer.bytes()))?;
    let vocab = gguf.strings("tokenizer.ggml.tokens")?.unwrap().len();
    gguf::build(&gguf, vocab)
}

fn tokenizer(text: &Text) -> Tokenizer {
    Tokenizer::from_bytes(&text.files[TOKENIZER]).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn prompts_of_the_reference_get_the_tokens_of_the_reference() {
    let Some(path) = testing::reference_model() else { return };
    let text = Model::open(&path).unwrap().text;
    let tokenizer = tokenizer(&text);
    for item in testing::reference().items {
        let prompt = &item.prompt_text;
        assert_eq!(ids(&tokenizer, prompt), item.prompt_ids, "{prompt}");
        let decoded = tokenizer.decode(&item.prompt_ids, false).unwrap();
        assert_eq!(&decoded, prompt);
        assert_eq!(tokenizer.decode(&item.gen_ids, false).unwrap(), item.gen_text);
    }
    assert_eq!((text.bos, &text.stop[..]), (None, &[2, 0][..]));
    let config: Value = serde_json::from_slice(&text.files[CONFIG]).unwrap();
    assert_eq!(config, serde_json::json!({"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": false}));
    assert!(text.has_chat_template());
}

/// All bytes, some merges: the vocabulary of a fixture's own tokenizer.json, written as GGUF.
fn byte_level(pre: &str) -> testing::GgufWriter {
    let source = std::fs::read(testing::folder("tiny-llama").join("tokenizer.json")).unwrap();
    let source: Value = serde_json::from_slice(&source).unwrap();
    let mut tokens: Vec<(&String, u64)> = source["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(t, id)| (t, id.as_u64().unwrap()))
        .collect();
    tokens.sort_by_key(|(_, id)| *id);
    let tokens: Vec<_> = tokens.iter().map(|(token, _)| token.as_str()).collect();
    let kinds: Vec<_> = (0..tokens.len()).map(|id| if id < 4 { 3 } else { 1 }).collect();
    let merges = source["model"]["merges"].as_array().unwrap();
    let merges: Vec<_> =
        merges.iter().map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap())).collect();
    testing::tiny_gguf()
        .str("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", &merges.iter().map(String::as_str).collect::<Vec<_>>())
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 2)
}

#[test]
fn a_byte_level_vocabulary_tokenizes_as_its_original() {
    let text = build(byte_level("gpt-2")).unwrap();
    let (built, original) = (
        tokenizer(&text),
        Tokenizer::from_file(testing::folder("tiny-llama").join("tokenizer.json")).unwrap(),
    );
    for prompt in ["the cat and the other", "", "<|im_start|>user\nthe<|im_end|>", "Grüße 😀 1234\t\n  x"]
    {
        assert_eq!(ids(&built, prompt), ids(&original, prompt), "{prompt}");
    }
}

#[test]
fn every_pre_tokenizer_cuts_as_its_name_says() {
    let cuts = |pre: &str, text: &str| {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        let text_files = build(byte_level(pre)).unwrap();
        let tokenizer = tokenizer(&text_files);
        let mut cut = PreTokenizedString::from(text);
        tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut cut).unwrap();
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (from, to), _)| text[from..to].to_owned()).collect::<Vec<_>>()
    };
    let text = "It's 12345 x";
    assert_eq!(cuts("gpt-2", text), ["It", "'s", " 12345", " x"]);
    assert_eq!(cuts("smollm", text), ["It", "'s", " ", "1", "2", "3", "4", "5", " x"]);
    assert_eq!(cuts("llama-bpe", text), ["It", "'s", " ", "123", "45", " x"]);
    assert_eq!(cuts("starcoder", text), ["It", "'s", " ", "1", "2", "3", "4", "5", " x"]);
    assert_eq!(cuts("dbrx", text), ["It", "'s", " ", "123", "45", " x"]);
    assert_eq!(cuts("qwen2", text), ["It", "'s", " ", "1", "2", "3", "4", "5", " x"]);
}

#[test]
fn a_family_s_gguf_file_tokenizes_as_its_directory() {
    for name in testing::GGUF_FIXTURES {
        let (directory, file) = (testing::fixture(name).model.text, testing::gguf_fixture(name).model.text);
        assert_eq!((&file.stop, file.bos), (&directory.stop, directory.bos), "{name}");
        assert_eq!(file.files.get(CHAT_TEMPLATE), directory.files.get(CHAT_TEMPLATE), "{name}");
        let (directory, file) = (tokenizer(&directory), tokenizer(&file));
        for text in [
            "It's 12345 x",
            "the cat\n\n  and\tthe other",
            "<|im_start|>user\nthe<|im_end|>",
            "Grüße 😀 e\u{301}",
        ] {
            assert_eq!(ids(&file, text), ids(&directory, text), "{name}: {text}");
        }
    }
}

#[test]
fn bos_comes_before_prompts_where_the_file_or_its_kind_says_so() {
    let bos = |writer| build(writer).unwrap().bos;
    assert_eq!(bos(byte_level("gpt-2")), None);
    assert_eq!(bos(byte_level("llama-bpe")), Some(0));
    assert_eq!(bos(byte_level("llama-bpe").bool("tokenizer.ggml.add_bos_token", false)), None);
    assert_eq!(bos(byte_level("gpt-2").bool("tokenizer.ggml.add_bos_token", true)), Some(0));
}

#[test]
fn a_sentencepiece_vocabulary_tokenizes_as_sentencepiece_does() {
    let source = std::fs::read(testing::folder("sentencepiece.json")).unwrap();
    let source: Value = serde_json::from_slice(&source).unwrap();
    let list = |key: &str| source[key].as_array().unwrap();
    let tokens: Vec<_> = list("tokens").iter().map(|t| t.as_str().unwrap()).collect();
    let scores: Vec<_> = list("scores").iter().map(|s| s.as_f64().unwrap() as f32).collect();
    let kinds: Vec<_> = list("token_type").iter().map(|k| k.as_i64().unwrap() as i32).collect();
    let text = build(
        testing::tiny_gguf()
            .str("tokenizer.ggml.model", "llama")
            .strings("tokenizer.ggml.tokens", &tokens)
            .f32s("tokenizer.ggml.scores", &scores)
            .i32s("tokenizer.ggml.token_type", &kinds)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2),
    )
    .unwrap();
    assert_eq!((text.bos, &text.stop[..]), (Some(1), &[2][..]));
    let tokenizer = tokenizer(&text);
    for case in list("texts") {
        let (plain, expected): (&str, Vec<u32>) = (
            case["text"].as_str().unwrap(),
            case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        );
        if plain == "<s>" {
            assert_eq!(ids(&tokenizer, plain), [1]); // routers decide whether specials in a text are parsed
            continue;
        }
        assert_eq!(ids(&tokenizer, plain), expected, "{plain:?}");
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), plain);
    }
}

#[test]
fn a_directory_gives_its_own_files() {
    let text = testing::fixture("tiny-llama").model.text;
    let names: Vec<_> = text.files.keys().copied().collect();
    assert_eq!(names, [CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, TOKENIZER]);
    assert_eq!((text.bos, &text.stop[..]), (Some(0), &[2, 3][..]));
    let template = text.files[CHAT_TEMPLATE].clone();

    let other = testing::fixture("tiny-qwen2").model.text;
    assert_eq!((other.bos, &other.stop[..]), (None, &[2, 3][..]));
    assert_eq!(other.files[CHAT_TEMPLATE], template, "the default of a list");
    assert_ne!(text.hash(), other.hash());
}
