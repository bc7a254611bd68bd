//! `x * W^T` for few rows of `x`: each code is decoded in registers and used at once.

use super::{Spec, block_scale, buffer, decode, shared_codebook, word_buffer};
use crate::{layout::Layout, ops::PackedTensors};
use burn::tensor::{DType, Shape};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_lora_kernels::cube::{PLANE, elem, empty, has_planes, vector_size};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// Maximal number of rows of `x` for which this is faster than a matrix product with the decoded
/// weight.
pub(super) const MAX_ROWS: usize = 8;

/// Number of units that share a row of the weight.
const LANES: u32 = PLANE;

/// Returns `true` if every row of the weight is a whole number of words.
pub(super) fn supports(layout: &Layout) -> bool {
    layout.shape[1].is_multiple_of(8)
}

/// Distribution of cubes over the rows of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Share {
    /// Groups of [`LANES`] units per cube.
    groups: u32,
    /// Rows of the weight that a group sums up at once, reading `x` once.
    per_group: usize,
}

impl Share {
    /// Chooses the faster of those measured on an H200 (docs/MEASUREMENTS.md).
    fn of(height: usize, rows: usize) -> Self {
        if height >= 8192 || rows > 2 {
            Self { groups: 4, per_group: 4 }
        } else {
            Self { groups: 8, per_group: 2 }
        }
    }
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
    #[comptime] share: Share,
    #[define(F)] _dtype: ElemType,
) {
    let codebook = shared_codebook(tables);
    let (vector, words) = (N::value().comptime(), M::value().comptime());
    let per_group = share.per_group;
    let group = CUBE_POS * share.groups as usize + UNIT_POS_Y as usize;
    let first = group * per_group;
    let steps = width / (8 * words);

    let mut sums = Array::<f32>::new(comptime![per_group * rows]);
    #[unroll]
    for i in 0..comptime![per_group * rows] {
        sums[i] = 0.0f32;
    }
    let mut step = UNIT_POS_X as usize;
    while step < steps {
        let mut loaded = Array::<Vector<u32, M>>::new(per_group);
        let mut scale = Array::<f32>::new(per_group);
        #[unroll]
        for j in 0..per_group {
            // A group past the end repeats the last row and writes nothing.
            loaded[j] = codes[min(first + j, height - 1) * steps + step];
        }
        #[unroll]
        for m in 0..words {
            let column = (step * words + m) * 8;
            if comptime![m * 8 % spec.block_size == 0] {
                #[unroll]
                for j in 0..per_group {
                    let at = min(first + j, height - 1) * width + column;
                    scale[j] = block_scale(at / spec.block_size, scales, tables, spec.scales);
                }
            }
            #[unroll]
            for r in 0..rows {
                let mut values = Array::<f32>::new(8usize);
                #[unroll]
                for v in 0..comptime![8 / vector] {
                    let read = x[(r * width + column) / vector + v];
                    #[unroll]
                    for e in 0..vector {
                        values[comptime![v * vector + e]] = f32::cast_from(read.extract(e));
                    }
                }
                #[unroll]
                for j in 0..per_group {
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

    let mut partial = Shared::<[f32]>::new_slice(comptime![(LANES * share.groups) as usize]);
    #[unroll]
    for j in 0..per_group {
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
                        let other = partial[at + distance];
                        partial[at] += other;
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

/// Computes the product, `[rows, out]`.
pub(super) fn launch(
    x: CubeTensor,
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
    rows: usize,
) -> CubeTensor {
    let client = x.client.clone();
    let [height, width] = layout.shape;
    let shape = Shape::new([rows, height]);
    let out = empty(&x, shape.clone(), x.dtype);
    let plane = has_planes(&client);
    let vector = vector_size(&client, x.dtype, 8);
    // Vectors of codes stay within a row, and 16 bytes are the widest load.
    let words = if width.is_multiple_of(32) { 4 } else { 1 };
    let share = Share::of(height, rows);
    let cube_dim = CubeDim::new_2d(LANES, share.groups);
    let units = height.div_ceil(share.per_group) * LANES as usize;
    // SAFETY: the lengths are those of the layout; rows are clamped to `height`.
    unsafe {
        gemv_kernel::launch_unchecked(
            &client,
            calculate_cube_count_elemwise(&client, units, cube_dim),
            cube_dim,
            vector,
            words,
            buffer(&client, &x, x.dtype, rows * width, vector),
            buffer(&client, &packed.codes, DType::U32, layout.code_words(), words),
            word_buffer(&client, &packed.scales, layout.scale_words()),
            word_buffer(&client, &packed.tables, layout.table_words()),
            buffer(&client, &out, x.dtype, shape.num_elements(), 1),
            height,
            width,
            Spec::of(&layout),
            rows,
            plane,
            share,
            elem(x.dtype),
        );
    }
    out
}
