//! Access to the tensors of a checkpoint by name, one at a time.

use crate::error::LlamaError;
use burn::tensor::{DType, TensorData};
use std::path::Path;

/// Name of the weight of the final norm.
pub(super) const FINAL_NORM: &str = "model.norm.weight";

/// Checkpoint whose tensors are read one by one, under Hugging Face's names
/// (`model.layers.0.self_attn.q_proj.weight`): the door of other containers than safetensors and GGUF.
///
/// ```
/// use burn::tensor::{DType, Device, TensorData};
/// use burn_lora_llama::{Llama, LlamaConfig, LlamaError, Source};
/// use std::{collections::BTreeMap, path::Path};
///
/// struct InMemory(BTreeMap<String, TensorData>);
///
/// impl Source for InMemory {
///     fn names(&self) -> Vec<&str> {
///         self.0.keys().map(String::as_str).collect()
///     }
///     fn shape(&self, name: &str) -> Option<&[usize]> {
///         self.0.get(name).map(|data| &data.shape()[..])
///     }
///     fn path(&self, _name: &str) -> &Path {
///         Path::new("memory") // named in errors
///     }
///     fn bytes(&self, name: &str) -> usize {
///         self.0[name].as_bytes().len()
///     }
///     fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
///         Ok(self.0[name].clone())
///     }
///     fn dtypes(&self, name: &str) -> Vec<DType> {
///         vec![self.0[name].dtype()]
///     }
/// }
///
/// let config = LlamaConfig::from_file("../../testdata/gqa/config.json")?;
/// let tensors = config.tensors().into_iter().map(|tensor| {
///     let values = vec![0.02f32; tensor.shape.iter().product()];
///     (tensor.name, TensorData::new(values, tensor.shape))
/// });
/// let source = InMemory(tensors.collect());
/// let model = Llama::from_pretrained("memory").load_from(&source, &config, &Device::default())?;
/// assert_eq!(model.model.layers.len(), config.layers.len());
/// # Ok::<_, LlamaError>(())
/// ```
pub trait Source {
    /// Names of all tensors.
    fn names(&self) -> Vec<&str>;

    /// Shape of a tensor, if there is one of this name.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// File of a tensor.
    fn path(&self, name: &str) -> &Path;

    /// Size of a tensor in its file, in bytes.
    fn bytes(&self, name: &str) -> usize;

    /// Reads a tensor as it is stored.
    ///
    /// # Errors
    /// - [`LlamaError::MissingTensors`] if there is no tensor of this name.
    /// - [`LlamaError::DType`] if its dtype is not supported.
    fn read(&self, name: &str) -> Result<TensorData, LlamaError>;

    /// Reads the part of a tensor at an index of its first dimension.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// If the tensor has no such index.
    fn read_part(&self, name: &str, index: usize) -> Result<TensorData, LlamaError> {
        let data = self.read(name)?;
        let (bytes, shape, dtype) = (data.as_bytes(), data.shape(), data.dtype());
        let size = bytes.len() / shape[0];
        let part = bytes[index * size..(index + 1) * size].to_vec();
        Ok(TensorData::from_bytes_vec(part, shape[1..].to_vec(), dtype))
    }

    /// Dtype that a tensor is stored in and, if it is another one, that it is read in; none if it
    /// is no float.
    fn dtypes(&self, name: &str) -> Vec<DType>;

    /// Name of a tensor's dtype if only quantized weights have it: `I8` or `F8_E4M3`.
    fn stored_dtype(&self, _name: &str) -> Option<&'static str> {
        None
    }

    /// Dtype that the model is stored in: that of its final norm.
    fn dtype(&self) -> DType {
        self.read(FINAL_NORM).map_or(DType::F32, |data| data.dtype())
    }
}
