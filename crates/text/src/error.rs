//! The one error type of this crate.

use burn_lora_io::{FileError, escaped, escaped_lines};
use std::path::{Path, PathBuf};

/// What can go wrong when tokenizers are read and written, and text becomes tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
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

    /// A field of a file with settings whose value cannot be used.
    #[error("{}: `{field}` is {}: {reason}", path.display(), escaped(found))]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What is wrong, and what would do.
        reason: String,
    },

    /// A model that the hub did not hand out.
    #[error("hub: {model}: {reason}")]
    Hub {
        /// The model's id.
        model: String,
        /// What the hub said, and what to do.
        reason: String,
    },

    /// A chat template that is missing, or that refuses the messages.
    #[error("chat template: {reason}")]
    Template {
        /// What is wrong, and what to do.
        reason: String,
    },

    /// Text that the tokenizer cannot handle.
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
