//! Fields that clients know and this server does not act on (yet): the value that changes nothing is taken,
//! any other refused by name, so that nobody believes in an effect that isn't there.

use serde_json::{Map, Value, json};

use crate::http::error::ApiError;

/// Whether a value changes nothing.
type Harmless = fn(&Value, &Map<String, Value>) -> bool;

const NEVER: Harmless = |_, _| false;
const ZERO: Harmless = |value, _| value.as_f64() == Some(0.0);
const ONE: Harmless = |value, _| value.as_f64() == Some(1.0);
const FALSE: Harmless = |value, _| *value == Value::Bool(false);
const EMPTY: Harmless = |value, _| {
    matches!(value, Value::Array(list) if list.is_empty())
        || matches!(value, Value::Object(map) if map.is_empty())
        || matches!(value, Value::String(text) if text.is_empty())
};
const BOOLEAN: Harmless = |value, _| value.is_boolean();
const NO_CALLS: Harmless = |value, _| matches!(value.as_str(), Some("none" | "auto"));
const ONLY_TEXT: Harmless = |value, _| *value == json!(["text"]);
const TEXT_FORMAT: Harmless = |value, _| *value == json!({"type": "text"});
const NO_REASONING: Harmless = |value, _| *value == Value::Bool(false) || value.as_str() == Some("none");
const NO_THINKING: Harmless = |value, _| *value == json!({"type": "disabled"});
/// `best_of` is harmless when every candidate is returned.
const SAME_AS_N: Harmless =
    |value, request| value.as_f64() == request.get("n").and_then(Value::as_f64).or(Some(1.0));

/// Every such field, and when it is harmless; `null` always is.
const FIELDS: &[(&str, Harmless)] = &[
    ("acceptance_probs_override", NEVER),
    ("audio", NEVER),
    ("best_of", SAME_AS_N),
    ("echo_last", ZERO),
    ("forced_generation", NEVER),
    ("frequency_penalty", ZERO),
    ("function_call", NO_CALLS),
    ("functions", EMPTY),
    ("images", EMPTY),
    ("logit_bias", EMPTY),
    ("min_tokens", ZERO),
    ("mirostat_lr", NEVER),
    ("mirostat_target", NEVER),
    ("modalities", ONLY_TEXT),
    ("moderation", NEVER),
    ("parallel_tool_calls", BOOLEAN),
    ("perf_metrics_in_response", FALSE),
    ("prediction", NEVER),
    ("presence_penalty", ZERO),
    ("prompt_truncate_len", NEVER),
    ("raw_output", FALSE),
    ("reasoning_effort", NO_REASONING),
    ("reasoning_history", NEVER),
    ("repetition_penalty", ONE),
    ("response_format", TEXT_FORMAT),
    ("return_token_ids", FALSE),
    ("speculation", NEVER),
    ("suffix", EMPTY),
    ("thinking", NO_THINKING),
    ("tool_choice", NO_CALLS),
    ("tools", EMPTY),
    ("typical_p", ONE),
    ("web_search_options", NEVER),
];

/// Their names.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|(name, _)| *name)
}

/// Takes these fields out of a request, or names the first that would have an effect.
pub(super) fn refuse(request: &mut Map<String, Value>) -> Result<(), ApiError> {
    for (name, harmless) in FIELDS {
        match request.get(*name) {
            Some(value) if !value.is_null() && !harmless(value, request) => {
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
            read(json!({"model": "m", "frequency_penalty": 0.0, "presence_penalty": 0, "tools": [],
                "tool_choice": "auto", "response_format": {"type": "text"}, "audio": null, "best_of": 1,
                "logit_bias": {}, "suffix": "", "modalities": ["text"], "functions": null})),
            Ok(1)
        );
        assert_eq!(read(json!({"best_of": 3, "n": 3})), Ok(1));
        for (name, value) in [
            ("frequency_penalty", json!(0.5)),
            ("best_of", json!(2)),
            ("suffix", json!("x")),
            ("response_format", json!({"type": "json_object"})),
            ("logit_bias", json!({"1": 5})),
            ("tools", json!([{}])),
        ] {
            let request = Value::Object(Map::from_iter([(name.to_owned(), value)]));
            assert_eq!(read(request), Err(format!("{name} is not supported")));
        }
    }
}
