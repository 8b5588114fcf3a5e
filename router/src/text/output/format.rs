//! Formats of tool calls: which one a model's template speaks, what a model that knows none is told, and the
//! grammar under which a model can't but call.

use serde_json::{Map, Value, json};
use volley_grammar::{Error, Grammar, Vocabulary};

/// The most calls that a forced answer has: models that are lost would never end the list.
const FORCED_CALLS: usize = 8;

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`.
    Hermes,
    /// `{"name": …, "parameters": …}`.
    Llama,
    /// `[f(a=1)]`.
    Pythonic,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`.
    Mistral,
}

/// Whether a model's text begins with reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// No.
    #[default]
    Never,
    /// It may, between `<think>` and `</think>`.
    Tagged,
    /// The prompt has opened the section already.
    Open,
}

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of an object: its arguments.
    pub parameters: Value,
}

// === impl Format ===

impl Format {
    /// The format that a chat template speaks; none if it knows no tools.
    pub fn of_template(source: &str) -> Option<Self> {
        if !source.contains("tools") {
            return None;
        }
        Some(if source.contains("[TOOL_CALLS]") {
            Self::Mistral
        } else if source.contains("<tool_call>") {
            Self::Hermes
        } else if source.contains("[func_name1(") || source.contains("python_start") {
            Self::Pythonic
        } else if source.contains("<|python_tag|>") || source.contains("\"parameters\": ") {
            Self::Llama
        } else {
            Self::Hermes
        })
    }

    /// The names of tokens that a reader must see, though they are special in some vocabularies.
    pub(crate) fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama => &["<|python_tag|>"],
            Self::Pythonic => &[],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        }
    }

    /// Under this grammar a model calls one of these tools, and, if `several`, perhaps more.
    pub(crate) fn grammar(
        self,
        tools: &[Tool],
        several: bool,
        vocabulary: &Vocabulary,
    ) -> Result<Grammar, Error> {
        let calls: Vec<String> = tools.iter().map(|tool| self.call(tool)).collect::<Result<_, _>>()?;
        let call = calls.join(" | ");
        let more = if several { FORCED_CALLS - 1 } else { 0 };
        let repeated = |between: &str| match more {
            0 => String::new(),
            more => format!("({} call){{0,{more}}}", Grammar::literal(between)),
        };
        let tag = |name: &str| match vocabulary.special(name) {
            Some(id) => Grammar::token(id),
            None => Grammar::literal(name),
        };
        let newline = Grammar::literal("\n");
        let start = match self {
            Self::Hermes => {
                let (open, close) = (tag("<tool_call>"), tag("</tool_call>"));
                let rules = format!(
                    "start: call {}\ncall: {open} {newline} object {newline} {close}\n",
                    repeated("\n")
                );
                return Grammar::lark(format!("{rules}object: {call}\n"));
            }
            Self::Llama => "call".to_owned(),
            Self::Pythonic => format!("\"[\" call {} \"]\"", repeated(", ")),
            Self::Mistral => format!("{} \"[\" call {} \"]\"", tag("[TOOL_CALLS]"), repeated(", ")),
        };
        let rules = self.argument_rules(tools)?;
        Grammar::lark(format!("start: {start}\ncall: {call}\n{rules}"))
    }

    /// One tool's call, as a term of the grammar.
    fn call(self, tool: &Tool) -> Result<String, Error> {
        let key = match self {
            Self::Pythonic => {
                return Ok(format!(
                    "{} arguments_{}",
                    Grammar::literal(&format!("{}(", tool.name)),
                    hex(&tool.name)
                ));
            }
            Self::Llama => "parameters",
            Self::Hermes | Self::Mistral => "arguments",
        };
        let name = Value::from(tool.name.as_str());
        let open = Grammar::literal(&format!("{{\"name\": {name}, \"{key}\": "));
        Ok(format!("{open} {} {}", Grammar::json(&tool.parameters)?, Grammar::literal("}")))
    }

    /// What stands in the parentheses of each tool: `a=…, b=…)`, first the arguments that must be there.
    fn argument_rules(self, tools: &[Tool]) -> Result<String, Error> {
        let mut rules = String::new();
        for tool in tools.iter().filter(|_| self == Self::Pythonic) {
            let (mut required, mut optional) = (Vec::new(), Vec::new());
            let none = Map::new();
            let must = |name: &str| {
                let names = tool.parameters.get("required").and_then(Value::as_array);
                names.is_some_and(|names| names.iter().any(|one| one == name))
            };
            for (name, schema) in
                tool.parameters.get("properties").and_then(Value::as_object).unwrap_or(&none)
            {
                let term = format!(
                    "{} {}",
                    Grammar::literal(&format!("{name}=")),
                    argument(schema, &tool.parameters)?
                );
                if must(name) { required.push(term) } else { optional.push(term) }
            }
            let id = hex(&tool.name);
            // Each rule is the rest of the list from one optional argument on, behind an argument.
            for (i, term) in optional.iter().enumerate() {
                rules += &format!("rest_{id}_{i}: (\", \" {term})? rest_{id}_{}\n", i + 1);
            }
            rules += &format!("rest_{id}_{}: \")\"\n", optional.len());
            let lists = match required.is_empty() {
                false => vec![format!("{} rest_{id}_0", required.join(" \", \" "))],
                true => {
                    let first = |(i, term): (usize, &String)| format!("{term} rest_{id}_{}", i + 1);
                    optional.iter().enumerate().map(first).chain(["\")\"".to_owned()]).collect()
                }
            };
            rules += &format!("arguments_{id}: {}\n", lists.join(" | "));
        }
        Ok(rules)
    }
}

/// A single argument: its schema, with the definitions of the whole.
fn argument(schema: &Value, whole: &Value) -> Result<String, Error> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    if let Value::Object(map) = &mut schema {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = whole.get(key) {
                map.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    Grammar::json(&schema)
}

/// A name that Lark takes for a rule's.
fn hex(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

// === impl Tool ===

impl Tool {
    /// As templates take it, and as clients send it.
    pub fn to_json(&self) -> Value {
        let mut function = json!({"name": self.name});
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        function["parameters"] = self.parameters.clone();
        json!({"type": "function", "function": function})
    }
}

/// What a model is told whose template knows no tools: the words of Hermes' own prompt, in short.
pub(crate) fn instructions(tools: &[Tool]) -> String {
    let list: Vec<String> = tools.iter().map(|tool| tool.to_json().to_string()).collect();
    format!(
        "You may call functions to help with the user's request. The functions, as JSON schemas:\n<tools>\n{}\n\
         </tools>\nFor each call write a JSON object with the function's name and arguments within tags:\n\
         <tool_call>\n{{\"name\": <function-name>, \"arguments\": <arguments-object>}}\n</tool_call>",
        list.join("\n")
    )
}

/// Past calls and results as text, for a template that knows none: calls as the model writes them, results as the
/// user's words.
pub(crate) fn as_text(messages: &mut [Value]) {
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        let mut content = message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(Value::Array(calls)) = message.remove("tool_calls") {
            for function in calls.iter().filter_map(|call| call.get("function")) {
                let call = json!({"name": function["name"], "arguments": function["arguments"]});
                let space = if content.is_empty() { "" } else { "\n" };
                content += &format!("{space}<tool_call>\n{call}\n</tool_call>");
            }
        } else if message.get("role").is_some_and(|role| role == "tool") {
            content = format!("<tool_response>\n{content}\n</tool_response>");
            message.insert("role".into(), "user".into());
        } else {
            continue;
        }
        message.insert("content".into(), content.into());
    }
}

/// Puts the arguments of past calls, which come as text, into the form that most templates want: an object, where
/// the text is one.
pub(crate) fn parse_arguments(messages: &mut [Value]) {
    for message in messages {
        let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else { continue };
        for arguments in calls.iter_mut().filter_map(|call| call.get_mut("function")?.get_mut("arguments")) {
            let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
            if let Some(object) = parsed.filter(Value::is_object) {
                *arguments = object;
            }
        }
    }
}
