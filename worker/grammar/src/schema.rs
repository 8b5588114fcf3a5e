use serde_json::Value;
use crate::Error;
pub(crate) fn any_object() -> String { "%json {\"type\":\"object\"}".into() }
pub(crate) fn term(schema: &Value) -> Result<String, Error> { Ok(format!("%json {schema}")) }
