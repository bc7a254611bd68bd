//! Products of few rows at the rate of memory, on CUDA.

use super::{FewOps, FewProducts, MOST};
use crate::{
    layout::Layout,
    ops::PackedTensors,
    scale::{NESTED_BLOCK, ScaleRule},
};
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use burn_lora_kernels::{
    cube::{check_contiguous, empty},
    cuda::{Kernel, Scalar, has_tensor_cores},
};
use cubecl::client::Client;

/// Threads per block, outputs of a tile, and inputs that a warp takes at once: as in the source.
const THREADS: usize = 256;
const TILE: usize = 16;
const STEP: usize = 256;

/// Words of the table of parameters.
const WORDS: usize = 8 * MOST + 2;

/// Blocks that run at once on each of the largest GPUs' 132 multiprocessors, two on each.
const BLOCKS: usize = 264;

/// A weight, and A and B of its update, if it has one.
pub(crate) struct Factors {
    pub packed: PackedTensors<CubeBackend>,
    pub update: Option<[CubeTensor; 2]>,
}

/// Returns `true` if there are products of rows in this dtype.
pub(crate) fn takes(client: &Client, dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16) && has_tensor_cores(client)
}

/// Returns `true` if there are products with weights of this layout.
pub(crate) fn fits(layout: &Layout) -> bool {
    let [outputs, inputs] = layout.shape;
    let scales = matches!(layout.scales, ScaleRule::Absmax | ScaleRule::DoubleQuant);
    let sides = outputs.is_multiple_of(TILE) && inputs.is_multiple_of(STEP) && !layout.is_empty();
    scales && layout.block_size == 64 && sides
}

impl FewOps for CubeBackend {
    fn packed_few(
        x: FloatTensor<Self>,
        w0: PackedTensors<Self>,
        w1: PackedTensors<Self>,
        w2: PackedTensors<Self>,
        a0: FloatTensor<Self>,
        a1: FloatTensor<Self>,
        a2: FloatTensor<Self>,
        b0: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        known: FewProducts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let factors = [(w0, a0, b0), (w1, a1, b1), (w2, a2, b2)];
        let factors = factors.into_iter().zip(known.updated).take(known.count);
        let factors = factors
            .map(|((packed, a, b), updated)| Factors { packed, update: updated.then_some([a, b]) });
        let mut found = products(x, factors.collect(), &known);
        found.resize(MOST, found[0].clone());
        let [y0, y1, y2] = <[_; MOST]>::try_from(found).expect("three");
        (y0, y1, y2)
    }
}

/// [`products`] with one weight, and without an update.
pub(crate) fn product(
    x: CubeTensor,
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
) -> CubeTensor {
    let factors = vec![Factors { packed, update: None }];
    let known = FewProducts {
        count: 1,
        layouts: [layout; MOST],
        updated: [false; MOST],
        scales: [0.0; MOST],
    };
    products(x, factors, &known).remove(0)
}

/// Computes `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for each weight and 1 to 8 rows. The layouts differ in their outputs alone.
///
/// # Shapes
/// - x: `[rows, in]`
/// - outputs: `[rows, out]`
pub(crate) fn products(
    x: CubeTensor,
    factors: Vec<Factors>,
    products: &FewProducts,
) -> Vec<CubeTensor> {
    let (client, x, count) = (x.client.clone(), into_contiguous(x), factors.len());
    let (rows, dtype) = (x.shape()[0], x.dtype);
    let layouts = &products.layouts[..count];
    let inputs = layouts[0].shape[1];
    check_contiguous(&client, &x, dtype, rows * inputs);
    let (mut codes, mut scales, mut tables) = (vec![], vec![], vec![]);
    let (mut a, mut b, mut ranks) = (vec![], vec![], vec![]);
    for (Factors { packed, update }, layout) in factors.into_iter().zip(layouts) {
        layout.check();
        let lens = [layout.code_words(), layout.scale_words(), layout.table_words()];
        let parts = [packed.codes, packed.scales, packed.tables].map(into_contiguous);
        for (part, len) in parts.iter().zip(lens) {
            check_contiguous(&client, part, DType::U32, len);
        }
        let [of_codes, of_scales, of_tables] = parts.map(|part| part.handle);
        codes.push(of_codes);
        scales.push(of_scales);
        tables.push(of_tables);
        let Some(update) = update else {
            // It is not read.
            a.push(x.handle.clone());
            b.push(x.handle.clone());
            ranks.push(0);
            continue;
        };
        let [of_a, of_b] = update.map(into_contiguous);
        let rank = of_a.shape()[0];
        check_contiguous(&client, &of_a, dtype, rank * inputs);
        check_contiguous(&client, &of_b, dtype, layout.shape[0] * rank);
        a.push(of_a.handle);
        b.push(of_b.handle);
        ranks.push(rank);
    }
    let all: usize = ranks.iter().sum();
    let kernel = |name, overlaps| Kernel {
        source: include_str!("few.cu"),
        defines: vec![
            ("HALF", usize::from(dtype == DType::F16)),
            ("ROWS", rows),
            ("COUNT", count),
            ("RULE", usize::from(layouts[0].scales == ScaleRule::DoubleQuant)),
            ("NESTED", NESTED_BLOCK),
            ("OFFSET", Layout::OFFSET),
            ("WORDS", WORDS),
        ],
        name,
        threads: THREADS,
        shared_bytes: 0,
        overlaps,
    };
    let sizes = [inputs, all].map(|size| Scalar::I32(size as i32)).to_vec();
    let h = empty(&x, Shape::new([rows, all.max(1)]), dtype);
    let of_ranks = ranks.iter().map(|rank| *rank as u64);
    if all > 0 {
        let (read, written) = ([a, vec![x.handle.clone()]].concat(), vec![h.handle.clone()]);
        // SAFETY: the parameters are those of the source, for these macros; the buffers are as long as just checked, and
        // there is a block for each row of an A. The inputs are a multiple of eight (`fits`).
        unsafe {
            let kernel = kernel("few_inputs", false);
            let words = of_ranks.clone().collect();
            kernel.launch_table(&client, [all, 1, 1], read, written, words, WORDS, sizes.clone());
        }
    }
    let outputs = layouts.iter().map(|layout| layout.shape[0]);
    let found: Vec<_> =
        outputs.clone().map(|out| empty(&x, Shape::new([rows, out]), dtype)).collect();
    let read = [codes, scales, tables, b, vec![x.handle.clone(), h.handle.clone()]].concat();
    let written = found.iter().map(|y| y.handle.clone()).collect();
    let scales = products.scales[..count].iter().map(|scale| u64::from(scale.to_bits()));
    let words = outputs.clone().map(|out| out as u64).chain(of_ranks).chain(scales).collect();
    let tiles = outputs.map(|out| out / TILE).sum::<usize>();
    // SAFETY: as above; the sides are multiples of what a warp takes (`fits`).
    unsafe {
        let kernel = kernel("few_rows", all > 0);
        kernel.launch_table(&client, [tiles.min(BLOCKS), 1, 1], read, written, words, WORDS, sizes);
    }
    found
}
