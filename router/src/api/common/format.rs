//! `response_format` and its relatives: what a text must be.

use serde::Deserialize;
use serde_json::Value;
use volley_grammar::Grammar;

use super::parameters::Parameters;
use crate::{engine::GrammarError, http::error::ApiError};

/// What the text must be.
#[derive(Debug, Deserialize)]
pub struct ResponseFormat {
    /// `text`, `json_object`, `json_schema`, `grammar`, `regex` or `choice`.
    pub r#type: Option<String>,
    /// With `json_object`: the object's schema.
    pub schema: Option<Value>,
    /// OpenAI's `{name, schema, strict}`, or the schema itself, or a string with it.
    pub json_schema: Option<Value>,
    /// With `grammar`: GBNF.
    pub grammar: Option<String>,
    /// With `regex`.
    pub regex: Option<String>,
    /// With `choice`.
    pub choice: Option<Vec<String>>,
}

/// A grammar, and the field that it came from.
pub(crate) type Form = (Grammar, &'static str);

const FORMAT: &str = "response_format";

/// The grammar of a request's text, if any is asked for.
pub(super) fn check(parameters: &Parameters) -> Result<Option<Form>, ApiError> {
    let form = |param: &'static str, grammar: Result<Grammar, volley_grammar::Error>| match grammar {
        Ok(grammar) => Ok((grammar, param)),
        Err(error) => Err(ApiError::grammar(GrammarError::Refused(error), param)),
    };
    let mut forms = Vec::new();
    if let Some(format) = &parameters.response_format {
        forms.extend(format.grammar()?.map(|grammar| form(FORMAT, grammar)));
    }
    if let Some(schema) = &parameters.guided_json {
        forms.push(form("guided_json", Grammar::json_schema(&written_out(schema))));
    }
    forms.extend(parameters.guided_regex.as_ref().map(|regex| form("guided_regex", Grammar::regex(regex))));
    forms
        .extend(parameters.guided_choice.as_ref().map(|texts| form("guided_choice", Grammar::choice(texts))));
    forms.extend(parameters.guided_grammar.as_ref().map(|text| form("guided_grammar", Grammar::gbnf(text))));
    let mut forms = forms.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
    match (forms.next(), forms.next()) {
        (Some((_, first)), Some((_, second))) => {
            Err(ApiError::value(second, format!("{first} and {second} exclude each other")))
        }
        (form, _) => Ok(form),
    }
}

/// A schema that came as a string is the schema in it.
fn written_out(schema: &Value) -> Value {
    let inner = schema.as_str().and_then(|text| serde_json::from_str(text).ok());
    inner.unwrap_or_else(|| schema.clone())
}

// === impl ResponseFormat ===

impl ResponseFormat {
    /// The grammar, or why there is none; nothing where any text will do.
    fn grammar(&self) -> Result<Option<Result<Grammar, volley_grammar::Error>>, ApiError> {
        let missing = |field: &str| ApiError::missing(format!("{FORMAT}.{field}"));
        let grammar = match self.r#type.as_deref().ok_or_else(|| missing("type"))? {
            "text" => return Ok(None),
            "json_object" => match &self.schema {
                None => Ok(Grammar::json_object()),
                Some(schema) => Grammar::json_schema(&written_out(schema)),
            },
            "json_schema" => {
                let given = self.json_schema.as_ref().or(self.schema.as_ref());
                let schema = given.and_then(schema_in).ok_or_else(|| missing("json_schema.schema"))?;
                Grammar::json_schema(&schema)
            }
            "grammar" => Grammar::gbnf(self.grammar.as_ref().ok_or_else(|| missing("grammar"))?),
            "regex" => Grammar::regex(self.regex.as_ref().ok_or_else(|| missing("regex"))?),
            "choice" => Grammar::choice(self.choice.as_ref().ok_or_else(|| missing("choice"))?),
            other => {
                let name: String = other.chars().take(32).collect();
                let message = format!(
                    "unknown response format '{name}'; expected text, json_object, json_schema, grammar, regex or choice"
                );
                return Err(ApiError::value("response_format.type", message));
            }
        };
        Ok(Some(grammar))
    }
}

/// The schema in any of its three shapes; none where a wrapper has none.
fn schema_in(given: &Value) -> Option<Value> {
    const SCHEMA: [&str; 10] =
        ["type", "properties", "items", "anyOf", "oneOf", "allOf", "$ref", "enum", "const", "$defs"];
    let given = written_out(given);
    match given.as_object() {
        Some(wrapper) if wrapper.contains_key("schema") && !wrapper.contains_key("type") => {
            wrapper.get("schema").filter(|schema| !schema.is_null()).map(written_out)
        }
        Some(wrapper) if wrapper.get("name").is_some_and(Value::is_string) => {
            SCHEMA.iter().any(|keyword| wrapper.contains_key(*keyword)).then_some(given)
        }
        _ => Some(given),
    }
}
