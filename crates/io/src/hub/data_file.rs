//! Files with data, downloaded one by one.

#[cfg(feature = "hub")]
use super::listing::Remote;
use crate::FileError;
use std::path::{Path, PathBuf};

/// A file with data, which may be on the hub still: of a large dataset, only the files that are read have
/// to be downloaded.
///
/// ```
/// use burn_lora_io::hub;
///
/// // With the feature `hub`, this could be `owner/name`, too.
/// for file in hub::resolve_data("data/train.jsonl")? {
///     println!("{}", file.obtain()?.display());
/// }
/// # Ok::<_, burn_lora_io::FileError>(())
/// ```
#[derive(Clone)]
pub struct DataFile {
    path: PathBuf,
    #[cfg(feature = "hub")]
    remote: Option<Remote>,
}

impl From<PathBuf> for DataFile {
    /// A file of this machine.
    fn from(path: PathBuf) -> Self {
        Self {
            path,
            #[cfg(feature = "hub")]
            remote: None,
        }
    }
}

impl DataFile {
    #[cfg(feature = "hub")]
    pub(super) fn remote(path: PathBuf, remote: Remote) -> Self {
        Self { path, remote: Some(remote) }
    }

    /// Returns its path, at which it is once it was obtained.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Downloads it if it is on the hub and not in the cache, and returns its path.
    ///
    /// # Errors
    /// [`FileError::Hub`] if the download fails.
    pub fn obtain(&self) -> Result<&Path, FileError> {
        #[cfg(feature = "hub")]
        if let Some(remote) = &self.remote {
            remote.obtain()?;
        }
        Ok(&self.path)
    }
}
