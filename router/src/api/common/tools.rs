//! The functions that a model may call, and whether it may, must, or must not: today's fields and the
//! ones before them.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use volley_grammar::Grammar;

use super::listen::Hearing;
use crate::{
    engine::{GrammarError, Model},
    http::error::ApiError,
    text::output::{Format, Reading, Thinking, Tool},
};

/// The most functions of a request.
const MOST: usize = 128;

/// An entry of `tools`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ToolField {
    /// `function`.
    pub r#type: Option<String>,
    /// Which.
    pub function: Option<FunctionField>,
}

/// A function, in `tools` or in `functions`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct FunctionField {
    /// Letters, digits, `_` and `-`, at most 64.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of its arguments, an object; absent: there are none.
    pub parameters: Option<Value>,
    /// Accepted: forced calls are always valid.
    pub strict: Option<bool>,
}

/// The fields of a request that are about calls.
#[derive(Debug, Default)]
pub(crate) struct ToolFields {
    pub tools: Option<Vec<ToolField>>,
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub functions: Option<Vec<FunctionField>>,
    pub function_call: Option<Value>,
}

/// What a request says of calls.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    tools: Vec<Tool>,
    choice: Choice,
    parallel: bool,
    /// The request used `functions`: it is answered alike.
    pub(crate) legacy: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Choice {
    #[default]
    None,
    Auto,
    Required,
    Named(String),
}

// === impl Tools ===

impl Tools {
    /// Checks the fields.
    pub(crate) fn check(fields: ToolFields) -> Result<Self, ApiError> {
        let tools = fields.tools.filter(|tools| !tools.is_empty());
        let functions = fields.functions.filter(|functions| !functions.is_empty());
        let legacy = functions.is_some();
        let tools = match (tools, functions) {
            (Some(_), Some(_)) => {
                return Err(ApiError::value("functions", "tools and functions exclude each other"));
            }
            (Some(tools), None) => checked("tools", tools.into_iter().map(ToolField::function))?,
            (None, Some(functions)) => {
                let numbered = functions.into_iter().map(|function| Ok((String::new(), function)));
                checked("functions", numbered)?
            }
            (None, None) => Vec::new(),
        };
        let choice = match (fields.tool_choice, fields.function_call) {
            (Some(_), Some(_)) => {
                return Err(ApiError::value(
                    "function_call",
                    "tool_choice and function_call exclude each other",
                ));
            }
            (Some(choice), None) => Choice::of("tool_choice", &choice, &tools)?,
            (None, Some(choice)) => Choice::of("function_call", &choice, &tools)?,
            (None, None) => Choice::Auto,
        };
        let parallel = fields.parallel_tool_calls.unwrap_or(true) && !legacy;
        Ok(Self { tools, choice, parallel, legacy })
    }

    /// Those that the template is told of.
    pub(crate) fn told(&self) -> Vec<Tool> {
        match self.choice {
            Choice::None => Vec::new(),
            _ => self.tools.clone(),
        }
    }

    /// Whether the answer must be a call.
    pub(crate) fn forced(&self) -> bool {
        matches!(self.choice, Choice::Required | Choice::Named(_))
    }

    /// The grammar of forced calls.
    pub(crate) fn grammar(&self, format: Format, model: &Model) -> Result<Grammar, ApiError> {
        let (tools, several): (Vec<Tool>, bool) = match &self.choice {
            // A named function is called once.
            Choice::Named(name) => {
                (self.tools.iter().filter(|tool| tool.name == *name).cloned().collect(), false)
            }
            _ => (self.tools.clone(), self.parallel),
        };
        let grammar = format.grammar(&tools, several, model.tokenizer().vocabulary());
        grammar.map_err(|error| ApiError::grammar(GrammarError::Refused(error), "tools"))
    }

    /// How the answer is read.
    pub(crate) fn hearing(&self, format: Format, reasoning: Thinking) -> Hearing {
        let told = !self.tools.is_empty() && self.choice != Choice::None;
        let names = self.tools.iter().map(|tool| tool.name.clone()).collect();
        let reading = Reading { reasoning, calls: told.then_some(format), names, forced: self.forced() };
        Hearing { reading, single_call: !self.parallel }
    }
}

/// Checks functions, each with its path below `field`.
fn checked(
    field: &str,
    functions: impl ExactSizeIterator<Item = Result<(String, FunctionField), (String, ApiError)>>,
) -> Result<Vec<Tool>, ApiError> {
    if functions.len() > MOST {
        return Err(ApiError::value(
            field,
            format!("{field} may have at most {MOST} entries: {}", functions.len()),
        ));
    }
    let mut names = HashSet::new();
    let mut tools = Vec::with_capacity(functions.len());
    for (index, function) in functions.enumerate() {
        let at = |below: &str| format!("{field}[{index}]{below}");
        let (below, function) = function.map_err(|(below, error)| error.at(at(&below)))?;
        let tool = function.check(&at(&below))?;
        if !names.insert(tool.name.clone()) {
            return Err(ApiError::value(
                at(&format!("{below}.name")),
                format!("{} is there twice", tool.name),
            ));
        }
        tools.push(tool);
    }
    Ok(tools)
}

// === impl ToolField ===

impl ToolField {
    /// The function, and its path below the entry's.
    fn function(self) -> Result<(String, FunctionField), (String, ApiError)> {
        match self.r#type.as_deref() {
            None => Err((".type".to_owned(), ApiError::missing(""))),
            Some("function") => match self.function {
                Some(function) => Ok((".function".to_owned(), function)),
                None => Err((".function".to_owned(), ApiError::missing(""))),
            },
            Some(_) => Err((".type".to_owned(), ApiError::unsupported("a tool that is no function"))),
        }
    }
}

impl FunctionField {
    fn check(self, path: &str) -> Result<Tool, ApiError> {
        let at = |field: &str| format!("{path}.{field}");
        let name = self.name.ok_or_else(|| ApiError::missing(at("name")))?;
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !(1..=64).contains(&name.len()) || !name.chars().all(letter) {
            return Err(ApiError::value(
                at("name"),
                "a function's name has 1 to 64 letters, digits, _ and -",
            ));
        }
        let parameters = self.parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}}));
        let is_object = match parameters.get("type") {
            Some(name) => name == "object",
            None => parameters.is_object(),
        };
        if !is_object {
            return Err(ApiError::value(at("parameters"), "parameters must be the schema of an object"));
        }
        let schema = Grammar::json_schema(&parameters);
        schema.map_err(|error| ApiError::grammar(GrammarError::Refused(error), &at("parameters")))?;
        Ok(Tool { name, description: self.description, parameters })
    }
}

// === impl Choice ===

impl Choice {
    fn of(field: &str, value: &Value, tools: &[Tool]) -> Result<Self, ApiError> {
        let choice = match value {
            Value::String(word) => match word.as_str() {
                "none" => Self::None,
                "auto" => Self::Auto,
                "required" | "any" if field == "tool_choice" => Self::Required,
                other => {
                    let other: String = other.chars().take(32).collect();
                    return Err(ApiError::value(field, format!("unknown {field} '{other}'")));
                }
            },
            Value::Object(map) => {
                let name =
                    map.get("function").and_then(|function| function.get("name")).or_else(|| map.get("name"));
                let name =
                    name.and_then(Value::as_str).ok_or_else(|| ApiError::missing(format!("{field}.name")))?;
                Self::Named(name.to_owned())
            }
            _ => {
                let message = format!("{field} is a word or names a function");
                return Err(ApiError::with_code("invalid_type", field, message));
            }
        };
        match &choice {
            Self::Required | Self::Named(_) if tools.is_empty() => {
                Err(ApiError::value(field, format!("{field} needs tools to choose from")))
            }
            Self::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
                let name: String = name.chars().take(64).collect();
                Err(ApiError::value(field, format!("{field} names an unknown function: {name}")))
            }
            _ => Ok(choice),
        }
    }
}
