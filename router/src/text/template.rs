//! Chat templates: Jinja as Hugging Face runs it, bounded.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};

use super::{
    model::{ChatOptions, Rendered, TextError},
    output::{self, Format, Tool},
    tokenizer::{Marks, Tokenizer},
};

/// Instructions that a template may run: 1e5 messages take a few million.
const FUEL: u64 = 50_000_000;
/// Nested calls and blocks.
const RECURSION: usize = 200;
const NAME: &str = "chat";

/// A compiled chat template.
pub struct Template {
    environment: Environment<'static>,
    variables: Variables,
    knows: Knows,
}

/// What a template makes use of, as far as its source tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knows {
    /// Tools, and how the model calls them.
    pub tools: Option<Format>,
    /// Past calls' arguments as objects, not as text.
    pub objects: bool,
    /// Reasoning sections.
    pub reasoning: bool,
    /// A switch that leaves them out.
    pub switch: bool,
}

/// What the model itself gives its template.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    /// The name of the token that starts a text.
    pub bos_token: String,
    /// The name of the token that ends one.
    pub eos_token: String,
}

// === impl Template ===

impl Template {
    /// Compiles a template; the error says where it is wrong.
    pub fn new(source: String, variables: Variables) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: String| strftime(&format, SystemTime::now()));
        environment.add_filter("tojson", tojson);
        let knows = Knows::of(&source);
        environment.add_template_owned(NAME, without_generation_tags(&source)).map_err(|e| e.to_string())?;
        Ok(Self { environment, variables, knows })
    }

    /// What it makes use of.
    pub fn knows(&self) -> Knows {
        self.knows
    }

    pub(crate) fn render(
        &self,
        tokenizer: &Tokenizer,
        mut messages: Vec<serde_json::Value>,
        options: &ChatOptions,
    ) -> Result<Rendered, TextError> {
        let mut tools: Vec<_> = options.tools.iter().map(Tool::to_json).collect();
        let knows_no_tools = self.knows.tools.is_none();
        if knows_no_tools || self.knows.objects {
            output::parse_arguments(&mut messages);
        }
        if knows_no_tools {
            output::as_text(&mut messages);
            if !tools.is_empty() {
                instruct(&mut messages, output::instructions(&options.tools));
            }
        }
        let mut marks = Marks::default();
        if options.safe {
            for json in messages.iter_mut().chain(&mut tools) {
                guard(json, tokenizer, &mut marks)?;
            }
        }
        let tools =
            if tools.is_empty() { Value::from(()) } else { Value::from_iter(tools.into_iter().map(value)) };
        let mut context = vec![
            ("messages".to_owned(), Value::from_iter(messages.into_iter().map(value))),
            ("add_generation_prompt".to_owned(), Value::from(options.add_generation_prompt)),
            ("bos_token".to_owned(), Value::from(&*self.variables.bos_token)),
            ("eos_token".to_owned(), Value::from(&*self.variables.eos_token)),
            ("tools".to_owned(), tools),
            ("documents".to_owned(), Value::from(())),
        ];
        context.extend(options.variables.iter().map(|(name, json)| (name.clone(), value(json.clone()))));
        let template = self.environment.get_template(NAME).map_err(|e| TextError::Template(e.to_string()))?;
        let marked = template.render(Value::from_pairs(context)).map_err(refusal)?;
        Ok(Rendered { marked, guarded: marks.into_strings() })
    }
}

/// Adds to the system message, or makes one.
fn instruct(messages: &mut Vec<serde_json::Value>, text: String) {
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let before = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{before}\n\n{text}").into();
        }
        _ => messages.insert(0, serde_json::json!({"role": "system", "content": text})),
    }
}

// === impl Knows ===

impl Knows {
    fn of(source: &str) -> Self {
        Self {
            tools: Format::of_template(source),
            objects: source.contains("arguments | tojson") || source.contains("arguments|tojson"),
            reasoning: source.contains("<think>") || source.contains("</think>"),
            switch: source.contains("enable_thinking") || source.contains("thinking is "),
        }
    }
}

// === Rendering ===

/// A template's own words, if it raised; else what went wrong in it.
fn refusal(error: Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return TextError::Refused(message.clone());
        }
        cause = error.source();
    }
    TextError::Template(error.to_string())
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// Marks the special-token strings in all of a message but its role.
fn guard(json: &mut serde_json::Value, tokenizer: &Tokenizer, marks: &mut Marks) -> Result<(), TextError> {
    match json {
        serde_json::Value::String(text) => tokenizer.guard(text, marks),
        serde_json::Value::Array(list) => list.iter_mut().try_for_each(|item| guard(item, tokenizer, marks)),
        serde_json::Value::Object(map) => map
            .iter_mut()
            .filter(|(key, _)| *key != "role")
            .try_for_each(|(_, item)| guard(item, tokenizer, marks)),
        _ => Ok(()),
    }
}

fn value(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(bool) => Value::from(bool),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(list) => Value::from_iter(list.into_iter().map(value)),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.into_iter().map(|(key, json)| (key, value(json))))
        }
    }
}

/// Python's `json.dumps(…, ensure_ascii=False)`, which Hugging Face puts in place of Jinja's `tojson`: a space
/// after `,` and `:`, nothing escaped for HTML.
fn tojson(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let _: (Option<Value>, Option<Value>, Option<Value>) =
        (arguments.get("ensure_ascii")?, arguments.get("separators")?, arguments.get("sort_keys")?);
    arguments.assert_all_used()?;
    let mut json = String::new();
    write_json(value, indent, 0, &mut json)?;
    Ok(Value::from(json))
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, json: &mut String) -> Result<(), Error> {
    if depth > RECURSION {
        return Err(Error::new(ErrorKind::BadSerialization, "nested too deep"));
    }
    let line = |depth: usize, json: &mut String| {
        if let Some(indent) = indent {
            json.push('\n');
            json.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => json.push_str("null"),
        ValueKind::Bool | ValueKind::Number => json.push_str(&value.to_string().to_lowercase()),
        ValueKind::Map => {
            json.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                json.push_str(if i > 0 { separator } else { "" });
                line(depth + 1, json);
                write_string(&key.to_string(), json);
                json.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, json)?;
            }
            if value.len() != Some(0) {
                line(depth, json);
            }
            json.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            json.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                json.push_str(if i > 0 { separator } else { "" });
                line(depth + 1, json);
                write_json(&item, indent, depth + 1, json)?;
            }
            if value.len() != Some(0) {
                line(depth, json);
            }
            json.push(']');
        }
        _ => write_string(&value.to_string(), json),
    }
    Ok(())
}

fn write_string(text: &str, json: &mut String) {
    // A string always serializes.
    json.push_str(&serde_json::Value::from(text).to_string());
}

/// `{% generation %}` marks the assistant's tokens for training: here the tags become ones that do nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        out.push_str(before);
        let name = tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag.replace(name, "if true")),
            "endgeneration" => out.push_str(&tag.replace(name, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Python's strftime, UTC, for the directives that templates use; others stay as they are.
fn strftime(format: &str, now: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('-') => match chars.next() {
                Some('d') => out += &day.to_string(),
                Some('m') => out += &month.to_string(),
                other => out.extend(['%', '-'].into_iter().chain(other)),
            },
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", second / 3600),
            Some('M') => out += &format!("{:02}", second / 60 % 60),
            Some('S') => out += &format!("{:02}", second % 60),
            Some('%') => out.push('%'),
            other => out.extend(['%'].into_iter().chain(other)),
        }
    }
    out
}

/// Days since 1970 → (year, month, day): Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests;
