//! Error type of this crate.

use burn_lora_adapter::AdapterError;
use burn_lora_io::FileError;
use burn_lora_llama::LlamaError;
use burn_lora_text::TextError;
use std::path::{Path, PathBuf};

/// Error of reading data or training a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },

    /// A file is truncated, or does not have the format that its name implies.
    #[error("{}: {reason}", path.display())]
    Format {
        /// File.
        path: PathBuf,
        /// Description of the problem, and a remedy.
        reason: String,
    },

    /// An example cannot be trained on.
    #[error("{}:{line}: {reason}", path.display())]
    Example {
        /// File.
        path: PathBuf,
        /// Line, or row of a table, from 1.
        line: usize,
        /// Description of the problem, and a remedy.
        reason: String,
    },

    /// A setting is invalid.
    #[error("`{name}` is {found}: {reason}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        found: String,
        /// Description of the problem, and valid values.
        reason: String,
    },

    /// A setting without which a run cannot begin is not set.
    #[error("`{name}` is not set: {needed}")]
    Missing {
        /// Name of the setting.
        name: &'static str,
        /// What to set it to.
        needed: &'static str,
    },

    /// Settings of a run cannot be read, or those of one of its sections are invalid.
    #[error("{origin}: {reason}")]
    Settings {
        /// Section, or setting as it was given.
        origin: String,
        /// Description of the problem, and valid names or values.
        reason: String,
    },

    /// A loss or a gradient is infinite or not a number.
    #[error("step {step}: the {what} is {value}; the batch: {batch}. {advice}")]
    NotFinite {
        /// Optimizer step, from 1.
        step: usize,
        /// Quantity: the loss, or the norm of the gradients.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Examples of the batch, by file and line.
        batch: String,
        /// Suggested remedy.
        advice: String,
    },

    /// A device failed: it is out of memory, or one device of a multi-device run stopped.
    #[error("{what}: {reason}")]
    Device {
        /// Device, or operation that failed.
        what: String,
        /// Error message of the device.
        reason: String,
    },

    /// Error of the adapter crate.
    #[error(transparent)]
    Adapter(#[from] AdapterError),

    /// Error of the llama crate.
    #[error(transparent)]
    Llama(#[from] LlamaError),

    /// Error of the text crate.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl TrainError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn settings(origin: impl Into<String>, reason: impl ToString) -> Self {
        Self::Settings { origin: origin.into(), reason: reason.to_string() }
    }

    pub(crate) fn device(what: impl ToString, reason: impl ToString) -> Self {
        Self::Device { what: what.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn setting(
        name: &'static str,
        found: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self::Setting { name, found: found.to_string(), reason: reason.into() }
    }
}

impl From<FileError> for TrainError {
    fn from(error: FileError) -> Self {
        TextError::from(error).into()
    }
}
