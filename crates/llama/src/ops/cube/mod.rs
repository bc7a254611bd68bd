//! The operations on CubeCL's runtimes: CUDA, Vulkan, Metal, WebGPU. One file a kernel; all compute
//! in float32 whatever the dtype.

#[cfg(feature = "cuda")]
mod fused;
mod loss;
mod norm;
mod rotate;
mod softmax;
mod swiglu;

use super::{
    AttentionSpec, DecoderOps,
    attention::{self, Block, BlockOps},
};
use burn::{
    backend::{
        TensorMetadata,
        ops::FloatTensorOps,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, FloatDType, Shape, Slice},
};
use burn_cubecl::{
    CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use burn_lora_kernels::{Gemm, cube::buffer};
use cubecl::{calculate_cube_count_elemwise, client::Client, ir::features::Plane, prelude::*};

#[cfg(feature = "cuda")]
pub(super) use fused::supports as attention_is_fused;

/// Units a cube.
const UNITS: u32 = 256;

/// Units of a plane, where rows are summed up by planes.
const PLANE: u32 = 32;

impl DecoderOps for CubeBackend {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        norm::forward(x, weight, eps)
    }

    fn rms_norm_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        norm::backward(grad, x, weight, eps)
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::forward(gate, up)
    }

    fn swiglu_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        swiglu::backward(grad, gate, up)
    }

    fn rotate(
        x: FloatTensor<Self>,
        positions: IntTensor<Self>,
        table: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        rotate::launch(x, positions, table, inverse)
    }

    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[cfg(feature = "cuda")]
        if fused::takes(&q) {
            return fused::forward(q, k, v, spans, spec);
        }
        attention::forward::<Self>(q, k, v, into_contiguous(spans), spec)
    }

    fn causal_attention_grad(
        grad: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        #[cfg(feature = "cuda")]
        if fused::takes(&q) {
            return fused::backward(grad, q, k, v, out, lse, spans, spec);
        }
        attention::backward::<Self>(grad, q, k, v, out, lse, into_contiguous(spans), spec)
    }

    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        smoothing: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        loss::launch(logits, targets, smoothing)
    }

    fn pull_back(y: FloatTensor<Self>, _grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_zeros(Shape::new([1]), &y.device(), FloatDType::F32)
    }
}

impl BlockOps for CubeBackend {
    fn block_softmax(
        scores: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        spans: IntTensor<Self>,
        block: &Block,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        softmax::forward(scores, lse, spans, block, dtype.into())
    }

    fn block_softmax_grad(
        scores: FloatTensor<Self>,
        p_grad: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        spans: IntTensor<Self>,
        block: &Block,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        softmax::backward(scores, p_grad, lse, delta, spans, block, dtype.into())
    }

    fn add_product(
        all: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        product: Gemm,
        part: [Slice; 4],
    ) -> FloatTensor<Self> {
        // In place where the library can: the sum passes over memory twice instead of five times.
        // SAFETY: nobody else holds `all`, of which this is a part.
        if unsafe { product.add_in_place(&lhs, &rhs, &view(&all, &part)) } {
            return all;
        }
        attention::add_product::<Self>(all, lhs, rhs, product, part)
    }

    fn row_dot(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        softmax::row_dot(a, b)
    }

    fn batched(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let rows = strides[3] == 1 && strides[2] == shape[3] && !tensor.meta.is_tiled();
        let batch = shape[0] == 1 || strides[0] == strides[1] * shape[1];
        if rows && batch { tensor } else { into_contiguous(tensor) }
    }

    fn contiguous(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        into_contiguous(tensor)
    }
}

/// A part of a tensor, in its memory.
fn view(tensor: &CubeTensor, part: &[Slice; 4]) -> CubeTensor {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let ranges: Vec<_> = part.iter().zip(shape.iter()).map(|(s, dim)| s.to_range(*dim)).collect();
    let sum = |cut: &dyn Fn(usize) -> usize| {
        let elements: usize = (0..4).map(|i| strides[i] * cut(i)).sum();
        (elements * tensor.dtype.size()) as u64
    };
    let (before, after) = (sum(&|i| ranges[i].start), sum(&|i| shape[i] - ranges[i].end));
    let handle = tensor.handle.clone().offset_start(before).offset_end(after);
    let shape = Shape::from(ranges.iter().map(|range| range.len()).collect::<Vec<_>>());
    let meta = cubecl::zspace::metadata::Metadata::new(shape, strides.clone());
    CubeTensor::new(tensor.client.clone(), handle, meta, tensor.device.clone(), tensor.dtype)
}

/// How units share rows, for a kernel that sums over each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Rows {
    /// Units a row.
    lanes: u32,
    /// Whether planes of [`PLANE`] units sum up.
    plane: bool,
}

impl Rows {
    /// For rows of `steps` vectors.
    fn of(client: &Client, steps: usize) -> Self {
        let properties = client.properties();
        let plane = properties.features.plane.contains(Plane::Ops)
            && properties.hardware.plane_size_min == PLANE
            && properties.hardware.plane_size_max == PLANE;
        Self { lanes: if steps > 4 * PLANE as usize { UNITS } else { PLANE }, plane }
    }

    fn cube_dim(self) -> CubeDim {
        CubeDim::new_2d(self.lanes, UNITS / self.lanes)
    }

    fn cube_count(self, client: &Client, rows: usize) -> CubeCount {
        calculate_cube_count_elemwise(client, rows * self.lanes as usize, self.cube_dim())
    }
}

/// The row that this unit works on.
#[cube]
fn row_position(#[comptime] rows: Rows) -> usize {
    CUBE_POS * comptime![(UNITS / rows.lanes) as usize] + UNIT_POS_Y as usize
}

/// The sum, or the largest, of a value over the units of a row, at each of them. All units of a cube
/// have to call it.
#[cube]
fn reduce(value: f32, #[comptime] rows: Rows, #[comptime] sum: bool) -> f32 {
    let mut total = value;
    if rows.plane {
        total = if sum { plane_sum(total) } else { plane_max(total) };
    }
    if comptime![!rows.plane || rows.lanes > PLANE] {
        // What is left after the planes: one value each of them.
        let stride = if rows.plane { PLANE as usize } else { 1usize };
        let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
        let at = UNIT_POS as usize;
        sync_cube();
        shared[at] = total;
        let levels = comptime![(rows.lanes as usize / stride).trailing_zeros()];
        #[unroll]
        for level in 0..levels {
            let distance = comptime![rows.lanes as usize >> (level + 1)];
            sync_cube();
            if (UNIT_POS_X as usize) < distance {
                let (a, b) = (shared[at], shared[at + distance]);
                shared[at] = if sum { a + b } else { max(a, b) };
            }
        }
        sync_cube();
        total = shared[at - UNIT_POS_X as usize];
    }
    total
}

/// The widest vector of `dtype` that the device moves at once and that divides `width`.
fn vector_size(client: &Client, dtype: DType, width: usize) -> usize {
    let mut sizes = client.io_optimized_vector_sizes(dtype.size());
    sizes.find(|size| *size > 0 && width.is_multiple_of(*size)).unwrap_or(1)
}

fn empty(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

fn elem(dtype: DType) -> ElemType {
    burn::backend::cubecl::dtype_to_elem_type(dtype)
}
