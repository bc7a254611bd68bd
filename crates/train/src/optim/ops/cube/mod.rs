//! The operations on CubeCL's runtimes: CUDA, Vulkan, Metal, WebGPU. One file a kernel.

mod adamw;
mod coded;
mod norm;

use super::{OptimOps, Step, StepLaunch};
use burn::{
    backend::tensor::{FloatTensor, IntTensor},
    tensor::DType,
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_lora_kernels::cube::{buffer, own};

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

/// The widest vector that the device moves at once and that divides `len`.
fn vector_size(tensor: &CubeTensor, len: usize) -> usize {
    let mut sizes = tensor.client.io_optimized_vector_sizes(DType::F32.size());
    sizes.find(|size| *size > 0 && *size <= 4 && len.is_multiple_of(*size)).unwrap_or(1)
}

fn scalars(step: Step) -> StepLaunch {
    let Step { beta1, rest1, beta2, rest2, keep, size, root, eps } = step;
    StepLaunch::new(beta1, rest1, beta2, rest2, keep, size, root, eps)
}
