//! Tensors that wait in host memory.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

#[cfg(feature = "cuda")]
use crate::cuda::Pinned;
#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::{Bytes, DType, Device, Tensor, TensorData},
};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes from which on an upload is a copy of our own.
#[cfg(feature = "cuda")]
const LARGE: usize = 1 << 20;

/// A tensor in host memory, made by [`offload`].
#[derive(Debug)]
pub struct Offloaded<const D: usize> {
    /// Orders what follows after the copy, on the device.
    receipt: Tensor<1>,
    slot: Slot,
    shape: [usize; D],
    dtype: DType,
}

/// A tensor on its way back to its device.
#[derive(Debug)]
pub struct Returning<const D: usize> {
    tensor: Tensor<1>,
    shape: [usize; D],
}

/// Copies a tensor without a graph to host memory, to have the device's memory for others. On CUDA the
/// copy runs beside the kernels that follow, into memory that the system does not move; the tensor's
/// own memory is free once [`settle_copies`] was called. Elsewhere the call waits for the copy. A CPU keeps
/// the tensor.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_kernels::offload;
///
/// let x = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &Device::default());
/// let waiting = offload(x.clone());
/// assert_eq!(waiting.bring_back().arrived().into_data(), x.into_data());
/// ```
pub fn offload<const D: usize>(tensor: Tensor<D>) -> Offloaded<D> {
    let (slot, shape, dtype) = (Slot::default(), tensor.dims(), tensor.dtype());
    let flat = tensor.inner().flatten::<1>(0, D - 1).into_dispatch();
    let receipt = Tensor::from_dispatch(Dispatch::offload(flat, slot.clone()));
    Offloaded { receipt, slot, shape, dtype }
}

/// Lets the kernels that follow on the device of a tensor wait for all copies so far, and gives their
/// memory back. [`Returning::arrived`] does so, too.
pub fn settle_copies<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::arrived(tensor.into_dispatch()))
}

/// Creates a tensor from data, as `Tensor::from_data` does with the data's dtype. On CUDA large data goes
/// through memory that the system does not move: neither the host nor the device waits for the other.
///
/// ```
/// use burn::tensor::{Device, Tensor, TensorData};
/// use burn_lora_kernels::upload;
///
/// let data = TensorData::from([[1.0f32, 2.0], [3.0, 4.0]]);
/// let x: Tensor<2> = upload(data.clone(), &Device::default());
/// assert_eq!(x.into_data(), data);
/// ```
pub fn upload<const D: usize>(data: TensorData, device: &Device) -> Tensor<D> {
    #[cfg(feature = "cuda")]
    if data.as_bytes().len() >= LARGE
        && crate::cube::client(device).is_some_and(|client| crate::cuda::runs(&client))
    {
        let (slot, shape, dtype) = (Slot::default(), data.shape().dims(), data.dtype());
        slot.put(Host::Bytes(data.into_parts().0));
        let receipt = Tensor::<1>::empty([1], (&device.clone().inner(), DType::F32));
        let tensor = Offloaded { receipt, slot, shape, dtype }.bring_back().arrived();
        return if device.is_autodiff() { tensor.autodiff() } else { tensor };
    }
    let dtype = data.dtype();
    Tensor::from_data(data, (device, dtype))
}

impl<const D: usize> Offloaded<D> {
    /// Starts the way back: to be called some kernels before the tensor is needed.
    pub fn bring_back(self) -> Returning<D> {
        let Self { receipt, slot, shape, dtype } = self;
        let count = shape.iter().product();
        let tensor = Dispatch::bring_back(receipt.into_dispatch(), slot, count, dtype);
        Returning { tensor: Tensor::from_dispatch(tensor), shape }
    }
}

impl<const D: usize> Returning<D> {
    /// Returns the tensor. Kernels that follow wait for the copy.
    pub fn arrived(self) -> Tensor<D> {
        settle_copies(self.tensor).reshape(self.shape)
    }
}

/// Where the bytes of a tensor are put, once its copy is enqueued.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<Mutex<Option<Host>>>);

/// Bytes of a tensor in host memory.
#[derive(Debug)]
#[allow(dead_code, reason = "by features")]
enum Host {
    Bytes(Bytes),
    #[cfg(feature = "cuda")]
    Pinned(Pinned),
}

#[allow(dead_code, reason = "by features")]
impl Slot {
    fn put(&self, host: Host) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(host);
    }

    fn take(&self) -> Option<Host> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// [`offload`] and the way back, on vectors.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait OffloadOps: Backend {
    /// Copies a vector to the slot. What is returned stands for the copy.
    #[fusion(meta = |_vector, _slot| TensorSpec::new(Shape::new([1]), DType::F32))]
    fn offload(vector: FloatTensor<Self>, slot: Slot) -> FloatTensor<Self>;

    /// Starts to copy a vector of `count` elements from the slot, and empties it.
    #[fusion(meta = |_receipt, _slot, count, dtype| TensorSpec::new(Shape::new([*count]), *dtype))]
    fn bring_back(
        receipt: FloatTensor<Self>,
        slot: Slot,
        count: usize,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// Returns the tensor, for use after all copies so far.
    #[fusion(dtype = tensor, shape = tensor)]
    fn arrived(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
}
