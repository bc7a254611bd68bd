//! Products of few rows with a 4-bit weight at the rate of memory, on CUDA.

use super::{check, contiguous};
use crate::{
    layout::Layout,
    ops::PackedTensors,
    scale::{NESTED_BLOCK, ScaleRule},
};
use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use burn_lora_kernels::{
    cube::{check_contiguous, empty},
    cuda::{Kernel, Scalar, has_tensor_cores},
};

/// Threads per block, outputs of a tile, and inputs that a warp takes at once: as in the source.
const THREADS: usize = 256;
const TILE: usize = 16;
const STEP: usize = 256;

/// Blocks that run at once on each of the largest GPUs' 132 multiprocessors, two on each.
const BLOCKS: usize = 264;

/// A low-rank update of the output, `scale · h · Bᵀ`.
pub(crate) struct Update {
    /// `[rows, rank]`
    pub h: CubeTensor,
    /// `[out, rank]`
    pub b: CubeTensor,
    pub scale: f32,
}

/// Returns `true` if [`product`] can compute a product with these inputs.
pub(crate) fn supports(x: &CubeTensor, layout: &Layout) -> bool {
    let [outputs, inputs] = layout.shape;
    let dtype = matches!(x.dtype, DType::BF16 | DType::F16);
    let scales = matches!(layout.scales, ScaleRule::Absmax | ScaleRule::DoubleQuant);
    let sides = outputs.is_multiple_of(TILE) && inputs.is_multiple_of(STEP) && !layout.is_empty();
    let some = x.shape()[0] > 0;
    some && dtype && scales && layout.block_size == 64 && sides && has_tensor_cores(&x.client)
}

/// Computes `x · Wᵀ`, and adds an update, for at most eight rows.
///
/// # Shapes
/// - x: `[rows, in]`
/// - output: `[rows, out]`
pub(crate) fn product(
    x: CubeTensor,
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
    update: Option<Update>,
) -> CubeTensor {
    check(&layout);
    let PackedTensors { codes, scales, tables } = contiguous(packed);
    let (x, client) = (into_contiguous(x), codes.client.clone());
    let lens = [layout.code_words(), layout.scale_words(), layout.table_words()];
    for (tensor, len) in [&codes, &scales, &tables].into_iter().zip(lens) {
        check_contiguous(&client, tensor, DType::U32, len);
    }
    let [outputs, inputs] = layout.shape;
    let (rows, dtype) = (x.shape()[0], x.dtype);
    check_contiguous(&client, &x, dtype, rows * inputs);
    let out = empty(&x, Shape::new([rows, outputs]), dtype);
    let kernel = Kernel {
        source: include_str!("few.cu"),
        defines: vec![
            ("HALF", usize::from(dtype == DType::F16)),
            ("ROWS", rows),
            ("RULE", usize::from(layout.scales == ScaleRule::DoubleQuant)),
            ("NESTED", NESTED_BLOCK),
            ("OFFSET", Layout::OFFSET),
            ("UPDATE", usize::from(update.is_some())),
        ],
        name: "few_rows",
        threads: THREADS,
        shared_bytes: 0,
    };
    let mut read = [codes, scales, tables, x].map(|tensor| tensor.handle).to_vec();
    let (mut rank, mut factor) = (0, 0.0);
    if let Some(Update { h, b, scale }) = update {
        let [h, b] = [h, b].map(into_contiguous);
        (rank, factor) = (h.shape()[1], scale);
        check_contiguous(&client, &h, dtype, rows * rank);
        check_contiguous(&client, &b, dtype, outputs * rank);
        read.extend([h.handle, b.handle]);
    }
    let mut scalars = [outputs, inputs, rank].map(|size| Scalar::I32(size as i32)).to_vec();
    scalars.push(Scalar::F32(factor));
    let grid = [(outputs / TILE).min(BLOCKS), 1, 1];
    // SAFETY: the parameters are those of the source, for these macros; the buffers are as long as just checked, and the
    // sides are multiples of what a warp takes (`supports`).
    unsafe { kernel.launch(&client, grid, read, vec![out.handle.clone()], scalars) };
    out
}
