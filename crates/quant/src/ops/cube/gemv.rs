//! `x * W^T` for few rows of `x`: each code is decoded in registers and used at once.

use super::{Spec, block_scale, buffer, decode, shared_codebook, vector_size};
use crate::{layout::Layout, ops::PackedTensors};
use burn::{backend::TensorMetadata, tensor::Shape};
use burn_cubecl::{CubeBackend, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, ir::features::Plane, prelude::*};

/// Rows of `x` up to which this beats decoding the weight for a matrix product.
pub(super) const MAX_ROWS: usize = 8;

/// Units that share a row of the weight.
const LANES: u32 = 32;

/// Such groups a cube.
const GROUPS: u32 = 4;

/// Rows of the weight that a group sums up at once, for which it reads `x` once.
const PER_GROUP: usize = 2;

/// Whether every row of the weight is whole words.
pub(super) fn supports(layout: &Layout) -> bool {
    layout.shape[1].is_multiple_of(8)
}

#[cube(launch_unchecked)]
fn gemv_kernel<F: Float, N: Size, M: Size>(
    x: &[Vector<F, N>],
    codes: &[Vector<u32, M>],
    scales: &[u32],
    tables: &[u32],
    out: &mut [F],
    height: usize,
    width: usize,
    #[comptime] spec: Spec,
    #[comptime] rows: usize,
    #[comptime] plane: bool,
    #[define(F)] _dtype: ElemType,
) {
    let codebook = shared_codebook(tables);
    let (vector, words) = (N::value(), M::value());
    let group = CUBE_POS * GROUPS as usize + UNIT_POS_Y as usize;
    let first = group * PER_GROUP;
    let steps = width / (8 * words);

    let mut sums = Array::<f32>::new(comptime![PER_GROUP * rows]);
    #[unroll]
    for i in 0..comptime![PER_GROUP * rows] {
        sums[i] = 0.0f32;
    }
    let mut step = UNIT_POS_X as usize;
    while step < steps {
        let mut loaded = Array::<Vector<u32, M>>::new(PER_GROUP);
        let mut scale = Array::<f32>::new(PER_GROUP);
        #[unroll]
        for j in 0..PER_GROUP {
            // A group past the end repeats the last row and writes nothing.
            let row = min(first + j, height - 1);
            loaded[j] = codes[row * steps + step];
        }
        #[unroll]
        for m in 0..words {
            let column = (step * words + m) * 8;
            if comptime![m * 8 % spec.block_size == 0] {
                #[unroll]
                for j in 0..PER_GROUP {
                    let row = min(first + j, height - 1);
                    let block = (row * width + column) / spec.block_size;
                    scale[j] = block_scale(block, scales, tables, spec.scales);
                }
            }
            #[unroll]
            for r in 0..rows {
                let mut values = Array::<f32>::new(8usize);
                #[unroll]
                for v in 0..8 / vector {
                    let read = x[(r * width + column) / vector + v];
                    #[unroll]
                    for e in 0..vector {
                        values[comptime![v * vector + e]] = f32::cast_from(read.extract(e));
                    }
                }
                #[unroll]
                for j in 0..PER_GROUP {
                    let word = loaded[j].extract(m);
                    let mut sum = 0.0f32;
                    #[unroll]
                    for i in 0..8 {
                        sum += decode(word, &codebook, i) * values[i];
                    }
                    sums[comptime![j * rows + r]] += sum * scale[j];
                }
            }
        }
        step += LANES as usize;
    }

    let mut partial = Shared::<[f32]>::new_slice(comptime![(LANES * GROUPS) as usize]);
    #[unroll]
    for j in 0..PER_GROUP {
        #[unroll]
        for r in 0..rows {
            let mut sum = sums[comptime![j * rows + r]];
            if plane {
                sum = plane_sum(sum);
            } else {
                let at = UNIT_POS as usize;
                partial[at] = sum;
                #[unroll]
                for level in 0..5 {
                    let distance = comptime![16usize >> level];
                    sync_cube();
                    if (UNIT_POS_X as usize) < distance {
                        partial[at] = partial[at] + partial[at + distance];
                    }
                }
                sum = partial[at];
                sync_cube();
            }
            if UNIT_POS_X == 0 && first + j < height {
                out[r * height + first + j] = F::cast_from(sum);
            }
        }
    }
}

/// The product, `[rows, out]`.
pub(super) fn launch(
    x: CubeTensor,
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
    rows: usize,
) -> CubeTensor {
    let client = x.client.clone();
    let [height, width] = layout.shape;
    let shape = Shape::new([rows, height]);
    let out =
        empty_device_contiguous_dtype(client.clone(), x.device.clone(), shape.clone(), x.dtype);

    let properties = client.properties();
    let plane = properties.features.plane.contains(Plane::Ops)
        && properties.hardware.plane_size_min == LANES
        && properties.hardware.plane_size_max == LANES;
    let vector = vector_size(&client, x.dtype);
    // Vectors of codes stay inside a row, and a 16-byte load is the widest.
    let words = if width.is_multiple_of(32) { 4 } else { 1 };
    let cube_dim = CubeDim::new_2d(LANES, GROUPS);
    let units = height.div_ceil(PER_GROUP) * LANES as usize;
    // SAFETY: the lengths are those of the layout; rows are clamped to `height`.
    unsafe {
        gemv_kernel::launch_unchecked(
            &client,
            calculate_cube_count_elemwise(&client, units, cube_dim),
            cube_dim,
            vector,
            words,
            buffer(&x, x.shape().num_elements() / vector),
            buffer(&packed.codes, layout.code_words() / words),
            buffer(&packed.scales, layout.scale_words()),
            buffer(&packed.tables, layout.table_words()),
            buffer(&out, shape.num_elements()),
            height,
            width,
            Spec::of(&layout),
            rows,
            plane,
            burn::backend::cubecl::dtype_to_elem_type(x.dtype),
        );
    }
    out
}
