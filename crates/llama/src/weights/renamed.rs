//! Checkpoint under the names of the model.

use super::source::{FINAL_NORM, Source};
use crate::{config::ModelFamily, error::LlamaError};
use burn::tensor::{DType, TensorData};
use std::{collections::BTreeMap, path::Path};

/// Source under the names that a family gives to its tensors.
pub(super) struct Renamed<'a> {
    source: &'a dyn Source,
    /// Names in the source, by those in the model.
    names: BTreeMap<String, String>,
}

impl<'a> Renamed<'a> {
    /// Renames the tensors of a source; those that the family passes over are not there.
    ///
    /// # Errors
    /// [`LlamaError::Format`] if two tensors get one name.
    pub fn new(
        source: &'a dyn Source,
        family: &dyn ModelFamily,
        root: &Path,
    ) -> Result<Self, LlamaError> {
        let mut names = BTreeMap::new();
        for stored in source.names() {
            let Some(name) = family.tensor_name(stored) else { continue };
            if let Some(other) = names.insert(name.into_owned(), stored.to_owned()) {
                let reason = format!("`{stored}` and `{other}` are the same tensor");
                return Err(LlamaError::format(root, reason));
            }
        }
        Ok(Self { source, names })
    }

    /// Name in the source; an unknown one as it is, for messages.
    fn stored<'b>(&'b self, name: &'b str) -> &'b str {
        self.names.get(name).map_or(name, String::as_str)
    }
}

impl Source for Renamed<'_> {
    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.source.shape(self.names.get(name)?)
    }

    fn path(&self, name: &str) -> &Path {
        self.source.path(self.stored(name))
    }

    fn bytes(&self, name: &str) -> usize {
        self.source.bytes(self.stored(name))
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        self.source.read(self.stored(name))
    }

    fn read_part(&self, name: &str, index: usize) -> Result<TensorData, LlamaError> {
        self.source.read_part(self.stored(name), index)
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        self.source.dtypes(self.stored(name))
    }

    fn stored_dtype(&self, name: &str) -> Option<&'static str> {
        self.source.stored_dtype(self.stored(name))
    }

    fn dtype(&self) -> DType {
        match self.stored(FINAL_NORM) {
            FINAL_NORM => self.source.dtype(),
            stored => self.source.read(stored).map_or(DType::F32, |data| data.dtype()),
        }
    }
}
