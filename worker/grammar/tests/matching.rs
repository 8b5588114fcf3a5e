//! What grammars allow, over a vocabulary of bytes, words and special tokens.
#![allow(clippy::unwrap_used)] // helpers of a test are part of it

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use volley_grammar::{Compiler, Error, Grammar, Matcher, Vocabulary};

/// `</s>`, `[CALL]`, then the words, then a token for each byte of ASCII.
const WORDS: [&str; 6] = ["true", "{\"", "\": ", "ab", "abc", "\"}"];
const END: u32 = 0;
const CALL: u32 = 1;
const SIZE: u32 = 2 + 6 + 128 + 5; // five that only the logits have

fn vocabulary() -> Result<Arc<Vocabulary>, Error> {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let words =
        WORDS.iter().map(|word| word.to_string()).chain((0..128u8).map(|byte| char::from(byte).into()));
    let vocab: serde_json::Map<String, Value> = words.zip(2..).map(|(word, id)| (word, json!(id))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(END, "</s>"), special(CALL, "[CALL]")],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    Vocabulary::from_json(file.to_string().as_bytes()).map(Arc::new)
}

fn compiler() -> Compiler {
    Compiler::new(vocabulary, SIZE, &[END])
}

fn byte(byte: u8) -> u32 {
    2 + WORDS.len() as u32 + u32::from(byte)
}

fn has(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// Whether a grammar allows all of a text, byte by byte, and then its end.
fn allows(compiler: &Compiler, grammar: &Grammar, text: &str) -> bool {
    let mut matcher = compiler.compile(grammar).unwrap();
    for next in text.bytes() {
        if !has(&matcher.mask().unwrap(), byte(next)) || matcher.advance(&[byte(next)]).is_err() {
            return false;
        }
    }
    matcher.may_end() && has(&matcher.mask().unwrap(), END)
}

fn assert_allows(compiler: &Compiler, grammar: &Grammar, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(allows(compiler, grammar, text), "{text:?} should be allowed by {grammar:?}");
    }
    for text in bad {
        assert!(!allows(compiler, grammar, text), "{text:?} should not be allowed by {grammar:?}");
    }
}

fn schema(schema: Value) -> Grammar {
    Grammar::json_schema(&schema).unwrap()
}

#[test]
fn masks_say_what_may_come_next_and_where_the_text_may_end() {
    let compiler = compiler();
    let mut matcher = compiler.compile(&Grammar::regex("ab(c|d)?").unwrap()).unwrap();
    let mask = matcher.mask().unwrap();
    // "a", "ab" and "abc": nothing else, no special token, and nothing beyond the vocabulary.
    let allowed: Vec<u32> = (0..SIZE + 64).filter(|token| has(&mask, *token)).collect();
    assert_eq!(allowed, [5, 6, byte(b'a')]);
    matcher.advance(&[5]).unwrap();
    let mask = matcher.mask().unwrap();
    assert!(has(&mask, END) && has(&mask, byte(b'c')) && !has(&mask, byte(b'e')) && !has(&mask, CALL));
    matcher.advance(&[byte(b'd')]).unwrap();
    let mask = matcher.mask().unwrap();
    assert!((0..SIZE).filter(|token| has(&mask, *token)).eq([END]), "the text can only end");
    // What a step ahead of the end drew says nothing.
    matcher.advance(&[END, byte(b'x')]).unwrap();
    assert!(has(&matcher.mask().unwrap(), END));
}

#[test]
fn a_token_that_the_grammar_excludes_breaks_the_matcher() {
    let mut matcher = compiler().compile(&Grammar::regex("ab").unwrap()).unwrap();
    assert!(matches!(matcher.advance(&[byte(b'x')]), Err(Error::Broken(_))));
    assert!(matcher.mask().is_err());
}

#[test]
fn a_matcher_given_the_same_tokens_again_stands_where_the_first_one_stood() {
    let compiler = compiler();
    let grammar = schema(json!({"type": "object", "properties": {"ab": {"type": "boolean"}}}));
    let tokens = [3, 5, 4, 2, byte(b'}')]; // {" ab ": true }
    let mut one = compiler.compile(&grammar).unwrap();
    for count in 0..=tokens.len() {
        let mut again: Matcher = compiler.compile(&grammar).unwrap();
        again.advance(&tokens[..count]).unwrap();
        assert_eq!(again.mask().unwrap(), one.mask().unwrap());
        if let Some(&token) = tokens.get(count) {
            assert!(has(&one.mask().unwrap(), token), "{count}");
            one.advance(&[token]).unwrap();
        }
    }
    assert!(one.may_end());
}

#[test]
fn schemas_mean_what_they_say_and_objects_are_closed() {
    let compiler = compiler();
    let point = schema(json!({"type": "object", "required": ["x"],
        "properties": {"x": {"type": "integer"}, "s": {"enum": ["a", 1, null]}}}));
    assert_allows(
        &compiler,
        &point,
        &[r#"{"x":1}"#, r#"{"x": -12, "s": null}"#, "{\n  \"x\": 1\n}", r#"{"x":1,"s":"a"}"#],
        &[
            "{}",
            r#"{"x":1.5}"#,
            r#"{"x":1,"y":2}"#,
            r#"{"x":1,"s":"b"}"#,
            "[]",
            r#"{"x":1} "#,
            "{     \"x\":1}",
        ],
    );
    let open = schema(
        json!({"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": true}),
    );
    assert_allows(&compiler, &open, &[r#"{"x":1,"y":[2]}"#, "{}"], &[r#"{"x":"1"}"#]);
    let tree = schema(json!({"$defs": {"T": {"type": "object", "required": ["v"],
        "properties": {"v": {"type": "integer"}, "l": {"anyOf": [{"$ref": "#/$defs/T"}, {"type": "null"}]}}}},
        "$ref": "#/$defs/T"}));
    assert_allows(
        &compiler,
        &tree,
        &[r#"{"v":1}"#, r#"{"v":1,"l":{"v":2,"l":{"v":3,"l":null}}}"#],
        &[r#"{"v":1,"l":{}}"#, r#"{"v":1,"z":0}"#, r#"{"v":1,"l":{"v":2,"z":1}}"#],
    );
    // Together they describe one object, so that neither list is whole.
    let both = schema(
        json!({"$defs": {"A": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
        "allOf": [{"$ref": "#/$defs/A"}, {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}]}),
    );
    assert_allows(&compiler, &both, &[r#"{"a":1,"b":2}"#], &[r#"{"a":1}"#, r#"{"b":1}"#]);
    let either = schema(
        json!({"oneOf": [{"type": "string", "pattern": "^a+$"}, {"type": "array", "items": {"const": 1}}]}),
    );
    assert_allows(&compiler, &either, &[r#""aa""#, "[1,1]", "[]"], &[r#""b""#, "[2]"]);
    assert_allows(&compiler, &schema(Value::Bool(true)), &["1", "null", r#"{"a":[true]}"#], &["x"]);
    assert_allows(&compiler, &Grammar::json_object(), &["{}", r#"{"a":{"b":[1]}}"#], &["[]", "1"]);
}

#[test]
fn schemas_that_cannot_be_served_are_refused_with_the_reason() {
    let deep = (0..200).fold(json!({}), |inner, _| json!({"items": inner}));
    for (bad, reason) in [
        (json!(123), "could not understand the instance `123`"),
        (json!("x"), "a schema is an object or a boolean"),
        (json!({"type": "hiccup"}), r#"could not understand the instance `{"type":"hiccup"}`"#),
        (json!({"type": []}), "no such type"),
        (json!({"properties": {"a": {"type": 5}}}), "no such type"),
        (json!({"$ref": "https://example.com/s.json"}), "not followed"),
        (json!({"$ref": "other.json#/a"}), "not followed"),
        (json!({"$ref": "#/$defs/A"}), "leads nowhere"),
        (json!({"$ref": "#"}), "leads to itself"),
        (
            json!({"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"}),
            "leads to itself",
        ),
        (json!({"enum": []}), "at least one value"),
        (json!({"enum": (0..10_001).collect::<Vec<_>>()}), "an enum of 10001 values"),
        (json!({"anyOf": []}), "anyOf must be a list"),
        (json!({"properties": []}), "properties must be an object"),
        (deep, "too complex"),
    ] {
        let error = Grammar::json_schema(&bad).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(error.len() < 400, "{error}");
    }
    let compiler = compiler();
    for (bad, reason) in [
        (json!(false), "nsatisfiable"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "string", "pattern": "(?=a)b"}), ""),
        (json!({"type": "string", "pattern": "("}), "unclosed group"),
    ] {
        let error = compiler.compile(&schema(bad.clone())).map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::Invalid(message) if message.contains(reason)), "{bad}: {error:?}");
    }
}

#[test]
fn a_format_that_nobody_knows_binds_nobody() {
    let compiler = compiler();
    let any = schema(json!({"type": "object", "properties": {"a": {"type": "string", "format": "path"}}}));
    assert_allows(&compiler, &any, &[r#"{"a":"/x y"}"#], &[r#"{"a":1}"#]);
    let ip = schema(json!({"type": "string", "format": "ipv4"}));
    assert_allows(&compiler, &ip, &[r#""10.0.0.1""#], &[r#""x""#]);
}

#[test]
fn regular_expressions_and_choices_match_as_a_whole() {
    let compiler = compiler();
    let date = Grammar::regex(r"\d{4}-[01]\d/x").unwrap();
    assert_allows(&compiler, &date, &["2024-01/x"], &["2024-21/x", "2024-01/", "x2024-01/x"]);
    let choice = Grammar::choice(&["yes".into(), "no \"way\"\n".into(), "yesterday".into()]).unwrap();
    assert_allows(&compiler, &choice, &["yes", "yesterday", "no \"way\"\n"], &["yester", "no", "maybe"]);
    assert!(matches!(Grammar::choice(&[]), Err(Error::Invalid(_))));
    let huge = "a".repeat(20_000);
    assert!(matches!(Grammar::regex(&huge), Err(Error::TooComplex(_))));
    for bad in ["(", "a{2,1}", r"\p{Nonsense}", "(?=a)b"] {
        assert!(compiler.compile(&Grammar::regex(bad).unwrap()).is_err(), "{bad}");
    }
    let blowup = Grammar::regex("(a|b|ab)*c(a|b){500,900}(.{300,600}x){200,900}").unwrap();
    assert!(matches!(compiler.compile(&blowup), Err(Error::TooComplex(_)) | Ok(_)));
}

const JSON: &str = r#"# llama.cpp's own
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn gbnf_means_what_llama_cpp_means_by_it() {
    let compiler = compiler();
    let json = Grammar::gbnf(JSON).unwrap();
    assert_allows(
        &compiler,
        &json,
        &["{}", "{\"a\": [1, -2.5e7, {\"b\":\"\\u00e9\\n\"}], \"c\":true}", "{\n\t\"a\":null}\n"],
        &["{", "[]", "{\"a\":}", "{\"a\":\"\\x\"}", "{a:1}", "{\"a\":\"\n\"}"],
    );
    for (grammar, good, bad) in [
        // What is regular is one terminal, so that no greedy match takes the x.
        (
            "root ::= [a-z]+ \"x\" digit{2}\ndigit ::= [0-9]",
            &["abxx12", "ax00"][..],
            &["ax1", "12", "abc12"][..],
        ),
        ("root ::= \"a\" root \"b\" | \"\"", &["", "ab", "aaabbb"][..], &["aab", "ba"][..]),
        ("root ::= (\"x\" | y)+ # comment\ny ::= \"y\" |\n  \"z\"", &["xyz", "z"][..], &["", "w"][..]),
        (
            "root ::= [^a-c\\]] . \"\\x41\\u0042\"{,2}",
            &["d\nAB", "dd", "x-ABAB"][..],
            &["a-", "]-", "dABABABAB"][..],
        ),
        ("root ::= item-a{2,}\nitem-a ::= \"-\"", &["--", "-----"][..], &["-"][..]),
        (
            "root ::= e\ne ::= t | e \"+\" t\nt ::= [0-9]+ | \"(\" e \")\"",
            &["1+2", "(1+(22))+3"][..],
            &["+1", "(1"][..],
        ),
    ] {
        assert_allows(&compiler, &Grammar::gbnf(grammar).unwrap(), good, bad);
    }
}

#[test]
fn gbnf_errors_name_the_line() {
    for (bad, reason) in [
        ("", "no rule named root"),
        ("start ::= \"a\"", "no rule named root"),
        ("root ::= \"a\"\nroot ::= \"b\"", "line 2: rule root is given twice"),
        ("root ::= \"a\n", "line 1: a string has no end"),
        ("\nroot ::= [a-z", "line 2: a character class has no end"),
        ("root ::= a\n\na ::= b", "line 3: rule b is not defined"),
        ("root ::= (\"a\"", "expected )"),
        ("root ::= \"a\" )", "line 1: expected the end of the rule"),
        ("root = \"a\"", "line 1: expected ::="),
        ("root ::= \"a\"{3,1}", "expected {m,n}"),
        ("root ::= \"a\"{99999}", "expected {m,n}"),
        ("root ::= \"\\q\"", "no such escape"),
        ("root ::= []", "a character class is empty"),
    ] {
        let error = Grammar::gbnf(bad).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(reason), "{bad:?}: {error}");
    }
    // Rules that never come to an end allow no text at all.
    let endless = Grammar::gbnf("root ::= root").unwrap();
    assert!(compiler().compile(&endless).is_err());
}

#[test]
fn special_tokens_are_matched_by_their_number_only() {
    let compiler = compiler();
    let call = Grammar::token(CALL);
    let grammar =
        Grammar::lark(format!("start: {call} {}", Grammar::json(&json!({"const": [1]})).unwrap())).unwrap();
    let mut matcher = compiler.compile(&grammar).unwrap();
    let mask = matcher.mask().unwrap();
    assert!((0..SIZE).filter(|token| has(&mask, *token)).eq([CALL]));
    matcher.advance(&[CALL, byte(b'['), byte(b'1'), byte(b']')]).unwrap();
    assert!(matcher.may_end());
}

#[test]
fn a_compiled_grammar_is_kept() {
    let compiler = compiler();
    let grammar = Grammar::regex("a+").unwrap();
    assert!(compiler.compiled(&grammar).is_none());
    compiler.compile(&grammar).unwrap();
    assert!(compiler.compiled(&grammar).is_some());
    for i in 0..128 {
        compiler.compile(&Grammar::regex(&format!("b{{{i},200}}")).unwrap()).unwrap();
    }
    assert!(compiler.compiled(&grammar).is_none(), "the least recently used goes first");
}

#[test]
fn a_vocabulary_that_cannot_end_a_text_takes_no_grammar() {
    let compiler = Compiler::new(vocabulary, SIZE, &[SIZE + 1]);
    assert!(matches!(compiler.compile(&Grammar::json_object()), Err(Error::Broken(_))));
    let unreadable = Compiler::new(|| Vocabulary::from_json(b"{").map(Arc::new), SIZE, &[END]);
    assert!(matches!(unreadable.compile(&Grammar::json_object()), Err(Error::Broken(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_walk_under_the_mask_writes_is_valid(choices in proptest::collection::vec(any::<u16>(), 1..200)) {
        let compiler = compiler();
        let grammar = schema(json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
            "b": {"type": "string", "maxLength": 8}, "c": {"enum": ["x", true]}}}));
        let mut matcher = compiler.compile(&grammar).unwrap();
        let vocabulary = vocabulary().unwrap();
        let mut text = Vec::new();
        let mut ended = false;
        for choice in choices {
            let mask = matcher.mask().unwrap();
            let allowed: Vec<u32> = (0..SIZE).filter(|token| has(&mask, *token)).collect();
            let token = allowed[usize::from(choice) % allowed.len()];
            matcher.advance(&[token]).unwrap();
            if token == END {
                ended = true;
                break;
            }
            text.extend_from_slice(vocabulary.text(token));
        }
        let text = String::from_utf8(text).unwrap();
        if ended {
            let value: Value = serde_json::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
            prop_assert!(value["a"].is_array() && value["b"].is_string(), "{text}");
        }
    }

    #[test]
    fn no_gbnf_text_panics(text in "(root ::= )?[a-c\"\\[\\](){},|*+?:=\n \\\\-]{0,40}") {
        let _ = Grammar::gbnf(&text);
    }
}
