//! A weight file of PyTorch's.

use super::source::Source;
use crate::error::LlamaError;
use burn::tensor::{DType, TensorData};
use burn_lora_io::torch::{TorchDType, TorchFile};
use std::path::Path;

/// Tensors of a file that `torch.save` wrote, read one at a time.
pub(super) struct TorchWeights(TorchFile);

impl TorchWeights {
    pub fn open(path: &Path) -> Result<Self, LlamaError> {
        Ok(Self(TorchFile::open(path)?))
    }

    /// Dtype of a tensor of floats.
    fn float(&self, name: &str) -> Option<DType> {
        match self.0.dtype(name)? {
            TorchDType::F32 => Some(DType::F32),
            TorchDType::F16 => Some(DType::F16),
            TorchDType::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

impl Source for TorchWeights {
    fn names(&self) -> Vec<&str> {
        self.0.names().collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.shape(name)
    }

    fn path(&self, _name: &str) -> &Path {
        self.0.path()
    }

    fn bytes(&self, name: &str) -> usize {
        self.0.bytes(name)
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        self.float(name).into_iter().collect()
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        let path = || self.0.path().to_owned();
        let Some(shape) = self.0.shape(name) else {
            return Err(LlamaError::MissingTensors {
                path: path(),
                tensors: vec![name.to_owned()],
            });
        };
        let Some(dtype) = self.float(name) else {
            return Err(LlamaError::DType {
                path: path(),
                tensor: name.into(),
                found: self.0.dtype(name).map_or(String::new(), |dtype| format!("{dtype:?}")),
                expected: "F32, F16 or BF16",
            });
        };
        Ok(TensorData::from_bytes_vec(self.0.read(name)?, shape.to_vec(), dtype))
    }
}
