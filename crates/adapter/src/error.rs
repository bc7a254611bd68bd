//! Error type of the crate.

use burn_lora_io::{FileError, escaped, listed};
use burn_lora_quant::QuantError;
use std::path::PathBuf;

/// Error of configuring, attaching, combining, reading or writing adapters.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
///
/// let error = model.add_adapter("default", &lora.targets(["linaer"])).unwrap_err();
/// assert_eq!(error.to_string(),
///     "target_modules: `linaer` matches no layer of this model; nearest: linear");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A setting has a value that cannot be used.
    #[error("{config}: {field} is {found}: {reason}")]
    Config {
        /// Name of the settings, such as `LoraConfig`.
        config: &'static str,
        /// PEFT's name of the setting.
        field: &'static str,
        /// Value of the setting.
        found: String,
        /// What is wrong, and which values are valid.
        reason: String,
    },

    /// A name or a number in the settings matches no layer of the model.
    #[error("{field}: `{}` matches no {what} of this model; {near}", escaped(name))]
    NoMatch {
        /// PEFT's name of the setting.
        field: &'static str,
        /// Name or number.
        name: String,
        /// What it was compared with, such as `layer`.
        what: &'static str,
        /// Hint, such as the names that are nearest to it.
        near: String,
    },

    /// The model has no adapter of this name.
    #[error("there is no adapter `{name}`; this model has {known}")]
    UnknownAdapter {
        /// Requested name.
        name: String,
        /// Names of the model's adapters.
        known: String,
    },

    /// The model already has an adapter of this name.
    #[error("there is an adapter `{name}` already: delete it, or choose another name")]
    AdapterExists {
        /// Name of the adapter.
        name: String,
    },

    /// A name is not allowed for an adapter.
    #[error("`{name}` is no name for an adapter: {reason}")]
    AdapterName {
        /// Name of the adapter.
        name: String,
        /// Reason.
        reason: &'static str,
    },

    /// An operation is not possible in the current state, or with these adapters.
    #[error("{what}: {reason}")]
    State {
        /// Operation.
        what: String,
        /// Reason, and what to do.
        reason: String,
    },

    /// An operation is not possible on a layer.
    #[error("layer `{layer}`: {reason}")]
    Layer {
        /// Path of the layer.
        layer: String,
        /// Reason, and what to do.
        reason: String,
    },

    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },

    /// A file or folder is malformed or not supported.
    #[error("{}: {reason}", path.display())]
    Format {
        /// Path of the file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// The file lacks tensors that the settings and the model require.
    #[error("{}: {} missing: {}", path.display(), count(tensors), listed(tensors))]
    MissingTensors {
        /// Path of the file.
        path: PathBuf,
        /// Full names of the tensors.
        tensors: Vec<String>,
    },

    /// The file has tensors that neither the settings nor the model expect.
    #[error("{}: {} unexpected: {}{hint}", path.display(), count(tensors), listed(tensors))]
    UnexpectedTensors {
        /// Path of the file.
        path: PathBuf,
        /// Full names of the tensors.
        tensors: Vec<String>,
        /// Possible cause.
        hint: &'static str,
    },

    /// A tensor has a different shape than the settings and the model require.
    #[error("{}: `{}` is {found:?}, expected {expected:?}", path.display(), escaped(tensor))]
    Shape {
        /// Path of the file.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Required shape.
        expected: Vec<usize>,
    },

    /// A tensor is for a vocabulary of a different size than the model's.
    #[error(
        "{}: `{tensor}` is for a vocabulary of {found} tokens, and the model has {expected}: the adapter \
         was trained on a base whose vocabulary had been resized. Load that base; in Python \
         `resize_token_embeddings({found})` and `save_pretrained` make it of the one at hand",
        path.display()
    )]
    Vocabulary {
        /// Path of the file.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// Vocabulary size of the tensor.
        found: usize,
        /// Vocabulary size of the model.
        expected: usize,
    },

    /// An adapter that the hub did not provide.
    #[error("hub: {model}: {reason}")]
    Hub {
        /// Id of the adapter.
        model: String,
        /// Reason, and what to do.
        reason: String,
    },

    /// A tensor could not be read from its device.
    #[error("`{tensor}` could not be read from the device: {reason}")]
    Device {
        /// Name of the tensor, or path of its layer.
        tensor: String,
        /// Error message of Burn.
        reason: String,
    },

    /// The quantization failed.
    #[error(transparent)]
    Quant(#[from] QuantError),
}

fn count(tensors: &[String]) -> String {
    match tensors.len() {
        1 => "1 tensor is".into(),
        n => format!("{n} tensors are"),
    }
}

impl From<FileError> for AdapterError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { path, source } => Self::Io { path, source },
            FileError::Format { path, reason } => Self::Format { path, reason },
            FileError::Hub { model, reason } => Self::Hub { model, reason },
        }
    }
}
