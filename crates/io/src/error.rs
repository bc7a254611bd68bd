//! The error type of this crate.

use crate::escaped_lines;
use std::path::{Path, PathBuf};

/// What can go wrong when a file is read, or a model is looked for on the hub. The crates that read
/// models and tokenizers make it an error of their own.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file or folder that could not be read.
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

    /// A model that the hub did not hand out.
    #[error("hub: {model}: {reason}")]
    Hub {
        /// The model's id.
        model: String,
        /// What the hub said, and what to do.
        reason: String,
    },
}

impl FileError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: &Path, reason: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), reason: escaped_lines(&reason.to_string()) }
    }
}
