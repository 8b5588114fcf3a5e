//! Fields that clients know and this server does not act on (yet): the value that changes nothing is taken,
//! any other refused by name, so that nobody believes in an effect that isn't there.

use serde_json::{Map, Value, json};

use crate::http::error::ApiError;

/// Whether a value changes nothing.
type Harmless = fn(&Value) -> bool;

const NEVER: Harmless = |_| false;
const EMPTY: Harmless = |value| {
    matches!(value, Value::Array(list) if list.is_empty())
        || matches!(value, Value::Object(map) if map.is_empty())
        || matches!(value, Value::String(text) if text.is_empty())
};
const BOOLEAN: Harmless = |value| value.is_boolean();
const NO_CALLS: Harmless = |value| matches!(value.as_str(), Some("none" | "auto"));
const ONLY_TEXT: Harmless = |value| *value == json!(["text"]);
const TEXT_FORMAT: Harmless = |value| *value == json!({"type": "text"});
const NO_REASONING: Harmless = |value| *value == Value::Bool(false) || value.as_str() == Some("none");
const NO_THINKING: Harmless = |value| *value == json!({"type": "disabled"});

/// Every such field, and when it is harmless; `null` always is.
const FIELDS: &[(&str, Harmless)] = &[
    ("acceptance_probs_override", NEVER),
    ("audio", NEVER),
    ("forced_generation", NEVER),
    ("function_call", NO_CALLS),
    ("functions", EMPTY),
    ("images", EMPTY),
    ("modalities", ONLY_TEXT),
    ("moderation", NEVER),
    ("parallel_tool_calls", BOOLEAN),
    ("reasoning_effort", NO_REASONING),
    ("reasoning_history", NEVER),
    ("response_format", TEXT_FORMAT),
    ("suffix", EMPTY),
    ("thinking", NO_THINKING),
    ("tool_choice", NO_CALLS),
    ("tools", EMPTY),
    ("web_search_options", NEVER),
];

/// Takes these fields out of a request, or names the first that would have an effect.
pub(super) fn refuse(request: &mut Map<String, Value>) -> Result<(), ApiError> {
    for (name, harmless) in FIELDS {
        match request.get(*name) {
            Some(value) if !value.is_null() && !harmless(value) => {
                return Err(ApiError::unsupported(*name));
            }
            _ => {}
        }
    }
    request.retain(|name, _| !FIELDS.iter().any(|(known, _)| known == name));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: Value) -> Result<usize, String> {
        let Value::Object(mut request) = request else { unreachable!() };
        refuse(&mut request).map(|()| request.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_pass_and_effects_are_refused_by_name() {
        assert_eq!(
            read(
                json!({"model": "m", "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
                "audio": null, "suffix": "", "modalities": ["text"], "functions": null})
            ),
            Ok(1)
        );
        for (name, value) in [
            ("suffix", json!("x")),
            ("response_format", json!({"type": "json_object"})),
            ("tools", json!([{}])),
        ] {
            let request = Value::Object(Map::from_iter([(name.to_owned(), value)]));
            assert_eq!(read(request), Err(format!("{name} is not supported")));
        }
    }
}
