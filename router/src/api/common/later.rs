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
const ONLY_TEXT: Harmless = |value| *value == json!(["text"]);

/// Every such field, and when it is harmless; `null` always is.
const FIELDS: &[(&str, Harmless)] = &[
    ("acceptance_probs_override", NEVER),
    ("audio", NEVER),
    ("forced_generation", NEVER),
    ("images", EMPTY),
    ("modalities", ONLY_TEXT),
    ("moderation", NEVER),
    ("suffix", EMPTY),
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
        assert_eq!(read(json!({"model": "m", "audio": null, "suffix": "", "modalities": ["text"]})), Ok(1));
        for (name, value) in [("suffix", json!("x")), ("audio", json!({"voice": "x"}))] {
            let request = Value::Object(Map::from_iter([(name.to_owned(), value)]));
            assert_eq!(read(request), Err(format!("{name} is not supported")));
        }
    }
}
