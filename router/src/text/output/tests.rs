use proptest::prelude::*;

use super::*;

/// Everything that a choice said: reasoning, content, calls.
type Whole = (String, String, Vec<(String, String)>);

fn whole(parts: Vec<Part>) -> Whole {
    let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Reasoning(text) => reasoning += &text,
            Part::Content(text) => content += &text,
            Part::Call { index, name } => {
                assert_eq!(index as usize, calls.len(), "calls are numbered without a gap");
                calls.push((name, String::new()));
            }
            Part::Arguments { index, text } => {
                assert_eq!(index as usize + 1, calls.len(), "arguments follow their call");
                calls[index as usize].1 += &text;
            }
        }
    }
    (reasoning, content, calls)
}

fn reading(calls: Option<Format>, reasoning: Thinking) -> Reading {
    let names = vec!["f".to_owned(), "get_weather".to_owned()].into();
    Reading { reasoning, calls, names, forced: false }
}

fn read(reading: &Reading, pieces: &[&str]) -> Whole {
    let (mut reader, mut parts) = (Reader::new(reading), Vec::new());
    pieces.iter().for_each(|piece| reader.push(piece, &mut parts));
    reader.end(&mut parts);
    whole(parts)
}

fn assert_reads(format: Format, text: &str, content: &str, calls: &[(&str, &str)]) {
    let reading = reading(Some(format), Thinking::Never);
    let calls = calls.iter().map(|(name, arguments)| (name.to_string(), arguments.to_string())).collect();
    let expected = (String::new(), content.to_owned(), calls);
    assert_eq!(read(&reading, &[text]), expected, "{format:?}: {text}");
    let letters: Vec<String> = text.chars().map(String::from).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    assert_eq!(read(&reading, &letters), expected, "{format:?}, letter by letter: {text}");
}

#[test]
fn the_beginning_of_a_forced_call_is_no_content() {
    let begun = [
        (Format::Hermes, "<tool_call>\n{\"na"),
        (Format::Llama, "{\"name\": \"get_"),
        (Format::Mistral, "[TOOL_CALLS] [{\"name"),
        (Format::Mistral, "[TOOL_CALLS]get_wea"),
        (Format::Pythonic, "[get_weath"),
    ];
    for (format, text) in begun {
        for end in (1..=text.len()).rev() {
            let reading = Reading { forced: true, ..reading(Some(format), Thinking::Never) };
            assert_eq!(read(&reading, &[&text[..end]]), Whole::default(), "{format:?}: {}", &text[..end]);
        }
    }
}

#[test]
fn hermes() {
    let reads = |text, content, calls: &[_]| assert_reads(Format::Hermes, text, content, calls);
    reads("hello <b>\n", "hello <b>\n", &[]);
    reads(
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"}\"]}}\n</tool_call>",
        "",
        &[("f", "{\"a\": [1, \"}\"]}")],
    );
    reads(
        "Sure.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>{\"arguments\":{\"x\":1},\"name\":\"g\"}</tool_call>\n",
        "Sure.",
        &[("f", "{}"), ("g", "{\"x\":1}")],
    );
    // Arguments as text, as nothing, and not there.
    reads(r#"<tool_call>{"name":"f","arguments":"{\"a\":1}"}</tool_call>"#, "", &[("f", "{\"a\":1}")]);
    reads(r#"<tool_call>{"name":"f","arguments":null}</tool_call>"#, "", &[("f", "{}")]);
    reads(r#"<tool_call>{"name":"f"}</tool_call>"#, "", &[("f", "{}")]);
    // What is no call is what the model said.
    reads("<tool_call>nothing</tool_call> more", "<tool_call>nothing</tool_call> more", &[]);
    reads("a <tool_call>{\"a\":1}", "a <tool_call>{\"a\":1}", &[]);
    reads("<tool_cal", "<tool_cal", &[]);
    reads("<tool_call>{\"na", "<tool_call>{\"na", &[]);
    // Cut, or with no end tag.
    reads("<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"b", "", &[("f", "{\"a\":\"b")]);
    reads("<tool_call>{\"name\":\"f\",\"arguments\":{}} and so", "and so", &[("f", "{}")]);
    reads(
        "<tool_call>{\"name\":\"f\",\"arguments\":{}]</tool_call> then  text ",
        "then  text",
        &[("f", "{}")],
    );
}

#[test]
fn llama() {
    let reads = |text, content, calls: &[_]| assert_reads(Format::Llama, text, content, calls);
    reads("{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", &[("f", "{\"a\": 1}")]);
    reads("<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}", "", &[("f", "{}")]);
    reads(
        "{\"name\":\"f\",\"parameters\":{}}; {\"name\":\"get_weather\",\"parameters\":{\"b\":2}}",
        "",
        &[("f", "{}"), ("get_weather", "{\"b\":2}")],
    );
    reads("Let me see.<|python_tag|>{\"name\":\"f\",\"parameters\":{}}", "Let me see.", &[("f", "{}")]);
    // A call that breaks off counts as one; the next has its own number.
    reads(
        "{\"name\":\"f\"!<|python_tag|>{\"name\":\"get_weather\",\"parameters\":{}}",
        "",
        &[("f", ""), ("get_weather", "{}")],
    );
    // An answer that is JSON, and one that names something else.
    reads("{\"answer\": 42}", "{\"answer\": 42}", &[]);
    reads("{\"name\": \"Ann\", \"parameters\": 1}", "{\"name\": \"Ann\", \"parameters\": 1}", &[]);
    reads("{", "{", &[]);
    reads("  text", "  text", &[]);
}

#[test]
fn pythonic() {
    let reads = |text, content, calls: &[_]| assert_reads(Format::Pythonic, text, content, calls);
    reads(
        "[f(a=1, b='x', c=[True, None, {\"k\": (1, 2.5)}]), get_weather()]",
        "",
        &[("f", r#"{"a":1,"b":"x","c":[true,null,{"k":[1,2.5]}]}"#), ("get_weather", "{}")],
    );
    reads(
        r#" [get_weather(city="a)\"\u00e9,", n=-2e3)]"#,
        "",
        &[("get_weather", r#"{"city":"a)\"é,","n":-2000.0}"#)],
    );
    reads("[1, 2]", "[1, 2]", &[]);
    reads("[other(a=1)]", "[other(a=1)]", &[]);
    reads("hello", "hello", &[]);
    reads("[f(a=1)] done", "done", &[("f", "{\"a\":1}")]);
    // What can't be read is passed on as it is.
    reads("[f(1, x)]", "", &[("f", "1, x")]);
    reads("[f(a=", "", &[("f", "a=")]);
}

#[test]
fn mistral() {
    let reads = |text, content, calls: &[_]| assert_reads(Format::Mistral, text, content, calls);
    reads(
        "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]",
        "",
        &[("f", "{\"a\": 1}"), ("g", "{}")],
    );
    reads(
        "[TOOL_CALLS] f[ARGS]{\"a\": \"}\"}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}",
        "",
        &[("f", "{\"a\": \"}\"}"), ("g", "{}")],
    );
    reads("Well. [TOOL_CALLS]f{\"a\": 1}", "Well.", &[("f", "{\"a\": 1}")]);
    reads("[TOOL", "[TOOL", &[]);
    reads("an [array] of", "an [array] of", &[]);
    reads("[TOOL_CALLS]nothing", "nothing", &[]);
}

#[test]
fn reasoning_is_apart_from_the_answer() {
    for (thinking, text, reasoning, content) in [
        (Thinking::Tagged, "<think>\nhm,  so\n</think>\n\nYes. ", "hm,  so", "Yes. "),
        (Thinking::Tagged, "Yes.", "", "Yes."),
        (Thinking::Tagged, "<thin", "", "<thin"),
        (Thinking::Tagged, "<think></think>Yes", "", "Yes"),
        (Thinking::Tagged, "Yes <think>no</think>", "", "Yes <think>no</think>"),
        (Thinking::Open, "hm</thinking></think>Yes", "hm</thinking>", "Yes"),
        (Thinking::Open, "<think>hm</think>Yes", "hm", "Yes"),
        (Thinking::Open, "cut in the mid", "cut in the mid", ""),
        (Thinking::Never, "<think>hm</think>Yes", "", "<think>hm</think>Yes"),
    ] {
        let reading = reading(None, thinking);
        let expected = (reasoning.to_owned(), content.to_owned(), vec![]);
        assert_eq!(read(&reading, &[text]), expected, "{text}");
        let letters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(
            read(&reading, &letters.iter().map(String::as_str).collect::<Vec<_>>()),
            expected,
            "{text}"
        );
    }
    let both = reading(Some(Format::Hermes), Thinking::Tagged);
    let text = "<think>I call.</think>\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    assert_eq!(read(&both, &[text]), ("I call.".into(), String::new(), vec![("f".into(), "{}".into())]));
}

#[test]
fn tokens_of_reasoning_are_told_by_where_they_start() {
    let mut reader = Reader::new(&reading(None, Thinking::Tagged));
    let mut parts = Vec::new();
    reader.push("<think>", &mut parts);
    assert!(reader.is_reasoning(0));
    reader.push("é so", &mut parts);
    reader.push("</think>", &mut parts);
    reader.push("\nYes", &mut parts);
    // The answer's first character is the 20th: what is before it, tags and space, is not the answer.
    assert_eq!([7, 18, 19, 20, 22].map(|at| reader.is_reasoning(at)), [true, true, true, false, false]);
    assert!(!Reader::new(&Reading::default()).is_reasoning(0));
}

#[test]
fn arguments_are_passed_on_while_they_are_written() {
    let mut reader = Reader::new(&reading(Some(Format::Hermes), Thinking::Never));
    let mut said = |text: &str| {
        let mut parts = Vec::new();
        reader.push(text, &mut parts);
        parts
    };
    assert_eq!(said("<tool_call>{\"name\": \"f"), []);
    assert_eq!(said("\", \"arguments\": "), [Part::Call { index: 0, name: "f".into() }]);
    assert_eq!(said("{\"city\": \"Ber"), [Part::Arguments { index: 0, text: "{\"city\": \"Ber".into() }]);
    assert_eq!(said("lin\"}"), [Part::Arguments { index: 0, text: "lin\"}".into() }]);
    assert_eq!(said("}\n</tool_call>"), []);
}

#[test]
fn templates_tell_their_format() {
    for (source, format) in [
        ("{{ messages }}", None),
        ("{% if tools %}<tool_call>{% endif %}", Some(Format::Hermes)),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", Some(Format::Mistral)),
        ("{% if tools %}<|python_tag|>{% endif %}", Some(Format::Llama)),
        ("{% if tools %}[func_name1(params_name1=1)]{% endif %}", Some(Format::Pythonic)),
        ("{% if tools %}{{ tools }}{% endif %}", Some(Format::Hermes)),
    ] {
        assert_eq!(Format::of_template(source), format, "{source}");
    }
}

/// Texts that are nearly in some format.
fn texts() -> impl Strategy<Value = String> {
    let pieces = [
        "<tool_call>",
        "</tool_call>",
        "{\"name\": \"f\"",
        ", ",
        "\"arguments\": ",
        "\"parameters\":",
        "{\"a\": \"é\\\"}\"}",
        "}",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[",
        "]",
        "f(",
        "a=1",
        ")",
        "<think>",
        "</think>",
        "<|python_tag|>",
        " ",
        "\n",
        "x",
        ";",
        "<",
        "{",
        "null",
        "日",
    ];
    proptest::collection::vec(prop::sample::select(pieces.to_vec()), 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20000))]
    #[test]
    fn any_split_of_a_text_gives_the_same_parts(
        text in texts(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        format in prop::sample::select(vec![None, Some(Format::Hermes), Some(Format::Llama), Some(Format::Pythonic), Some(Format::Mistral)]),
        thinking in prop::sample::select(vec![Thinking::Never, Thinking::Tagged, Thinking::Open]),
    ) {
        let reading = reading(format, thinking);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        ends.retain(|at| text.is_char_boundary(*at));
        ends.extend([0, text.len()]);
        ends.sort_unstable();
        let pieces: Vec<&str> = ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(read(&reading, &pieces), read(&reading, &[&text]));
    }
}
