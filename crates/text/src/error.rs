//! The error type of this crate.

use burn_lora_io::{FileError, escaped, escaped_lines};
use std::path::{Path, PathBuf};

/// Error of reading or writing a tokenizer, or of converting text to tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file or folder that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// A file of another format than expected, or a truncated one.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and how to fix it.
        reason: String,
    },

    /// A field of a settings file with an invalid value.
    #[error("{}: `{field}` is {}: {reason}", path.display(), escaped(found))]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What is wrong, and which values are valid.
        reason: String,
    },

    /// A model that the hub did not provide.
    #[error("hub: {model}: {reason}")]
    Hub {
        /// The model's id.
        model: String,
        /// The hub's answer, and how to fix it.
        reason: String,
    },

    /// A chat template that is missing or rejects the messages.
    #[error("chat template: {reason}")]
    Template {
        /// What is wrong, and how to fix it.
        reason: String,
    },

    /// Text or tokens that the tokenizer cannot process.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What is wrong.
        reason: String,
    },
}

impl TextError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: &Path, reason: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), reason: escaped_lines(&reason.to_string()) }
    }
}

impl From<FileError> for TextError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { path, source } => Self::Io { path, source },
            FileError::Format { path, reason } => Self::Format { path, reason },
            FileError::Hub { model, reason } => Self::Hub { model, reason },
        }
    }
}
