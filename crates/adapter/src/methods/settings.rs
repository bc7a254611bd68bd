//! Raw settings of a file: each once, and only numbers that JSON allows.

use burn_lora_io::escaped;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::{Map, Value};
use std::fmt;

/// Returns `true` if a setting is on: not `null`, `false`, 0 or empty.
pub(crate) fn is_on(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Formats a value for a message.
pub(crate) fn shown(value: &Value) -> String {
    const LENGTH: usize = 60;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let cut = text.char_indices().nth(LENGTH).map_or(text.len(), |(at, _)| at);
    let more = if cut < text.len() { ".." } else { "" };
    format!("`{}{more}`", escaped(&text[..cut]))
}

/// Settings of a file, each once.
pub(crate) struct Settings(pub(crate) Map<String, Value>);

impl Settings {
    /// Settings as one value.
    pub(crate) fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

/// JSON value, or a number that JSON does not allow.
#[derive(Deserialize)]
#[serde(untagged)]
enum Any {
    Integer(i64),
    Natural(u64),
    Number(f64),
    Value(Value),
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Settings;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("the settings of an adapter")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Settings, A::Error> {
                let mut settings = Map::new();
                while let Some(name) = fields.next_key::<String>()? {
                    let shown = escaped(&name);
                    let value = fields.next_value::<Any>();
                    let value =
                        value.map_err(|error| Error::custom(format!("`{shown}`: {error}")))?;
                    let value = match value {
                        Any::Integer(number) => number.into(),
                        Any::Natural(number) => number.into(),
                        Any::Value(value) => value,
                        Any::Number(number) if number.is_finite() => number.into(),
                        Any::Number(number) => {
                            return Err(Error::custom(format!("`{shown}` is {number}")));
                        }
                    };
                    if settings.contains_key(&name) {
                        return Err(Error::custom(format!("`{shown}` is there twice")));
                    }
                    settings.insert(name, value);
                }
                Ok(Settings(settings))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
