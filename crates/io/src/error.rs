//! The error type of this crate.

use crate::escaped_lines;
use std::path::{Path, PathBuf};

/// Error of reading a file or of looking up a model on the hub. The crates that read models and
/// tokenizers convert it into their own errors.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file or folder that could not be read.
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

    /// A model that the hub did not provide.
    #[error("hub: {model}: {reason}")]
    Hub {
        /// The model's id.
        model: String,
        /// The hub's answer, and how to fix it.
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
