//! Typed access to the fields of a JSON configuration file, with errors that name the field.

use crate::error::LlamaError;
use burn_lora_io::brief;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{fmt, path::Path};

/// JSON object of a configuration file, whose errors name the file and the field. A field that is
/// `null` counts as missing.
pub struct ConfigFields<'a> {
    path: &'a Path,
    /// Prefix of field names in messages.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> ConfigFields<'a> {
    /// Wraps the root object of a file.
    pub(crate) fn new(path: &'a Path, value: &'a Value) -> Result<Self, LlamaError> {
        match value {
            Value::Object(map) => Ok(Self { path, prefix: String::new(), map }),
            _ => Err(LlamaError::format(path, "expected a JSON object")),
        }
    }

    /// Returns the whole object.
    pub(crate) fn json(&self) -> Value {
        Value::Object(self.map.clone())
    }

    /// Returns the object in a field.
    ///
    /// # Errors
    /// [`LlamaError::Field`] if it is no object.
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

    /// Returns the value of a field.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Returns `true` if a field is present, even as `null`.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Iterates over all fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// Returns the value of a field, deserialized.
    ///
    /// # Errors
    /// [`LlamaError::Field`] if it is of another type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, LlamaError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|e| self.wrong(name, value, &brief(&e)))
    }

    /// Returns the value of a required field.
    ///
    /// # Errors
    /// [`LlamaError::Field`] if it is missing, or of another type.
    pub fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T, LlamaError> {
        self.get(name)?.ok_or_else(|| self.wrong(name, "missing", "the model needs it"))
    }

    /// Returns a number above 0.
    ///
    /// # Errors
    /// [`LlamaError::Field`] if it is no number, or not above 0.
    pub fn positive(&self, name: &str) -> Result<Option<f64>, LlamaError> {
        match self.get::<f64>(name)? {
            Some(number) if number <= 0.0 => {
                Err(self.wrong(name, number, "expected a number above 0"))
            }
            number => Ok(number),
        }
    }

    /// Rejects any other value than this one.
    ///
    /// # Errors
    /// [`LlamaError::Field`] if it is another one.
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

    /// Reports a warning about this file.
    pub fn warn(&self, what: fmt::Arguments<'_>) {
        burn_lora_io::warn!("{}: {what}", self.path.display());
    }

    /// Creates the error of a value that cannot be used.
    pub fn wrong(&self, name: &str, found: impl ToString, reason: &str) -> LlamaError {
        LlamaError::Field {
            path: self.path.to_owned(),
            field: format!("{}{name}", self.prefix),
            found: brief(&found),
            reason: reason.into(),
        }
    }
}
