//! Dense storage of a weight.

use super::{Storage, StorageBytes};
use crate::error::QuantError;
use burn::{
    module::{Module, Param},
    tensor::{Device, FloatDType, Tensor},
};
use burn_lora_kernels::{Gemm, pull_back};
use serde_json::{Value, json};

/// A dense weight `[out, in]`, in the layout of checkpoints.
#[derive(Module, Debug)]
pub struct DenseWeight {
    /// The weight, `[out, in]`; it never requires a gradient.
    pub weight: Param<Tensor<2>>,
}

impl DenseWeight {
    /// Creates a frozen weight from a tensor `[out, in]`.
    pub fn new(weight: Tensor<2>) -> Self {
        Self::from_param(Param::from_tensor(weight))
    }

    /// Creates a frozen weight from a parameter, which may be uninitialized.
    pub fn from_param(weight: Param<Tensor<2>>) -> Self {
        Self { weight: weight.set_require_grad(false) }
    }
}

impl Storage for DenseWeight {
    fn shape(&self) -> [usize; 2] {
        self.weight.lazy_shape().dims()
    }

    fn device(&self) -> Device {
        self.weight.lazy_device()
    }

    fn bytes(&self) -> StorageBytes {
        // Of an uninitialized parameter only the shape is known; it will be float32.
        let size = if self.weight.is_initialized() { self.weight.val().dtype().size() } else { 4 };
        let codes = self.weight.lazy_shape().num_elements() * size;
        StorageBytes { codes, scales: 0 }
    }

    fn settings(&self) -> Value {
        json!(null)
    }

    fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        self.weight.val().inner().cast(dtype)
    }

    fn matmul<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let weight = self.weight.val().cast(x.dtype()).unsqueeze();
        Gemm::new().trans_rhs().run(x, weight)
    }

    fn pull_back<const D: usize>(&self, x: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
        let weight = self.weight.val();
        if weight.is_tracked() {
            // A model of which everything is trained.
            return pull_back(self.matmul(x), grad);
        }
        pull_back(x, self.input_grad(grad, None))
    }

    fn input_grad<const D: usize>(&self, grad: Tensor<D>, sum: Option<Tensor<D>>) -> Tensor<D> {
        let weight = self.weight.val().inner().cast(grad.dtype()).unsqueeze();
        match sum {
            Some(sum) => Gemm::new().run_add(grad, weight, sum),
            None => Gemm::new().run(grad, weight),
        }
    }

    fn few_rows(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.val().inner();
        let y = Gemm::new().trans_rhs().run(x.cast(weight.dtype()), weight);
        y.cast(FloatDType::F32)
    }

    fn store(&self, weight: Tensor<2>) -> Result<Self, QuantError> {
        Ok(Self::new(weight.cast(self.weight.val().dtype())))
    }

    fn dense(&self) -> Option<&Param<Tensor<2>>> {
        Some(&self.weight)
    }

    fn dense_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        Some(&mut self.weight)
    }
}
