use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fixture;

const WORDS: [&[u8]; 6] = [b"ab", b"abc", "é".as_bytes(), "a€".as_bytes(), &[0xF0, 0x9F], b" stop"];
const IM_START: u32 = fixture::WORDS + WORDS.len() as u32;
const IM_END: u32 = IM_START + 1;

fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: std::sync::OnceLock<Arc<Tokenizer>> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(|| Arc::new(Tokenizer::from_json(&fixture::byte_level(&WORDS)).unwrap())).clone()
}

fn rules(stop: &[&str], include_stop: bool) -> Arc<Rules> {
    let stop: Vec<String> = stop.iter().map(|text| (*text).to_owned()).collect();
    let tokenizer = tokenizer();
    Arc::new(Rules {
        stops: Stops::new(&stop, &tokenizer),
        tokenizer,
        include_stop,
        shown: vec![],
        max_tokens: 1000,
    })
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn step(tokens: &[u32]) -> Step<'_> {
    Step { tokens, ..Step::default() }
}

fn last(tokens: &[u32], end: Reason) -> Step<'_> {
    Step { tokens, end: Some(end), ..Step::default() }
}

/// Everything that an assembler gave, joined.
#[derive(Debug, Default, PartialEq)]
struct Whole {
    text: String,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

impl Whole {
    fn add(&mut self, delta: Option<Delta>) {
        let Some(delta) = delta else { return };
        assert!(self.finish.is_none(), "a delta after the last");
        self.text += &delta.text;
        self.tokens.extend(delta.tokens);
        self.finish = delta.finish;
    }
}

#[test]
fn a_character_is_never_split_between_deltas() {
    let mut assembler = Assembler::new(0, rules(&[], true));
    let texts: Vec<_> = "x😀y"
        .bytes()
        .map(|byte| assembler.push(step(&[byte.into()])).map(|delta| (delta.text, delta.tokens.len())))
        .collect();
    let y = Some(("y".to_owned(), 1));
    assert_eq!(texts, [Some(("x".into(), 1)), None, None, None, Some(("😀".into(), 4)), y]);
}

#[test]
fn an_output_that_ends_inside_a_character_gets_one_replacement_character() {
    let mut assembler = Assembler::new(0, rules(&[], true));
    let delta = assembler.push(last(&[0x61, 0xF0, 0x9F, 0x98], Reason::Length)).unwrap();
    assert_eq!(delta.text, "a\u{FFFD}");
    assert_eq!(delta.finish.unwrap().completion_tokens, 4);
}

#[test]
fn text_that_may_become_a_stop_string_is_held_until_it_is_not() {
    let mut assembler = Assembler::new(0, rules(&["abc"], false));
    assert_eq!(assembler.push(step(&bytes("xab"))).unwrap().text, "x");
    assert_eq!(assembler.push(step(&bytes("a"))).unwrap().text, "ab");
    let end = assembler.push(last(&[IM_END], Reason::Stop)).unwrap();
    assert_eq!((end.text.as_str(), end.tokens.len()), ("a", 1));
}

#[test]
fn a_stop_string_ends_text_tokens_and_usage_at_the_token_that_completes_it() {
    for (include, text) in [(true, "x stop"), (false, "x ")] {
        let mut assembler = Assembler::new(0, rules(&["stop"], include));
        let mut whole = Whole::default();
        whole.add(assembler.push(step(&bytes("x s"))));
        whole.add(assembler.push(step(&bytes("top and more"))));
        whole.add(assembler.push(step(&bytes("yet more"))));
        assert_eq!(whole.text, text);
        assert_eq!(whole.tokens.len(), 6);
        let finish = whole.finish.unwrap();
        assert_eq!((finish.reason, finish.completion_tokens), (Reason::Stop, 6));
    }
}

#[test]
fn the_earliest_end_wins_and_then_the_listed_order() {
    let end = |stop: &[&str]| {
        let mut assembler = Assembler::new(0, rules(stop, false));
        assembler.push(step(&bytes("abcdef"))).unwrap().text
    };
    assert_eq!(end(&["bcdef", "de", "cd"]), "ab");
    assert_eq!(end(&["d", "bcd"]), "abc");
    assert_eq!(end(&["bcd", "d"]), "a");
}

#[test]
fn an_end_token_is_no_output() {
    let mut assembler = Assembler::new(3, rules(&[], true));
    let delta = assembler.push(last(&[0x61, IM_END], Reason::Stop)).unwrap();
    assert_eq!((delta.choice, delta.text.as_str(), delta.tokens.len()), (3, "a", 1));
    assert_eq!(delta.finish.unwrap().completion_tokens, 1);
    let only = Assembler::new(0, rules(&[], true)).push(last(&[IM_END], Reason::Stop)).unwrap();
    let finish = Finish { reason: Reason::Stop, completion_tokens: 0, cached_tokens: 0 };
    assert_eq!((only.text.as_str(), only.tokens.len(), only.finish), ("", 0, Some(finish)));
}

#[test]
fn a_stop_string_that_names_a_special_token_stops_at_it() {
    let mut assembler = Assembler::new(0, rules(&["<|im_start|>"], true));
    let delta = assembler.push(step(&[0x61, IM_START, 0x62])).unwrap();
    assert_eq!((delta.text.as_str(), delta.tokens.len()), ("a", 1));
    assert_eq!(delta.finish.unwrap().reason, Reason::Stop);
}

#[test]
fn an_echo_shows_the_prompt_with_its_scores_and_is_not_searched_for_stops() {
    let mut assembler = Assembler::new(0, rules(&["b"], true));
    let score = |logprob| Logprobs { logprob, top_tokens: vec![7], top_logprobs: vec![-0.5] };
    let prompt = [IM_START, 0x61, 0x62];
    assembler.echo(&prompt, 0, Some(IM_START), &[score(-1.0), score(-2.0)]);
    let delta = assembler.push(step(&bytes("c"))).unwrap();
    assert_eq!(delta.text, "abc");
    let tokens: Vec<_> = delta.tokens.iter().map(|token| (token.text_offset, token.logprob)).collect();
    assert_eq!(tokens, [(0, None), (0, Some(-1.0)), (1, Some(-2.0)), (2, None)]);
    assert_eq!(delta.tokens[1].top, [(7, vec![7], -0.5)]);
    assert!(delta.finish.is_none());
}

#[test]
fn an_echoed_sentence_piece_prompt_reads_as_it_was_written() {
    let tokenizer = Arc::new(Tokenizer::from_json(&fixture::sentence_piece()).unwrap());
    let rules =
        Rules { stops: Stops::default(), tokenizer, include_stop: true, shown: vec![], max_tokens: 8 };
    let mut prompt = vec![1];
    prompt.extend(rules.tokenizer.encode("so é", crate::text::model::Special::Parse).unwrap());
    let mut assembler = Assembler::new(0, Arc::new(rules));
    assembler.echo(&prompt, 0, Some(1), &[]);
    assert_eq!(assembler.push(step(&[259, 260])).unwrap().text, "so é a");
}

#[test]
fn no_tokens_at_all_is_an_empty_text_of_length_nought() {
    let zero = Rules { max_tokens: 0, ..Rules::clone(&rules(&[], true)) };
    let delta = Assembler::new(0, Arc::new(zero)).push(Step::default()).unwrap();
    let finish = Finish { reason: Reason::Length, completion_tokens: 0, cached_tokens: 0 };
    assert_eq!((delta.text.as_str(), delta.finish), ("", Some(finish)));
}

#[test]
fn more_than_max_tokens_is_never_shown() {
    let rules = Rules { max_tokens: 2, ..Rules::clone(&rules(&[], true)) };
    let delta = Assembler::new(0, Arc::new(rules)).push(step(&bytes("abc"))).unwrap();
    assert_eq!((delta.text.as_str(), delta.finish.unwrap().reason), ("ab", Reason::Length));
}

/// The same by looking at the whole text again for every token.
fn naive(tokens: &[u32], stop: &[String], include_stop: bool) -> (String, u32, Reason) {
    let vocabulary = tokenizer();
    let mut all = Vec::new();
    for (i, id) in tokens.iter().enumerate() {
        all.extend_from_slice(vocabulary.vocabulary().text(*id));
        let last = i + 1 == tokens.len();
        let text = if last { String::from_utf8_lossy(&all).into_owned() } else { whole_characters(&all) };
        let ends =
            stop.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), stop.len())));
        if let Some((end, length)) = ends.min_by_key(|(end, _)| *end) {
            let cut = if include_stop { end } else { end - length };
            return (text[..cut].to_owned(), i as u32 + 1, Reason::Stop);
        }
    }
    (String::from_utf8_lossy(&all).into_owned(), tokens.len() as u32, Reason::Length)
}

fn whole_characters(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text += chunk.valid();
        let open = chunk.valid().len() + chunk.invalid().len();
        let at_end = std::ptr::eq(bytes.as_ptr_range().end, chunk.invalid().as_ptr_range().end);
        let incomplete = std::str::from_utf8(&bytes[bytes.len() - chunk.invalid().len()..])
            .is_err_and(|error| error.error_len().is_none());
        if open > 0 && !chunk.invalid().is_empty() && !(at_end && incomplete) {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

fn any_tokens() -> impl Strategy<Value = Vec<u32>> {
    let ascii = prop::sample::select(bytes("abc "));
    let words = fixture::WORDS..fixture::WORDS + WORDS.len() as u32;
    let parts = prop::sample::select(bytes("é€😀"));
    let token = prop_oneof![4 => ascii, 3 => words, 3 => parts, 1 => 0x80..0x100_u32, 1 => Just(IM_START)];
    prop::collection::vec(token, 1..40)
}

fn any_stops() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[abcé€😀\u{FFFD} ]{1,4}", 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_split_into_steps_gives_what_a_search_of_the_whole_text_gives(
        tokens in any_tokens(),
        stop in any_stops(),
        include_stop: bool,
        cuts in prop::collection::vec(1..6_usize, 40),
    ) {
        let stops: Vec<&str> = stop.iter().map(String::as_str).collect();
        let mut assembler = Assembler::new(0, rules(&stops, include_stop));
        let mut whole = Whole::default();
        let mut rest = tokens.as_slice();
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            whole.add(assembler.push(if rest.is_empty() { last(now, Reason::Length) } else { step(now) }));
        }
        let (text, count, reason) = naive(&tokens, &stop, include_stop);
        prop_assert_eq!(&whole.text, &text);
        let finish = whole.finish.unwrap();
        prop_assert_eq!((finish.completion_tokens, finish.reason), (count, reason));
        let ids: Vec<u32> = whole.tokens.iter().map(|token| token.id).collect();
        prop_assert_eq!(ids.as_slice(), &tokens[..count as usize]);

        let mut at_once = Whole::default();
        at_once.add(Assembler::new(0, rules(&stops, include_stop)).push(last(&tokens, Reason::Length)));
        prop_assert_eq!(whole, at_once);
    }

    #[test]
    fn a_delta_never_carries_a_token_before_its_text(tokens in any_tokens(), stop in any_stops()) {
        let stops: Vec<&str> = stop.iter().map(String::as_str).collect();
        let mut assembler = Assembler::new(0, rules(&stops, true));
        let (mut sent, mut claimed) = (0, 0);
        for id in &tokens {
            let Some(delta) = assembler.push(step(&[*id])) else { continue };
            sent += delta.text.chars().count();
            if let Some(token) = delta.tokens.last() {
                claimed = token.text_offset as usize;
            }
            prop_assert!(claimed <= sent);
        }
    }
}
