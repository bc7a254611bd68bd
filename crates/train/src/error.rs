//! The one error type of this crate.

use burn_lora_adapter::AdapterError;
use burn_lora_llama::LlamaError;
use burn_lora_text::TextError;
use std::path::{Path, PathBuf};

/// What can go wrong when data is read and a model is trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file or folder that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A file that is not what its name says, or was cut off.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },

    /// An example that cannot be trained on.
    #[error("{}:{line}: {reason}", path.display())]
    Example {
        /// The file.
        path: PathBuf,
        /// The line, or the row of a table, from 1.
        line: usize,
        /// What is wrong, and what to do.
        reason: String,
    },

    /// A setting that cannot be used.
    #[error("`{name}` is {found}: {reason}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        found: String,
        /// What is wrong, and what would do.
        reason: String,
    },

    /// A loss or a gradient that is infinite or not a number.
    #[error("step {step}: the {what} is {value}; the batch: {batch}. {advice}")]
    NotFinite {
        /// The optimizer step, from 1.
        step: usize,
        /// The loss, or the norm of the gradients.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The examples of the batch by file and line.
        batch: String,
        /// What to try.
        advice: String,
    },

    /// A device that failed: no memory is left, or a part of a run over several devices ended.
    #[error("{what}: {reason}")]
    Device {
        /// The device, or what it was to do.
        what: String,
        /// What it said.
        reason: String,
    },

    /// What the adapter crate found wrong.
    #[error(transparent)]
    Adapter(#[from] AdapterError),

    /// What the llama crate found wrong.
    #[error(transparent)]
    Llama(#[from] LlamaError),

    /// What the text crate found wrong.
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
