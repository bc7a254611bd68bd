//! Errors of a server that does not answer, unlike those that it answers.

use std::{io, path::PathBuf};
use thiserror::Error;

/// Error of a [`Server`](crate::Server).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A setting is outside its range.
    #[error("`{field}` is {found}: {reason}")]
    Setting {
        /// Field of [`ServeConfig`](crate::ServeConfig), or what was given.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        reason: String,
    },
    /// An adapter cannot be loaded.
    #[error("adapter `{name}`: {reason}")]
    Adapter {
        /// Name of the adapter.
        name: String,
        /// Reason.
        reason: String,
    },
    /// A folder cannot be read.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Folder.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The system gives no socket or thread.
    #[error("the server cannot run: {0}")]
    System(#[from] io::Error),
    /// The model has failed, and cannot answer any more.
    #[error("the thread that runs the model has ended: its message is above")]
    Worker,
}
