//! Products with a 4-bit weight in FP8, on CUDA.

use super::{check, contiguous};
use crate::{
    layout::Layout,
    ops::PackedTensors,
    scale::{NESTED_BLOCK, ScaleRule},
};
use burn::tensor::DType;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_lora_kernels::{
    Fp8Matrix,
    cube::check_contiguous,
    cuda::{Kernel, Scalar},
};

/// Threads per block, and what a block of the transposing kernel decodes: as in the source.
const THREADS: usize = 256;
const TILE: [usize; 2] = [128, 64];

/// Words that a thread decodes.
const WORDS: usize = 4;

/// Computes `sum + x · Wᵀ` (or `x · W` when `transposed`) of matrices, by E4M3 factors.
pub(crate) fn product(
    x: CubeTensor,
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
    transposed: bool,
    sum: Option<CubeTensor>,
) -> CubeTensor {
    check(&layout);
    let rows = Fp8Matrix::quantize(x.clone());
    rows.times_transposed(&decode(packed, layout, transposed), sum, &x)
}

/// Decodes the weight, or its transpose.
fn decode(packed: PackedTensors<CubeBackend>, layout: Layout, transposed: bool) -> Fp8Matrix {
    let PackedTensors { codes, scales, tables } = contiguous(packed);
    let client = codes.client.clone();
    let lens = [layout.code_words(), layout.scale_words(), layout.table_words()];
    for (tensor, len) in [&codes, &scales, &tables].into_iter().zip(lens) {
        check_contiguous(&client, tensor, DType::U32, len);
    }
    let [rows, width] = layout.shape;
    let rule = match layout.scales {
        ScaleRule::Absmax => 0,
        ScaleRule::DoubleQuant => 1,
        ScaleRule::E8m0 | ScaleRule::E4m3 => 2,
    };
    let (name, grid, out, size) = if transposed {
        let grid = [width.div_ceil(TILE[1]), rows.div_ceil(TILE[0]), 1];
        ("decode_transposed", grid, Fp8Matrix::empty(&client, width, rows), width)
    } else {
        let grid = [layout.code_words().div_ceil(THREADS * WORDS), 1, 1];
        ("decode", grid, Fp8Matrix::empty(&client, rows, width), layout.code_words())
    };
    let kernel = Kernel {
        source: include_str!("decode.cu"),
        defines: vec![
            ("BLOCK", layout.block_size),
            ("RULE", rule),
            ("NESTED", NESTED_BLOCK),
            ("OFFSET", Layout::OFFSET),
        ],
        name,
        threads: THREADS,
        shared_bytes: 0,
        overlaps: false,
    };
    let read = [codes, scales, tables].map(|tensor| tensor.handle).to_vec();
    let written = vec![out.codes.clone(), out.scales.clone()];
    let scalars = [rows, size, layout.table_words() - 1].map(|value| Scalar::I32(value as i32));
    // SAFETY: the parameters are those of the source; the words are those of the layout, as just
    // checked, whose sides are multiples of 16 (`weight_scale`), and the output has its elements.
    unsafe { kernel.launch(&client, grid, read, written, scalars.to_vec()) };
    out
}
