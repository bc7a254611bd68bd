//! Storage of frozen weights: dense, quantized or a user's own.

mod dense;
mod packed;

pub use dense::DenseWeight;

use crate::{erased_module, error::QuantError, with_rank};
use burn::{
    backend::DispatchTensor,
    module::{Module, Param},
    tensor::{Device, FloatDType, Tensor},
};
use burn_lora_kernels::{Gemm, pull_back};
use serde_json::Value;
use std::{fmt, sync::Arc};

/// Storage of a frozen weight `[out, in]`: the products with it, and its decoded values.
///
/// A type implements it beside Burn's `Module`, and is wrapped in a [`Frozen`], the only type that
/// layers know. [`DenseWeight`], [`PackedWeight`](crate::PackedWeight) and
/// [`EightBitWeight`](crate::EightBitWeight) implement it; the chapter on extending in the book
/// shows a custom one.
///
/// Gradients flow to the inputs of the products, never to the weight.
pub trait Storage: Module + Sync + 'static {
    /// Shape of the weight, `[out, in]`.
    fn shape(&self) -> [usize; 2];

    /// Device of the weight.
    fn device(&self) -> Device;

    /// Memory of the weight.
    fn bytes(&self) -> StorageBytes;

    /// Settings that determine the values of its products beside its parameters, such as format and
    /// block size: a resumed run must have the same.
    fn settings(&self) -> Value;

    /// Decodes the weight, `[out, in]`, without a gradient.
    fn dequantize(&self, dtype: FloatDType) -> Tensor<2>;

    /// `x · Wᵀ`.
    ///
    /// # Shapes
    /// - x: `[..., in]`, of rank 2 or more
    /// - output: `[..., out]`, in the dtype of `x`
    fn matmul<const D: usize>(&self, x: Tensor<D>) -> Tensor<D>;

    /// `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ`, the product with a low-rank update. By default three
    /// products.
    ///
    /// # Shapes
    /// - x: `[..., in]`, of rank 2 or more
    /// - a: `[rank, in]`, in the dtype of `x`
    /// - b: `[out, rank]`, in the dtype of `x`
    /// - output: `[..., out]`, in the dtype of `x`
    fn matmul_low_rank<const D: usize>(
        &self,
        x: Tensor<D>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<D> {
        let y = self.matmul(x.clone());
        let h = Gemm::new().trans_rhs().run(x, a.unsqueeze());
        Gemm::new().trans_rhs().alpha(scale).run_add(h, b.unsqueeze(), y)
    }

    /// `x · Wᵀ + scale · h · Bᵀ`, the product with a low-rank update whose `h = x · Aᵀ` is known, without a
    /// graph. By default two products.
    ///
    /// # Shapes
    /// - x: `[..., in]`, of rank 2 or more
    /// - h: `[rows, rank]`, in the dtype of `x`, with its leading dimensions merged
    /// - b: `[out, rank]`, in the dtype of `x`
    /// - output: `[..., out]`, in the dtype of `x`
    fn matmul_update<const D: usize>(
        &self,
        x: Tensor<D>,
        h: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<D> {
        let y = self.matmul(x);
        let (dims, rows) = (y.dims(), y.flatten(0, D - 2));
        Gemm::new().trans_rhs().alpha(scale).run_add(h, b, rows).reshape(dims)
    }

    /// Returns `pull_back(matmul(x), grad)`: a zero, `[1]`, whose `backward()` starts from `grad` as
    /// the gradient of the product. The product itself is not needed; by default it is computed.
    ///
    /// # Shapes
    /// - x: `[..., in]`, of rank 2 or more
    /// - grad: `[..., out]`, in the dtype of `x`
    fn pull_back<const D: usize>(&self, x: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
        pull_back(self.matmul(x), grad)
    }

    /// Returns `sum + grad · W` without a graph, the gradient of the input of [`matmul`](Self::matmul):
    /// in the memory of `sum` if nobody else holds it. By default by [`pull_back`](Self::pull_back).
    ///
    /// # Shapes
    /// - grad: `[..., out]`, of rank 2 or more
    /// - sum, output: `[..., in]`, in the dtype of `grad`
    fn input_grad<const D: usize>(&self, grad: Tensor<D>, sum: Option<Tensor<D>>) -> Tensor<D> {
        let mut dims = grad.dims();
        dims[D - 1] = Storage::shape(self)[1];
        let x = Tensor::<D>::zeros(dims, (&grad.device(), grad.dtype())).autodiff().require_grad();
        let mut grads = self.pull_back(x.clone(), grad).backward();
        let own = x.grad_remove(&mut grads).expect("an input has a gradient");
        match sum {
            Some(sum) => sum + own,
            None => own,
        }
    }

    /// Returns `grad · W + h_grad · A` without a graph, the gradient of the input of a product with a
    /// low-rank update. By default [`input_grad`](Self::input_grad) with a sum.
    ///
    /// # Shapes
    /// - grad: `[..., out]`, of rank 2 or more
    /// - h_grad: `[rows, rank]`, in the dtype of `grad`, with its leading dimensions merged
    /// - a: `[rank, in]`, in the dtype of `grad`
    /// - output: `[..., in]`, in the dtype of `grad`
    fn input_grad_update<const D: usize>(
        &self,
        grad: Tensor<D>,
        h_grad: Tensor<2>,
        a: Tensor<2>,
    ) -> Tensor<D> {
        let mut dims = grad.dims();
        dims[D - 1] = a.dims()[1];
        self.input_grad(grad, Some(Gemm::new().run(h_grad, a).reshape(dims)))
    }

    /// `x · Wᵀ` of a few rows in float32, without a gradient, and without a copy of the weight if
    /// the storage supports that.
    ///
    /// # Shapes
    /// - x: `[rows, in]`
    /// - output: `[rows, out]`
    fn few_rows(&self, x: Tensor<2>) -> Tensor<2> {
        self.matmul(x)
    }

    /// Stores another weight of the same shape in the same way.
    ///
    /// # Errors
    /// [`QuantError`] if the storage cannot hold the weight.
    fn store(&self, weight: Tensor<2>) -> Result<Self, QuantError>;

    /// Returns the weight with its products computed in FP8; `None`, as by default, if the storage
    /// does not know them.
    ///
    /// # Errors
    /// [`QuantError::Fp8`] if the device has no such products, or not for this weight.
    fn with_fp8(&self) -> Result<Option<Self>, QuantError> {
        Ok(None)
    }

    /// Returns the weight itself if it is stored dense: layers with tied weights share it.
    fn dense(&self) -> Option<&Param<Tensor<2>>> {
        None
    }

    /// Returns the weight itself, mutably, if it is stored dense.
    fn dense_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        None
    }
}

/// Memory of a stored weight in bytes, in two parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageBytes {
    /// Bytes of the elements: codes, or the dense weight itself.
    pub codes: usize,
    /// Bytes of scales, and of anything else needed to decode them.
    pub scales: usize,
}

impl StorageBytes {
    /// Total bytes.
    pub fn total(self) -> usize {
        self.codes + self.scales
    }
}

/// A storage format, by which a [`Loader`](https://docs.rs/burn-lora-llama) or a model quantizes
/// its linear layers. Settings such as [`QuantConfig`](crate::QuantConfig) implement it.
pub trait StorageFormat: fmt::Debug + Send + Sync {
    /// Checks that the settings are compatible.
    ///
    /// # Errors
    /// [`QuantError`] if they are not.
    fn validate(&self) -> Result<(), QuantError>;

    /// Memory of a weight `[out, in]` in this format, before it is loaded.
    fn bytes(&self, shape: [usize; 2]) -> StorageBytes;

    /// Stores a weight `[out, in]` on its device.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and [`QuantError`] for a weight that cannot be stored in
    /// this format.
    fn store(&self, weight: Tensor<2>) -> Result<Frozen, QuantError>;
}

impl<F: StorageFormat + ?Sized> StorageFormat for Arc<F> {
    fn validate(&self) -> Result<(), QuantError> {
        (**self).validate()
    }

    fn bytes(&self, shape: [usize; 2]) -> StorageBytes {
        (**self).bytes(shape)
    }

    fn store(&self, weight: Tensor<2>) -> Result<Frozen, QuantError> {
        (**self).store(weight)
    }
}

/// A frozen weight `[out, in]` in any storage.
///
/// ```
/// use burn::tensor::{Device, FloatDType, Tensor};
/// use burn_lora_quant::{DenseWeight, Frozen, QuantConfig, StorageFormat};
///
/// let weight = Tensor::<2>::ones([8, 64], &Device::default());
/// let dense = Frozen::new(DenseWeight::new(weight.clone()));
/// let packed = QuantConfig::nf4().store(weight)?;
/// let x = Tensor::<3>::ones([2, 5, 64], &Device::default());
/// assert_eq!(packed.matmul(x.clone()).dims(), dense.matmul(x).dims());
/// assert!(packed.dense().is_none() && packed.bytes().total() < dense.bytes().total());
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
pub struct Frozen(Box<dyn DynStorage>);

erased_module!(Frozen, DynStorage, Storage, ErasedStorage);

/// Object-safe form of [`Storage`], with the ranks of tensors erased.
#[doc(hidden)]
pub trait DynStorage: ErasedStorage {
    fn shape(&self) -> [usize; 2];
    fn device(&self) -> Device;
    fn bytes(&self) -> StorageBytes;
    fn settings(&self) -> Value;
    fn dequantize(&self, dtype: FloatDType) -> Tensor<2>;
    fn matmul(&self, rank: usize, x: DispatchTensor) -> DispatchTensor;
    fn matmul_low_rank(
        &self,
        rank: usize,
        x: DispatchTensor,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> DispatchTensor;
    fn pull_back(&self, rank: usize, x: DispatchTensor, grad: DispatchTensor) -> Tensor<1>;
    fn matmul_update(
        &self,
        rank: usize,
        x: DispatchTensor,
        h: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> DispatchTensor;
    fn input_grad(
        &self,
        rank: usize,
        grad: DispatchTensor,
        sum: Option<DispatchTensor>,
    ) -> DispatchTensor;
    fn input_grad_update(
        &self,
        rank: usize,
        grad: DispatchTensor,
        h_grad: Tensor<2>,
        a: Tensor<2>,
    ) -> DispatchTensor;
    fn few_rows(&self, x: Tensor<2>) -> Tensor<2>;
    fn store(&self, weight: Tensor<2>) -> Result<Frozen, QuantError>;
    fn with_fp8(&self) -> Result<Option<Frozen>, QuantError>;
    fn dense(&self) -> Option<&Param<Tensor<2>>>;
    fn dense_mut(&mut self) -> Option<&mut Param<Tensor<2>>>;
}

impl<S: Storage> DynStorage for S {
    fn shape(&self) -> [usize; 2] {
        Storage::shape(self)
    }

    fn device(&self) -> Device {
        Storage::device(self)
    }

    fn bytes(&self) -> StorageBytes {
        Storage::bytes(self)
    }

    fn settings(&self) -> Value {
        Storage::settings(self)
    }

    fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        Storage::dequantize(self, dtype)
    }

    fn matmul(&self, rank: usize, x: DispatchTensor) -> DispatchTensor {
        with_rank!(rank, D => Storage::matmul::<D>(self, Tensor::from_dispatch(x)).into_dispatch())
    }

    fn matmul_low_rank(
        &self,
        rank: usize,
        x: DispatchTensor,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> DispatchTensor {
        with_rank!(rank, D => {
            Storage::matmul_low_rank::<D>(self, Tensor::from_dispatch(x), a, b, scale).into_dispatch()
        })
    }

    fn pull_back(&self, rank: usize, x: DispatchTensor, grad: DispatchTensor) -> Tensor<1> {
        with_rank!(rank, D => {
            let [x, grad] = [x, grad].map(Tensor::<D>::from_dispatch);
            Storage::pull_back(self, x, grad)
        })
    }

    fn matmul_update(
        &self,
        rank: usize,
        x: DispatchTensor,
        h: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> DispatchTensor {
        with_rank!(rank, D => {
            Storage::matmul_update::<D>(self, Tensor::from_dispatch(x), h, b, scale).into_dispatch()
        })
    }

    fn input_grad(
        &self,
        rank: usize,
        grad: DispatchTensor,
        sum: Option<DispatchTensor>,
    ) -> DispatchTensor {
        with_rank!(rank, D => {
            let (grad, sum) = (Tensor::from_dispatch(grad), sum.map(Tensor::from_dispatch));
            Storage::input_grad::<D>(self, grad, sum).into_dispatch()
        })
    }

    fn input_grad_update(
        &self,
        rank: usize,
        grad: DispatchTensor,
        h_grad: Tensor<2>,
        a: Tensor<2>,
    ) -> DispatchTensor {
        with_rank!(rank, D => {
            let grad = Tensor::from_dispatch(grad);
            Storage::input_grad_update::<D>(self, grad, h_grad, a).into_dispatch()
        })
    }

    fn few_rows(&self, x: Tensor<2>) -> Tensor<2> {
        Storage::few_rows(self, x)
    }

    fn store(&self, weight: Tensor<2>) -> Result<Frozen, QuantError> {
        Storage::store(self, weight).map(Frozen::new)
    }

    fn with_fp8(&self) -> Result<Option<Frozen>, QuantError> {
        Ok(Storage::with_fp8(self)?.map(Frozen::new))
    }

    fn dense(&self) -> Option<&Param<Tensor<2>>> {
        Storage::dense(self)
    }

    fn dense_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        Storage::dense_mut(self)
    }
}

impl Frozen {
    /// Wraps a weight in its storage.
    pub fn new(storage: impl Storage) -> Self {
        Self(Box::new(storage))
    }

    /// Returns the storage if it is of type `S`.
    pub fn downcast_ref<S: Storage>(&self) -> Option<&S> {
        self.0.as_any().downcast_ref()
    }

    /// Shape of the weight, `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    /// Device of the weight.
    pub fn device(&self) -> Device {
        self.0.device()
    }

    /// Memory of the weight.
    pub fn bytes(&self) -> StorageBytes {
        self.0.bytes()
    }

    /// Settings of the storage: see [`Storage::settings`].
    pub fn settings(&self) -> Value {
        self.0.settings()
    }

    /// Decodes the weight, `[out, in]`, without a gradient.
    pub fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        self.0.dequantize(dtype)
    }

    /// `x · Wᵀ`: see [`Storage::matmul`].
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in`.
    pub fn matmul<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        Tensor::from_dispatch(self.0.matmul(D, x.into_dispatch()))
    }

    /// `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ`: see [`Storage::matmul_low_rank`].
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn matmul_low_rank<const D: usize>(
        &self,
        x: Tensor<D>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<D> {
        Tensor::from_dispatch(self.0.matmul_low_rank(D, x.into_dispatch(), a, b, scale))
    }

    /// Zero whose backward pass starts from the gradient of the product: see
    /// [`Storage::pull_back`].
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn pull_back<const D: usize>(&self, x: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
        self.0.pull_back(D, x.into_dispatch(), grad.into_dispatch())
    }

    /// `x · Wᵀ + scale · h · Bᵀ`: see [`Storage::matmul_update`].
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn matmul_update<const D: usize>(
        &self,
        x: Tensor<D>,
        h: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<D> {
        Tensor::from_dispatch(self.0.matmul_update(D, x.into_dispatch(), h, b, scale))
    }

    /// `sum + grad · W`: see [`Storage::input_grad`].
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn input_grad<const D: usize>(&self, grad: Tensor<D>, sum: Option<Tensor<D>>) -> Tensor<D> {
        let sum = sum.map(Tensor::into_dispatch);
        Tensor::from_dispatch(self.0.input_grad(D, grad.into_dispatch(), sum))
    }

    /// `grad · W + h_grad · A`: see [`Storage::input_grad_update`].
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn input_grad_update<const D: usize>(
        &self,
        grad: Tensor<D>,
        h_grad: Tensor<2>,
        a: Tensor<2>,
    ) -> Tensor<D> {
        let grad = self.0.input_grad_update(D, grad.into_dispatch(), h_grad, a);
        Tensor::from_dispatch(grad)
    }

    /// `x · Wᵀ` of a few rows in float32: see [`Storage::few_rows`].
    pub fn few_rows(&self, x: Tensor<2>) -> Tensor<2> {
        self.0.few_rows(x)
    }

    /// Stores another weight of the same shape in the same way.
    ///
    /// # Errors
    /// [`QuantError`] if the storage cannot hold the weight.
    pub fn store(&self, weight: Tensor<2>) -> Result<Self, QuantError> {
        self.0.store(weight)
    }

    /// Weight with its products computed in FP8, if the storage knows them: see
    /// [`Storage::with_fp8`].
    ///
    /// # Errors
    /// [`QuantError::Fp8`] if the device has no such products, or not for this weight.
    pub fn with_fp8(&self) -> Result<Option<Self>, QuantError> {
        self.0.with_fp8()
    }

    /// Returns the weight itself if it is stored dense.
    pub fn dense(&self) -> Option<&Param<Tensor<2>>> {
        self.0.dense()
    }

    /// Returns the weight itself, mutably, if it is stored dense.
    pub fn dense_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        self.0.dense_mut()
    }
}
