//! CubeCL's persistent pool: a buffer for each tensor.

use super::PersistOps;
use crate::cube::empty;
use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::reshape, tensor::CubeTensor};

/// Creates a tensor in memory of its own, to write a result into that lives as long as a parameter.
pub(crate) fn persistent_like(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let client = like.client.clone();
    client.memory_persistent_allocation((), |()| empty(like, shape, dtype))
}

fn copied(tensor: CubeTensor) -> CubeTensor {
    let shape = tensor.shape();
    // As a vector: the rows of a copy may be padded on CUDA.
    let flat = reshape(into_contiguous(tensor), Shape::new([shape.num_elements()]));
    let client = flat.client.clone();
    reshape(client.memory_persistent_allocation(flat, |flat| flat.copy()), shape)
}

impl PersistOps for CubeBackend {
    fn persistent(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        copied(tensor)
    }

    fn persistent_int(tensor: IntTensor<Self>) -> IntTensor<Self> {
        copied(tensor)
    }
}
