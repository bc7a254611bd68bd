//! Packed weights on CubeCL's runtimes: CUDA, Vulkan, Metal, WebGPU.

mod dequantize;
#[cfg(feature = "cuda")]
mod fp8;
mod gemv;
mod quantize;

#[cfg(feature = "cuda")]
use super::in_fp8;
use super::{PackedOps, PackedTensors, product_shape, rows};
#[cfg(feature = "cuda")]
use crate::few::{cuda, limits};
use crate::{
    format::Format,
    layout::Layout,
    scale::{NESTED_BLOCK, ScaleRule},
};
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, FloatDType, Shape},
};
use burn_cubecl::{
    CubeBackend,
    kernel::into_contiguous,
    ops::{numeric::zeros, reshape},
    tensor::CubeTensor,
};
use burn_lora_kernels::{
    Gemm, GemmOps,
    cube::{MAX_ITEMS, buffer},
};
use cubecl::{client::Client, prelude::*, server::Handle};

impl PackedOps for CubeBackend {
    fn pack(weight: FloatTensor<Self>, layout: Layout) -> PackedTensors<Self> {
        check(&layout);
        quantize::launch(into_contiguous(weight), layout)
    }

    fn unpack(packed: PackedTensors<Self>, layout: Layout, dtype: FloatDType) -> FloatTensor<Self> {
        with_room(packed, layout, dtype.into(), [0, 0])
    }

    fn packed_matmul(
        x: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        transposed: bool,
    ) -> FloatTensor<Self> {
        check(&layout);
        let shape = product_shape(&x.shape(), layout.shape, transposed);
        let rows = rows(&shape);
        if shape.num_elements() == 0 || layout.is_empty() {
            return zeros(x.device.clone(), shape, x.dtype);
        }
        let x = reshape(x, [rows, layout.shape[usize::from(!transposed)]].into());
        #[cfg(feature = "cuda")]
        if !transposed && limits::takes(&x.client, x.dtype) && limits::fits(&layout, rows) {
            return reshape(cuda::product(x, packed, layout), shape);
        }
        let out = if runs_from_codes(rows, &layout, transposed) {
            gemv::launch(into_contiguous(x), contiguous(packed), layout, rows)
        } else {
            product(x, packed, layout, transposed, None)
        };
        reshape(out, shape)
    }
}

/// Computes `sum + x · Wᵀ` (or `x · W` when `transposed`) of matrices, with the weight decoded into a
/// temporary tensor, whose memory the pool gives to the next one.
pub(crate) fn product(
    x: CubeTensor,
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
    transposed: bool,
    sum: Option<CubeTensor>,
) -> CubeTensor {
    #[cfg(feature = "cuda")]
    if in_fp8(x.shape()[0], &layout) {
        return fp8::product(x, packed, layout, transposed, sum);
    }
    let dense = CubeBackend::unpack(packed, layout, FloatDType::from(x.dtype));
    let gemm = if transposed { Gemm::new() } else { Gemm::new().trans_rhs() };
    match sum {
        Some(sum) => CubeBackend::gemm_add(x, dense, sum, gemm),
        None => CubeBackend::gemm(x, dense, gemm),
    }
}

/// Decodes a weight into a matrix with room for so many more rows and columns, which are not written:
/// columns only if the rows are whole words.
pub(crate) fn with_room(
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
    dtype: DType,
    more: [usize; 2],
) -> CubeTensor {
    check(&layout);
    dequantize::launch(contiguous(packed), layout, dtype, more)
}

/// Checks that a layout is valid, and that a kernel can index the weight's elements.
fn check(layout: &Layout) {
    layout.check();
    assert!(layout.len() <= MAX_ITEMS, "a weight of {:?} is too large for a GPU", layout.shape);
}

fn contiguous(packed: PackedTensors<CubeBackend>) -> PackedTensors<CubeBackend> {
    let PackedTensors { codes, scales, tables } = packed;
    let [codes, scales, tables] = [codes, scales, tables].map(into_contiguous);
    PackedTensors { codes, scales, tables }
}

/// Returns `true` if a product is computed from the codes, without decoding the weight first.
pub(crate) fn runs_from_codes(rows: usize, layout: &Layout, transposed: bool) -> bool {
    !transposed && rows <= gemv::MAX_ROWS && gemv::supports(layout)
}

/// Compile-time parameters of a kernel: the layout without its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Spec {
    format: Format,
    scales: ScaleRule,
    block_size: usize,
}

impl Spec {
    fn of(layout: &Layout) -> Self {
        let Layout { format, scales, block_size, .. } = *layout;
        Self { format, scales, block_size }
    }
}

/// Number of words that [`Layout::tables`] puts before the outer float32s, for kernels.
const OFFSET: usize = Layout::OFFSET;

/// Scale of a block.
#[cube]
fn block_scale(block: usize, scales: &[u32], tables: &[u32], #[comptime] rule: ScaleRule) -> f32 {
    if comptime![rule.is_coded()] {
        let shift = (block as u32 % 4) * 8;
        let code = (scales[block / 4] >> shift) & 255;
        let outer = if comptime![matches!(rule, ScaleRule::DoubleQuant)] {
            block / NESTED_BLOCK
        } else {
            0usize.runtime()
        };
        let value = f32::reinterpret(tables[16 + code as usize]);
        let outer = f32::reinterpret(tables[OFFSET + 1 + outer]);
        value * outer + f32::reinterpret(tables[OFFSET])
    } else {
        f32::reinterpret(scales[block])
    }
}

/// Codebook in shared memory, from which each unit of a plane reads its own entry at once.
#[cube]
fn shared_codebook(tables: &[u32]) -> Shared<[f32]> {
    let mut codebook = Shared::<[f32]>::new_slice(16usize);
    if UNIT_POS < 16 {
        codebook[UNIT_POS as usize] = f32::reinterpret(tables[UNIT_POS as usize]);
    }
    sync_cube();
    codebook
}

/// Value of element `i` of a word.
#[cube]
fn decode(word: u32, codebook: &Shared<[f32]>, #[comptime] i: usize) -> f32 {
    let shift = comptime![((i ^ 1) * 4) as u32];
    codebook[((word >> shift) & 15) as usize]
}

fn words(client: &Client, like: &CubeTensor, handle: Handle, len: usize) -> CubeTensor {
    CubeTensor::new_contiguous(
        client.clone(),
        like.device.clone(),
        Shape::new([len]),
        handle,
        DType::U32,
    )
}

/// Returns the words of a packed weight as a kernel argument.
fn word_buffer(client: &Client, tensor: &CubeTensor, len: usize) -> BufferArg {
    buffer(client, tensor, DType::U32, len, 1)
}
