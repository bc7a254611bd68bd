//! Tensors of CubeCL's runtimes in host memory: through pinned memory on CUDA.

use super::{Host, OffloadOps, Slot};
use crate::cube::empty;
#[cfg(feature = "cuda")]
use crate::cuda;
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::bytes::Bytes;

impl OffloadOps for CubeBackend {
    fn offload(vector: FloatTensor<Self>, slot: Slot) -> FloatTensor<Self> {
        let vector = into_contiguous(vector);
        let receipt = empty(&vector, Shape::new([1]), DType::F32);
        if vector.shape().num_elements() == 0 {
            slot.put(Host::Bytes(Bytes::from_bytes_vec(vec![])));
            return receipt;
        }
        #[cfg(feature = "cuda")]
        if cuda::runs(&vector.client) {
            let bytes = vector.shape().num_elements() * vector.dtype.size();
            let put = move |pinned| slot.put(Host::Pinned(pinned));
            cuda::copy_to_host(&vector.client, vector.handle, bytes, &receipt.handle, put);
            return receipt;
        }
        let bytes = vector.client.read_one(vector.handle).expect("the device returns a tensor");
        slot.put(Host::Bytes(bytes));
        receipt
    }

    fn bring_back(
        receipt: FloatTensor<Self>,
        slot: Slot,
        count: usize,
        dtype: DType,
    ) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if cuda::runs(&receipt.client) && count > 0 {
            let out = empty(&receipt, Shape::new([count]), dtype);
            let pinned = match slot.take() {
                Some(Host::Bytes(bytes)) => {
                    cuda::upload(&out.client, bytes, &out.handle);
                    return out;
                }
                Some(Host::Pinned(pinned)) => Some(pinned),
                // The device's thread has not put it there yet.
                None => None,
            };
            let take = move || match pinned.map(Host::Pinned).or_else(|| slot.take()) {
                Some(Host::Pinned(pinned)) => Some(pinned),
                _ => None,
            };
            cuda::copy_to_device(&out.client, receipt.handle, take, &out.handle);
            return out;
        }
        let Some(Host::Bytes(bytes)) = slot.take() else { panic!("offload: nothing waits") };
        let (client, device) = (receipt.client, receipt.device);
        let handle = client.create(bytes);
        CubeTensor::new_contiguous(client, device, Shape::new([count]), handle, dtype)
    }

    fn arrived(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if cuda::runs(&tensor.client) && tensor.shape().num_elements() > 0 {
            cuda::await_copies(&tensor.client, &tensor.handle);
        }
        tensor
    }
}
