//! Decoding of a packed weight.

use super::{Spec, block_scale, decode, shared_codebook, word_buffer};
use crate::{layout::Layout, ops::PackedTensors};
use burn::tensor::{DType, Shape};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_lora_kernels::cube::{UNITS, elem, vector_size};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// Words per unit: all are loaded before the first is used.
const WORDS: usize = 4;

#[cube(launch_unchecked)]
fn dequantize_kernel<F: Float, N: Size>(
    codes: &[u32],
    scales: &[u32],
    tables: &[u32],
    out: &mut [Vector<F, N>],
    words: usize,
    words_per_row: usize,
    room: usize,
    #[comptime] has_room: bool,
    #[comptime] spec: Spec,
    #[define(F)] _dtype: ElemType,
) {
    let codebook = shared_codebook(tables);
    let vector = N::value().comptime();
    let first = CUBE_POS * (WORDS * UNITS as usize) + UNIT_POS as usize;

    let mut loaded = Array::<u32>::new(WORDS);
    let mut scale = Array::<f32>::new(WORDS);
    #[unroll]
    for i in 0..WORDS {
        let word = min(first + i * UNITS as usize, words - 1);
        loaded[i] = codes[word];
        scale[i] = block_scale(word * 8 / spec.block_size, scales, tables, spec.scales);
    }
    #[unroll]
    for i in 0..WORDS {
        let word = first + i * UNITS as usize;
        if word < words {
            #[unroll]
            for v in 0..comptime![8 / vector] {
                let mut values = Vector::<F, N>::empty();
                #[unroll]
                for e in 0..vector {
                    let value = decode(loaded[i], &codebook, comptime![v * vector + e]);
                    values.insert(e, F::cast_from(value * scale[i]));
                }
                let at = word * (8 / vector) + v;
                let skipped = if comptime![has_room] {
                    word / words_per_row * room
                } else {
                    0usize.runtime()
                };
                out[at + skipped] = values;
            }
        }
    }
}

/// Decodes the weight, `[out, in]` and room for more rows and columns, into `dtype`.
pub(super) fn launch(
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
    dtype: DType,
    [more_rows, more_columns]: [usize; 2],
) -> CubeTensor {
    let PackedTensors { codes, scales, tables } = packed;
    let client = codes.client.clone();
    let words = layout.code_words();
    let [rows, columns] = layout.shape;
    assert!(more_columns == 0 || columns.is_multiple_of(8), "the rows are whole words");
    let shape = [rows + more_rows, columns + more_columns];

    // The last word is written whole: the buffer has room for it, the tensor is shorter.
    let surplus = words * 8 - layout.len();
    let len = (shape[0] * shape[1] + surplus).max(1);
    let mut handle = client.empty(len * dtype.size());
    if words > 0 {
        let cube_dim = CubeDim::new_1d(UNITS);
        let vector = match vector_size(&client, dtype, 8) {
            vector if more_columns.is_multiple_of(vector) => vector,
            _ => 1,
        };
        // SAFETY: the lengths are those of the layout, and the output's buffer is as long as its
        // argument says; the kernel stays below `words`, and skips `more_columns` a row.
        unsafe {
            dequantize_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, words.div_ceil(WORDS), cube_dim),
                cube_dim,
                vector,
                word_buffer(&client, &codes, words),
                word_buffer(&client, &scales, layout.scale_words()),
                word_buffer(&client, &tables, layout.table_words()),
                BufferArg::from_raw_parts(handle.clone(), len / vector),
                words,
                columns / 8,
                more_columns / vector,
                more_columns > 0,
                Spec::of(&layout),
                elem(dtype),
            );
        }
    }
    let surplus = len - shape[0] * shape[1];
    handle.offset_end = (surplus > 0).then_some((surplus * dtype.size()) as u64);
    CubeTensor::new_contiguous(client, codes.device, Shape::new(shape), handle, dtype)
}
