use std::time::Duration;

use serde_json::json;

use super::*;
use crate::fixture;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(&fixture::byte_level(&[])).unwrap()
}

fn render_with(
    source: &str,
    messages: serde_json::Value,
    options: &ChatOptions,
) -> Result<String, TextError> {
    let variables = Variables { bos_token: "<s>".into(), eos_token: "</s>".into() };
    let template = Template::new(source.to_owned(), variables).unwrap();
    let messages = messages.as_array().unwrap().clone();
    template.render(&tokenizer(), messages, options).map(|rendered| rendered.text())
}

fn render(source: &str) -> Result<String, TextError> {
    render_with(source, json!([{"role": "user", "content": " Hi <b> "}]), &ChatOptions::default())
}

#[test]
fn a_default_system_message_stands_before_a_conversation_without_one() {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let rendered = render_with(fixture::CHAT_TEMPLATE, messages, &ChatOptions::default()).unwrap();
    let expected =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rendered, expected);
}

#[test]
fn templates_find_what_hugging_face_gives_them() {
    assert_eq!(render("{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}").unwrap(), "<s></s>True");
    assert_eq!(render("{{ messages[0].content.strip() | upper }}").unwrap(), "HI <B>");
    assert_eq!(render("{% if tools is none and tools is defined %}no tools{% endif %}").unwrap(), "no tools");
    assert_eq!(
        render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}").unwrap(),
        "1"
    );
    assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc").unwrap(), "a\nb\nc");
    assert_eq!(render("{%- generation -%} x {%- endgeneration %}").unwrap(), "x");
    assert_eq!(render("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}").unwrap(), "2");
}

#[test]
fn further_variables_reach_the_template() {
    let variables = json!({"enable_thinking": false}).as_object().unwrap().clone();
    let options = ChatOptions { variables, ..ChatOptions::default() };
    let rendered = render_with("{{ 'think' if enable_thinking else 'no' }}", json!([]), &options).unwrap();
    assert_eq!(rendered, "no");
}

#[test]
fn a_template_refuses_in_its_own_words() {
    let refused = render("{{ raise_exception('Roles must alternate') }}");
    assert_eq!(refused, Err(TextError::Refused("Roles must alternate".into())));
    let inside = render(
        "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{% for i in [1] %}{{ m() }}{% endfor %}",
    );
    assert_eq!(inside, Err(TextError::Refused("no".into())));
}

#[test]
fn a_template_that_runs_away_is_stopped() {
    let loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(loops), Err(TextError::Template(_))));
    let recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(recursion), Err(TextError::Template(_))));
    assert!(Template::new("{% if %}".into(), Variables::default()).is_err());
}

#[test]
fn tojson_writes_what_python_does() {
    let content = json!({"a": [1, 2.5, true, null, "é<\""], "b": {}, "c": []});
    let messages = json!([{"role": "user", "content": content}]);
    let line = render_with("{{ messages[0].content | tojson }}", messages.clone(), &ChatOptions::default());
    assert_eq!(line.unwrap(), r#"{"a": [1, 2.5, true, null, "é<\""], "b": {}, "c": []}"#);
    let lines =
        render_with("{{ messages[0].content.a[:2] | tojson(indent=2) }}", messages, &ChatOptions::default());
    assert_eq!(lines.unwrap(), "[\n  1,\n  2.5\n]");
}

#[test]
fn dates_are_written_as_python_does() {
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(strftime("%d %b %Y, %A %H:%M:%S", at(951_827_696)), "29 Feb 2000, Tuesday 12:34:56");
    assert_eq!(strftime("%-d %B %y %a %m %% %q", at(1_735_689_600)), "1 January 25 Wed 01 % %q");
    assert_eq!(strftime("%Y-%m-%d", at(1_709_251_199)), "2024-02-29");
    assert!(render("{{ strftime_now('%Y') }}").unwrap().parse::<u32>().unwrap() >= 2025);
}
