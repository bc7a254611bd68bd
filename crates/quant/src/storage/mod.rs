//! The storage of a frozen weight: the door that dense and quantized weights go through, and a user's own.

mod dense;
mod packed;

pub use dense::DenseWeight;

use crate::{erased_module, error::QuantError, with_rank};
use burn::{
    backend::DispatchTensor,
    module::{Module, Param},
    tensor::{Device, FloatDType, Tensor},
};
use burn_lora_kernels::Gemm;
use serde_json::Value;
use std::{fmt, sync::Arc};

/// How a frozen weight `[out, in]` is stored: the products with it, and itself, decoded.
///
/// A type implements it beside Burn's `Module`, and goes into a [`Frozen`]; a layer over that knows no more.
/// [`DenseWeight`] and [`PackedWeight`](crate::PackedWeight) are two; the book has one of a user's own in
/// the chapter on extending.
///
/// A gradient flows to the inputs of the products, never to the weight.
pub trait Storage: Module + Sync + 'static {
    /// The shape of the weight, `[out, in]`.
    fn shape(&self) -> [usize; 2];

    /// Where it is.
    fn device(&self) -> Device;

    /// The bytes that it takes.
    fn bytes(&self) -> StorageBytes;

    /// What decides the values of its products beside its parameters, such as a format and the size of its
    /// blocks: a run that is resumed has to find the same.
    fn settings(&self) -> Value;

    /// The weight decoded, `[out, in]`, without a gradient.
    fn dequantize(&self, dtype: FloatDType) -> Tensor<2>;

    /// `x · Wᵀ`.
    ///
    /// # Shapes
    /// - x: `[..., in]`, of rank 2 or more
    /// - output: `[..., out]`, in the dtype of `x`
    fn matmul<const D: usize>(&self, x: Tensor<D>) -> Tensor<D>;

    /// `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ`, the product with a low-rank update. The default is three products.
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

    /// `x · Wᵀ` of a few rows in float32, without a gradient and without a copy of the weight, where the
    /// storage can.
    ///
    /// # Shapes
    /// - x: `[rows, in]`
    /// - output: `[rows, out]`
    fn few_rows(&self, x: Tensor<2>) -> Tensor<2> {
        self.matmul(x)
    }

    /// Another weight of the same shape, stored in the same way.
    ///
    /// # Errors
    /// What the storage cannot hold.
    fn store(&self, weight: Tensor<2>) -> Result<Self, QuantError>;

    /// The weight as it is, where it is stored dense: layers that are tied share it.
    fn dense(&self) -> Option<&Param<Tensor<2>>> {
        None
    }

    /// The same, to change.
    fn dense_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        None
    }
}

/// The bytes of a stored weight, in two parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageBytes {
    /// The elements: codes, or the dense weight itself.
    pub codes: usize,
    /// Scales, and what else is needed to decode them.
    pub scales: usize,
}

impl StorageBytes {
    /// All of them.
    pub fn total(self) -> usize {
        self.codes + self.scales
    }
}

/// A way to store weights: what a [`Loader`](https://docs.rs/burn-lora-llama) or a model asks to quantize its
/// linear layers. Settings implement it, such as [`QuantConfig`](crate::QuantConfig).
pub trait StorageFormat: fmt::Debug + Send + Sync {
    /// Checks the settings.
    ///
    /// # Errors
    /// Settings that do not go together.
    fn validate(&self) -> Result<(), QuantError>;

    /// The bytes of a weight `[out, in]` that is stored so, before there is one.
    fn bytes(&self, shape: [usize; 2]) -> StorageBytes;

    /// Stores a weight `[out, in]` on its device.
    ///
    /// # Errors
    /// What [`validate`](Self::validate) says, and a weight that cannot be stored so.
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

/// A frozen weight `[out, in]`, stored in one way or another.
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

/// [`Storage`] with the ranks of tensors left out, so that there is a `dyn`.
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
    fn few_rows(&self, x: Tensor<2>) -> Tensor<2>;
    fn store(&self, weight: Tensor<2>) -> Result<Frozen, QuantError>;
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

    fn few_rows(&self, x: Tensor<2>) -> Tensor<2> {
        Storage::few_rows(self, x)
    }

    fn store(&self, weight: Tensor<2>) -> Result<Frozen, QuantError> {
        Storage::store(self, weight).map(Frozen::new)
    }

    fn dense(&self) -> Option<&Param<Tensor<2>>> {
        Storage::dense(self)
    }

    fn dense_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        Storage::dense_mut(self)
    }
}

impl Frozen {
    /// A weight in its storage.
    pub fn new(storage: impl Storage) -> Self {
        Self(Box::new(storage))
    }

    /// The storage, if it is this one.
    pub fn downcast_ref<S: Storage>(&self) -> Option<&S> {
        self.0.as_any().downcast_ref()
    }

    /// The shape of the weight, `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.0.device()
    }

    /// The bytes that it takes.
    pub fn bytes(&self) -> StorageBytes {
        self.0.bytes()
    }

    /// See [`Storage::settings`].
    pub fn settings(&self) -> Value {
        self.0.settings()
    }

    /// The weight decoded, `[out, in]`, without a gradient.
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

    /// `x · Wᵀ` of a few rows in float32: see [`Storage::few_rows`].
    pub fn few_rows(&self, x: Tensor<2>) -> Tensor<2> {
        self.0.few_rows(x)
    }

    /// Another weight of the same shape, stored in the same way.
    ///
    /// # Errors
    /// What the storage cannot hold.
    pub fn store(&self, weight: Tensor<2>) -> Result<Self, QuantError> {
        self.0.store(weight)
    }

    /// The weight as it is, where it is stored dense.
    pub fn dense(&self) -> Option<&Param<Tensor<2>>> {
        self.0.dense()
    }

    /// The same, to change.
    pub fn dense_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        self.0.dense_mut()
    }
}
