//! The tensors of a checkpoint by name, one at a time.

use crate::error::LlamaError;
use burn::tensor::{DType, TensorData};
use std::path::Path;

/// A checkpoint whose tensors are read one by one.
pub(crate) trait Source {
    /// The names of all tensors.
    fn names(&self) -> Vec<&str>;

    /// The shape of a tensor, if there is one of this name.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The file that a tensor lies in.
    fn path(&self, name: &str) -> &Path;

    /// Bytes that a tensor takes in its file.
    fn bytes(&self, name: &str) -> usize;

    /// Reads a tensor as it is stored.
    ///
    /// # Errors
    /// A tensor that is not there, or whose dtype is not supported.
    fn read(&self, name: &str) -> Result<TensorData, LlamaError>;

    /// The dtype that a tensor is stored in and, where it is another one, that which it is read in; none
    /// for what is no float.
    fn dtypes(&self, name: &str) -> Vec<DType>;

    /// The name of a tensor's dtype where it is one that only a quantized weight has: `I8` or `F8_E4M3`.
    fn stored_dtype(&self, _name: &str) -> Option<&'static str> {
        None
    }

    /// The dtype that the model is stored in: that of its last norm.
    fn dtype(&self) -> DType {
        self.read("model.norm.weight").map_or(DType::F32, |data| data.dtype())
    }
}
