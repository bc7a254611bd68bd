//! The operations on CubeCL's runtimes: CUDA, Vulkan, Metal, WebGPU. One file a kernel.

mod adamw;
mod coded;
mod norm;

use super::{OptimOps, Step, StepLaunch};
use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::DType,
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units a cube.
const UNITS: u32 = 256;

impl OptimOps for CubeBackend {
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        adamw::launch(param, grad, factor, m, v, step)
    }

    fn adamw_coded(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        codes: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        maps: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        coded::launch(param, grad, factor, codes, absmax, maps, step)
    }

    fn add_squares(x: FloatTensor<Self>, partials: FloatTensor<Self>) -> FloatTensor<Self> {
        norm::add_squares(x, partials)
    }

    fn sum_partials(partials: FloatTensor<Self>) -> FloatTensor<Self> {
        norm::sum_partials(partials)
    }
}

/// A vector to write into: itself where nothing else holds its buffer, else a copy.
fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() { tensor } else { tensor.copy() }
}

/// The widest vector that the device moves at once and that divides `len`.
fn vector_size(tensor: &CubeTensor, len: usize) -> usize {
    let mut sizes = tensor.client.io_optimized_vector_sizes(DType::F32.size());
    sizes.find(|size| *size > 0 && *size <= 4 && len.is_multiple_of(*size)).unwrap_or(1)
}

/// A contiguous tensor's buffer as a kernel argument, in vectors.
fn buffer(tensor: &CubeTensor, vector: usize) -> BufferArg {
    let len = tensor.shape().num_elements() / vector;
    // SAFETY: a contiguous tensor has so many elements.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), len) }
}

fn scalars(step: Step) -> StepLaunch {
    let Step { beta1, rest1, beta2, rest2, keep, size, root, eps } = step;
    StepLaunch::new(beta1, rest1, beta2, rest2, keep, size, root, eps)
}
