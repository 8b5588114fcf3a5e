//! JSON schemas, checked and made what the grammar engine takes.
//!
//! Objects are closed: where a schema lists properties and says nothing of others, there are no others, as
//! Fireworks documents (`unevaluatedProperties: false`). Where several schemas describe one object together
//! (`allOf`, or properties beside `anyOf`), none of them is the whole list, and all stay as they are.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::Error;

/// The deepest nesting of a schema.
const DEPTH: usize = 128;
/// The most schemas in a schema.
const SCHEMAS: usize = 20_000;
/// The most values of an enumeration.
const VALUES: usize = 10_000;
/// Of a client's own text, messages repeat at most this many characters.
const QUOTED: usize = 120;
/// White space between tokens of JSON: a space, or a new line with its indentation. Without a bound a model that
/// is lost would write nothing else.
const SPACE: &str = r"[ ]|\r?\n[ \t]{0,32}";

/// Formats that strings are held to. Others describe a value and bind nobody, as JSON Schema has it.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// Keywords whose value is a schema.
const ONE: [&str; 7] =
    ["additionalProperties", "items", "not", "if", "then", "else", "unevaluatedProperties"];
/// Keywords whose value is a list of schemas.
const LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
/// Keywords whose value has schemas by name.
const MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Keywords that describe the same value together.
const TOGETHER: [&str; 5] = ["properties", "$ref", "allOf", "anyOf", "oneOf"];

/// Walks a schema once to see what is wrong with it, and which definitions must stay open.
#[derive(Default)]
struct Survey {
    schemas: usize,
    open: HashSet<String>,
}

/// Any JSON object, as a term of a Lark grammar.
pub(crate) fn any_object() -> String {
    json_term(json!({"type": "object"}))
}

/// JSON that a schema describes, as a term of a Lark grammar.
pub(crate) fn term(schema: &Value) -> Result<String, Error> {
    let mut survey = Survey::default();
    survey.look(schema, schema, false, 0)?;
    // A definition may be used in several places; one that is part of a whole anywhere stays open.
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    close(&mut schema, false, "#", &survey.open);
    Ok(json_term(schema))
}

fn json_term(mut schema: Value) -> String {
    if let Value::Object(map) = &mut schema {
        let options = json!({
            "whitespace_flexible": false, "whitespace_pattern": SPACE, "coerce_one_of": true,
            "item_separator": ",", "key_separator": ":",
        });
        map.insert("x-guidance".to_owned(), options);
    }
    format!("%json {schema}")
}

fn not_understood(instance: &Value, reason: &str) -> Error {
    let text = instance.to_string();
    let mut quoted: String = text.chars().take(QUOTED).collect();
    if quoted.len() < text.len() {
        quoted.push('…');
    }
    Error::Invalid(format!(
        "JSON Schema not supported: could not understand the instance `{quoted}`: {reason}"
    ))
}

// === impl Survey ===

impl Survey {
    /// `part`: other schemas describe the same value beside this one.
    fn look(&mut self, root: &Value, schema: &Value, part: bool, depth: usize) -> Result<(), Error> {
        self.schemas += 1;
        if depth > DEPTH || self.schemas > SCHEMAS {
            let message = format!("the schema is too complex: at most {DEPTH} levels and {SCHEMAS} schemas");
            return Err(Error::TooComplex(message));
        }
        let map = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(map) => map,
            _ => return Err(not_understood(schema, "a schema is an object or a boolean")),
        };
        check_type(schema, map)?;
        check_values(map)?;
        let together = part || is_part(map);
        if let Some(reference) = map.get("$ref") {
            self.look_up(root, schema, reference, together)?;
        }
        for keyword in ONE {
            if let Some(inner) = map.get(keyword) {
                // Draft 7's `items` may be a list.
                match (keyword, inner) {
                    ("items", Value::Array(list)) => {
                        list.iter().try_for_each(|one| self.look(root, one, false, depth + 1))?;
                    }
                    _ => self.look(root, inner, false, depth + 1)?,
                }
            }
        }
        for keyword in LISTS {
            let Some(list) = map.get(keyword) else { continue };
            let list = list.as_array().filter(|list| !list.is_empty() || keyword == "prefixItems");
            let list =
                list.ok_or_else(|| not_understood(schema, &format!("{keyword} must be a list of schemas")))?;
            let part = keyword != "prefixItems" && together;
            list.iter().try_for_each(|one| self.look(root, one, part, depth + 1))?;
        }
        for keyword in MAPS {
            let Some(named) = map.get(keyword) else { continue };
            let named = named.as_object();
            let named =
                named.ok_or_else(|| not_understood(schema, &format!("{keyword} must be an object")))?;
            named.values().try_for_each(|one| self.look(root, one, false, depth + 1))?;
        }
        Ok(())
    }

    /// Checks that a reference leads somewhere in this very schema.
    fn look_up(&mut self, root: &Value, at: &Value, reference: &Value, part: bool) -> Result<(), Error> {
        let mut target = reference.as_str().ok_or_else(|| not_understood(at, "$ref must be a string"))?;
        let mut seen = HashSet::new();
        loop {
            if !target.starts_with('#') {
                return Err(not_understood(at, "a $ref to elsewhere is not followed; use #/$defs/…"));
            }
            let found = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
            let found = found.ok_or_else(|| not_understood(at, "the $ref leads nowhere"))?;
            if part {
                self.open.insert(target.to_owned());
            }
            // A chain of references that never comes to a schema describes nothing.
            let next = found.as_object().filter(|map| map.len() == 1).and_then(|map| map.get("$ref"));
            match next.and_then(Value::as_str) {
                Some(_) if !seen.insert(target) => {
                    return Err(not_understood(at, "the $ref leads to itself"));
                }
                Some(next) => target = next,
                None => return Ok(()),
            }
        }
    }
}

fn check_type(schema: &Value, map: &Map<String, Value>) -> Result<(), Error> {
    const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
    let known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
    let good = match map.get("type") {
        None => true,
        Some(Value::Array(names)) => !names.is_empty() && names.iter().all(known),
        Some(name) => known(name),
    };
    if good { Ok(()) } else { Err(not_understood(schema, "no such type")) }
}

fn check_values(map: &Map<String, Value>) -> Result<(), Error> {
    let Some(values) = map.get("enum") else { return Ok(()) };
    match values.as_array().map(Vec::len) {
        Some(1..=VALUES) => Ok(()),
        Some(0) | None => Err(not_understood(values, "enum must be a list of at least one value")),
        Some(count) => Err(Error::TooComplex(format!(
            "the schema is too complex: an enum of {count} values; at most {VALUES}"
        ))),
    }
}

/// Whether more than one keyword of a schema describes the properties of the same object.
fn is_part(map: &Map<String, Value>) -> bool {
    let keywords = TOGETHER.iter().filter(|keyword| map.contains_key(**keyword)).count();
    keywords > 1 || map.get("allOf").and_then(Value::as_array).is_some_and(|list| list.len() > 1)
}

/// Closes the objects of a schema, and leaves out formats that nobody knows.
fn close(schema: &mut Value, part: bool, path: &str, open: &HashSet<String>) {
    let Value::Object(map) = schema else { return };
    if map.get("format").and_then(Value::as_str).is_some_and(|format| !FORMATS.contains(&format)) {
        map.remove("format");
    }
    let together = part || is_part(map) || open.contains(path);
    let lists = |keyword: &str| LISTS.contains(&keyword);
    for (keyword, inner) in map.iter_mut() {
        let path = format!("{path}/{keyword}");
        if MAPS.contains(&keyword.as_str())
            && let Value::Object(named) = inner
        {
            named.iter_mut().for_each(|(name, one)| close(one, false, &format!("{path}/{name}"), open));
        } else if lists(keyword) || ONE.contains(&keyword.as_str()) {
            let part = together && keyword != "prefixItems" && lists(keyword);
            match inner {
                Value::Array(list) => list.iter_mut().for_each(|one| close(one, part, &path, open)),
                one => close(one, false, &path, open),
            }
        }
    }
    let listed = |name: &Value| name.as_str().is_some_and(|name| map["properties"].get(name).is_some());
    let says_nothing =
        !["additionalProperties", "patternProperties"].iter().any(|keyword| map.contains_key(*keyword));
    let closes = map.get("properties").is_some_and(Value::is_object)
        && says_nothing
        && !together
        && map.get("required").and_then(Value::as_array).is_none_or(|names| names.iter().all(listed));
    if closes {
        map.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}
