//! The kinds of value that request fields take, each with the leniency that clients need.
//!
//! SDKs and other languages write `5.0` for an integer and a bare string for a list of one; nothing writes
//! `"5"` for a number by intention.

use std::{borrow::Cow, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

/// A whole number: `5` and `5.0`, never `"5"`, `true` or `5.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integer(pub i64);

/// A number; JSON has neither NaN nor infinities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number(pub f64);

/// One string or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strings(pub Vec<String>);

/// A string, or a list of parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextOr<T> {
    /// A string.
    Text(String),
    /// Parts.
    Parts(Vec<T>),
}

/// `logprobs`: the type chooses the format of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogprobsField {
    /// OpenAI's chat format, or none.
    Flag(bool),
    /// The legacy format, with this many alternatives.
    Count(i64),
}

/// `prompt`, in its four shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptField {
    /// A string.
    Text(String),
    /// A list of anything that may be in it; which mixtures are allowed is checked later.
    List(Vec<PromptItem>),
}

/// An element of a `prompt` list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptItem {
    /// A prompt.
    Text(String),
    /// A token of the one prompt.
    Token(i64),
    /// A prompt.
    Tokens(Vec<i64>),
}

// === impl Integer ===

fn whole<E: de::Error>(value: f64) -> Result<i64, E> {
    // Both bounds are exact in f64; the upper one is the first value that does not fit.
    if value.fract() == 0.0 && (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&value) {
        Ok(value as i64)
    } else {
        Err(E::custom(format!("{value} is not a 64-bit integer")))
    }
}

fn signed<E: de::Error>(value: u64) -> Result<i64, E> {
    i64::try_from(value).map_err(|_| E::custom(format!("{value} is not a 64-bit integer")))
}

/// Methods of a visitor that takes integers, by way of `$wrap`.
macro_rules! integers {
    ($wrap:expr) => {
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
            Ok($wrap(value))
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
            signed(value).map($wrap)
        }
        fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
            whole(value).map($wrap)
        }
    };
}

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Integer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer")
            }
            integers!(Integer);
        }
        deserializer.deserialize_any(Whole)
    }
}

// === impl Number ===

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number(value as f64))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value as f64))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Number, E> {
                Ok(Number(value))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

// === impl Strings ===

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Strings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Strings, E> {
                Ok(Strings(vec![value.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Strings, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(items)).map(Strings)
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

// === impl TextOr ===

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrParts<T> {
            type Value = TextOr<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of parts")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<TextOr<T>, E> {
                Ok(TextOr::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<TextOr<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(parts)).map(TextOr::Parts)
            }
        }
        deserializer.deserialize_any(TextOrParts(PhantomData))
    }
}

// === impl LogprobsField ===

impl<'de> Deserialize<'de> for LogprobsField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FlagOrCount;
        impl Visitor<'_> for FlagOrCount {
            type Value = LogprobsField;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean or an integer")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<LogprobsField, E> {
                Ok(LogprobsField::Flag(value))
            }
            integers!(LogprobsField::Count);
        }
        deserializer.deserialize_any(FlagOrCount)
    }
}

// === impl PromptField ===

impl<'de> Deserialize<'de> for PromptField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;
        impl<'de> Visitor<'de> for Shapes {
            type Value = PromptField;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of strings, a list of token ids or a list of those")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<PromptField, E> {
                Ok(PromptField::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<PromptField, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(items)).map(PromptField::List)
            }
        }
        deserializer.deserialize_any(Shapes)
    }
}

impl<'de> Deserialize<'de> for PromptItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Item;
        impl<'de> Visitor<'de> for Item {
            type Value = PromptItem;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<PromptItem, E> {
                Ok(PromptItem::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<PromptItem, A::Error> {
                let ids = Vec::<Integer>::deserialize(SeqAccessDeserializer::new(items))?;
                Ok(PromptItem::Tokens(ids.into_iter().map(|id| id.0).collect()))
            }
            integers!(PromptItem::Token);
        }
        deserializer.deserialize_any(Item)
    }
}

// === impl JsonSchema ===

/// Describes types whose shape is their own, in place.
macro_rules! described {
    ($($kind:ty: $schema:tt)*) => {$(
        impl JsonSchema for $kind {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($kind).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

described! {
    Integer: {"type": "integer"}
    Number: {"type": "number"}
    Strings: {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    LogprobsField: {"type": ["boolean", "integer"]}
    PromptField: {"anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    ]}
}

impl<T: JsonSchema> JsonSchema for TextOr<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("TextOr{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let part = generator.subschema_for::<T>();
        json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": part}]})
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_are_whole_numbers_of_either_spelling() {
        let read = |value| serde_json::from_value::<Integer>(value).map(|integer| integer.0).ok();
        assert_eq!(read(json!(5)), Some(5));
        assert_eq!(read(json!(-5.0)), Some(-5));
        assert_eq!(read(json!(1e12)), Some(1_000_000_000_000));
        assert_eq!(read(json!(i64::MIN)), Some(i64::MIN));
        for bad in [json!("5"), json!(true), json!(5.5), json!(1e19), json!(1u64 << 63), json!([5])] {
            assert_eq!(read(bad.clone()), None, "{bad}");
        }
    }
}
