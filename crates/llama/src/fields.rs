//! The fields of a JSON file with settings, read so that an error can name them.

use crate::error::LlamaError;
use burn_lora_io::brief;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{fmt, path::Path};

/// An object of the file. A field that is `null` is as one that is not there.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// What stands before a name in messages.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object that the whole file is.
    pub fn new(path: &'a Path, value: &'a Value) -> Result<Self, LlamaError> {
        match value {
            Value::Object(map) => Ok(Self { path, prefix: String::new(), map }),
            _ => Err(LlamaError::format(path, "expected a JSON object")),
        }
    }

    /// The object in a field.
    pub fn object(&self, name: &str) -> Result<Option<Self>, LlamaError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{name}.", self.prefix);
                Ok(Some(Self { path: self.path, prefix, map }))
            }
            Some(other) => Err(self.wrong(name, other, "expected an object")),
        }
    }

    /// The value of a field.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there at all, be it `null`.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// The value of a field, as a type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, LlamaError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|e| self.wrong(name, value, &brief(&e)))
    }

    /// The value of a field that has to be there.
    pub fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T, LlamaError> {
        self.get(name)?.ok_or_else(|| self.wrong(name, "missing", "the model needs it"))
    }

    /// A number above 0.
    pub fn positive(&self, name: &str) -> Result<Option<f64>, LlamaError> {
        match self.get::<f64>(name)? {
            Some(number) if number <= 0.0 => {
                Err(self.wrong(name, number, "expected a number above 0"))
            }
            number => Ok(number),
        }
    }

    /// Refuses any other value than this one.
    pub fn equals<T>(&self, name: &str, expected: T) -> Result<(), LlamaError>
    where
        T: PartialEq + ToString + DeserializeOwned,
    {
        match self.get::<T>(name)? {
            Some(found) if found != expected => {
                let reason = format!("only {} is supported", expected.to_string());
                Err(self.wrong(name, found, &reason))
            }
            _ => Ok(()),
        }
    }

    /// Reports what is odd about this file.
    pub fn warn(&self, what: fmt::Arguments<'_>) {
        burn_lora_io::warn!("{}: {what}", self.path.display());
    }

    /// The error of a value that cannot be used.
    pub fn wrong(&self, name: &str, found: impl ToString, reason: &str) -> LlamaError {
        LlamaError::Field {
            path: self.path.to_owned(),
            field: format!("{}{name}", self.prefix),
            found: brief(&found),
            reason: reason.into(),
        }
    }
}
