//! Metadata of a GGUF file.

use super::dequantize::{dense, dequantize};
use crate::error::LlamaError;
use burn::tensor::DType;
use burn_lora_io::gguf::{Gguf, Value, type_name};

/// Metadata under the prefix of the architecture.
pub struct GgufKeys<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl<'a> GgufKeys<'a> {
    pub(super) fn new(gguf: &'a Gguf, prefix: &'a str) -> Self {
        Self { gguf, prefix }
    }

    pub(super) fn gguf(&self) -> &Gguf {
        self.gguf
    }

    /// Values of a tensor of float32s, if the file has it.
    ///
    /// # Errors
    /// [`LlamaError::DType`] if it is of another type.
    pub fn floats(&self, tensor: &str) -> Result<Option<Vec<f32>>, LlamaError> {
        let Some(info) = self.gguf.tensors().get(tensor) else { return Ok(None) };
        let found = match info.dtype {
            Ok(kind) if dense(kind) == Some(DType::F32) => {
                return Ok(Some(dequantize(kind, self.gguf.data(info))));
            }
            Ok(kind) => kind.name(),
            Err(id) => type_name(id),
        };
        let (path, tensor) = (self.gguf.path().into(), tensor.into());
        Err(LlamaError::DType { path, tensor, found, expected: "F32" })
    }

    /// Value of a key, without the prefix.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.gguf.get(&format!("{}.{key}", self.prefix))
    }

    /// Creates the error of a value that cannot be used.
    pub fn wrong(&self, key: &str, found: impl ToString, reason: &str) -> LlamaError {
        LlamaError::Field {
            path: self.gguf.path().into(),
            field: format!("{}.{key}", self.prefix),
            found: found.to_string(),
            reason: reason.into(),
        }
    }

    /// Whole number of a key.
    ///
    /// # Errors
    /// [`LlamaError::Field`], which names the key.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, LlamaError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Some architectures have an array here: a number for each layer.
        let reason = "expected one whole number for all layers";
        value.as_u64().map(Some).ok_or_else(|| self.wrong(key, value.brief(), reason))
    }

    /// Whole number of a key that has to be there.
    ///
    /// # Errors
    /// [`LlamaError::Field`], which names the key.
    pub fn required(&self, key: &str) -> Result<u64, LlamaError> {
        self.integer(key)?.ok_or_else(|| self.wrong(key, "missing", "the model needs it"))
    }

    /// Number of a key.
    ///
    /// # Errors
    /// [`LlamaError::Field`], which names the key.
    pub fn number(&self, key: &str) -> Result<Option<f64>, LlamaError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            // The decimal that was written, not the float64 next to it.
            Value::F32(number) => number.to_string().parse().ok(),
            other => other.as_f64(),
        };
        let number = number.filter(|number: &f64| number.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, value.brief(), "expected a number"))
    }

    /// Rejects any other number than this one.
    ///
    /// # Errors
    /// [`LlamaError::Field`], which names the key.
    pub fn equals(&self, key: &str, found: Option<f64>, expected: f64) -> Result<(), LlamaError> {
        match found {
            Some(found) if found != expected => {
                Err(self.wrong(key, found, &format!("only {expected} is supported")))
            }
            _ => Ok(()),
        }
    }

    /// Returns `true` if the file has a tensor of this name.
    pub fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors().contains_key(tensor)
    }
}
