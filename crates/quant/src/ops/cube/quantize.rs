//! Quantization of a dense weight: absmax of each block, scales, codes.
#![allow(clippy::manual_is_multiple_of, reason = "CubeCL has no such function")]

use super::{OFFSET, Spec, buffer, word_buffer, words};
use crate::{
    format::Format,
    layout::Layout,
    ops::PackedTensors,
    scale::{NESTED_BLOCK, ScaleRule},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_lora_kernels::cube::{UNITS, elem, vector_size};
use cubecl::{calculate_cube_count_elemwise, client::Client, prelude::*, server::Handle};

/// Values that a cube reduces.
const SUMMED: usize = 4096;

/// Loads the 8 elements of a word; zeros past the end.
#[cube]
fn load_word<F: Float, N: Size>(weight: &[Vector<F, N>], word: usize, len: usize) -> Array<f32> {
    let vector = N::value().comptime();
    let mut values = Array::<f32>::new(8usize);
    #[unroll]
    for v in 0..comptime![8 / vector] {
        let at = word * (8 / vector) + v;
        let inside = at * vector < len;
        let read = weight[select(inside, at, 0)];
        #[unroll]
        for e in 0..vector {
            values[comptime![v * vector + e]] =
                select(inside, f32::cast_from(read.extract(e)), 0.0f32);
        }
    }
    values
}

/// Maximum of `lanes` neighbouring values in shared memory, written to the first of them.
#[cube]
fn shared_max(shared: &mut Shared<[f32]>, #[comptime] lanes: usize) {
    let at = UNIT_POS as usize;
    #[unroll]
    for level in 0..comptime![lanes.trailing_zeros()] {
        let distance = comptime![lanes >> (level + 1)];
        sync_cube();
        if at % lanes < distance {
            shared[at] = max(shared[at], shared[at + distance]);
        }
    }
    sync_cube();
}

/// Computes the absmax of each block: `lanes` units per block, 8 elements each.
#[cube(launch_unchecked)]
fn absmax_kernel<F: Float, N: Size>(
    weight: &[Vector<F, N>],
    absmax: &mut [f32],
    len: usize,
    blocks: usize,
    #[comptime] lanes: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let values = load_word(weight, ABSOLUTE_POS, len);
    let mut largest = 0.0f32;
    #[unroll]
    for i in 0..8 {
        largest = max(largest, values[i].abs());
    }
    shared[UNIT_POS as usize] = largest;
    shared_max(&mut shared, lanes);
    let block = ABSOLUTE_POS / lanes;
    if UNIT_POS as usize % lanes == 0 && block < blocks {
        absmax[block] = shared[UNIT_POS as usize];
    }
}

/// Reduces [`SUMMED`] values per cube to their sum divided by `count`, or to their maximum.
#[cube(launch_unchecked)]
fn reduce_kernel(values: &[f32], out: &mut [f32], len: usize, count: f32, #[comptime] sum: bool) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let at = UNIT_POS as usize;
    let mut total = 0.0f32;
    #[unroll]
    for i in 0..comptime![SUMMED / UNITS as usize] {
        let index = CUBE_POS * SUMMED + i * UNITS as usize + at;
        let value = select(index < len, values[min(index, len - 1)], 0.0f32);
        total = if sum { total + value } else { max(total, value) };
    }
    shared[at] = total;
    #[unroll]
    for level in 0..8 {
        let distance = comptime![UNITS as usize >> (level + 1)];
        sync_cube();
        if at < distance {
            let (a, b) = (shared[at], shared[at + distance]);
            shared[at] = if sum { a + b } else { max(a, b) };
        }
    }
    sync_cube();
    if UNIT_POS == 0 && CUBE_POS * SUMMED < len {
        out[CUBE_POS] = if sum { shared[0] / count } else { shared[0] };
    }
}

/// Index of the nearest map entry, as [`burn_lora_kernels::dynamic::nearest`] finds it.
#[cube]
fn nearest(tables: &[u32], value: f32, #[comptime] entries: usize, #[comptime] even: bool) -> u32 {
    // The last entry below `value`, or the first entry.
    let mut below = 0usize;
    #[unroll]
    for level in 0..8 {
        let next = below + comptime![128usize >> level];
        let entry = f32::reinterpret(tables[16 + min(next, entries - 1)]);
        if next < entries && entry < value {
            below = next;
        }
    }
    let above = min(below + 1, entries - 1);
    let low = f32::reinterpret(tables[16 + below]);
    let middle = (low + f32::reinterpret(tables[16 + above])) * 0.5f32;
    let mut up = value > middle;
    if even {
        up = up || (value == middle && below % 2 == 1);
    }
    select(up, above, below) as u32
}

/// Packs the codes of four units into a word.
#[cube]
fn store_code(codes: &mut [u32], code: u32, blocks: usize) {
    let mut shared = Shared::<[u32]>::new_slice(UNITS as usize);
    let at = UNIT_POS as usize;
    shared[at] = select(ABSOLUTE_POS < blocks, code, 0u32);
    sync_cube();
    if at % 4 == 0 && ABSOLUTE_POS < blocks {
        codes[ABSOLUTE_POS / 4] =
            shared[at] | (shared[at + 1] << 8) | (shared[at + 2] << 16) | (shared[at + 3] << 24);
    }
}

/// Double quantization: each cube quantizes the [`NESTED_BLOCK`] scales that share an outer
/// float32.
#[cube(launch_unchecked)]
fn double_quant_kernel(
    absmax: &[f32],
    mean: &[f32],
    codes: &mut [u32],
    tables: &mut [u32],
    blocks: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(NESTED_BLOCK);
    let at = UNIT_POS as usize;
    let offset = mean[0];
    let mut shifted = 0.0f32;
    if ABSOLUTE_POS < blocks {
        shifted = absmax[ABSOLUTE_POS] - offset;
    }
    shared[at] = shifted.abs();
    shared_max(&mut shared, NESTED_BLOCK);
    let outer = shared[0];
    let code = nearest(&*tables, shifted * (1.0f32 / max(outer, 1e-38f32)), 256usize, false);
    store_code(codes, code, blocks);
    if UNIT_POS == 0 && ABSOLUTE_POS < blocks {
        tables[OFFSET + 1 + CUBE_POS] = u32::reinterpret(outer);
        if CUBE_POS == 0 {
            tables[OFFSET] = u32::reinterpret(offset);
        }
    }
}

/// Encodes the 8-bit float scales of MXFP4 and NVFP4. `absmax` is replaced by the scale itself.
#[cube(launch_unchecked)]
fn float_scale_kernel(
    absmax: &mut [f32],
    largest: &[f32],
    codes: &mut [u32],
    tables: &mut [u32],
    blocks: usize,
    #[comptime] rule: ScaleRule,
) {
    let block = min(ABSOLUTE_POS, blocks - 1);
    let value = absmax[block];
    let global = largest[0] / 2688.0f32;
    let outer = if comptime![matches!(rule, ScaleRule::E8m0)] {
        1.0f32.runtime()
    } else {
        select(global > 0.0f32, global, 1.0f32)
    };
    let code = if comptime![matches!(rule, ScaleRule::E8m0)] {
        let exponent = (u32::reinterpret(value) >> 23) & 255;
        select(exponent == 255, 255u32, max(exponent, 2u32) - 2u32)
    } else {
        nearest(&*tables, value * (1.0f32 / (6.0f32 * outer)), 127usize, true)
    };
    store_code(codes, code, blocks);
    if ABSOLUTE_POS < blocks {
        absmax[block] = f32::reinterpret(tables[16 + code as usize]) * outer;
    }
    if ABSOLUTE_POS == 0 {
        tables[OFFSET + 1] = u32::reinterpret(outer);
    }
}

/// Returns the code nearest to a value that was divided by its scale, as [`Format::encode`] finds
/// it.
#[cube]
fn encode(value: f32, #[comptime] format: Format) -> u32 {
    let signed = comptime![format.is_signed_magnitude()];
    let magnitude = if signed { value.abs() } else { value };
    let mut rank = 0u32;
    #[unroll]
    for i in 0..comptime![format.decision_points().len()] {
        let point = comptime![format.decision_points()[i]];
        rank += u32::cast_from(magnitude > point);
    }
    if signed {
        let codes = comptime![format.code_of_rank() as u32];
        let code = (codes >> (rank * 4)) & 15;
        code | select(value < 0.0f32, 8u32, 0u32)
    } else {
        rank
    }
}

/// Encodes words of 8 elements, which share a scale.
#[cube(launch_unchecked)]
fn encode_kernel<F: Float, N: Size>(
    weight: &[Vector<F, N>],
    scales: &[f32],
    codes: &mut [u32],
    len: usize,
    words: usize,
    #[comptime] spec: Spec,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < words {
        let values = load_word(weight, ABSOLUTE_POS, len);
        let normalizer = 1.0f32 / max(scales[ABSOLUTE_POS * 8 / spec.block_size], 1e-38f32);
        let mut word = 0u32;
        #[unroll]
        for i in 0..8 {
            let inside = ABSOLUTE_POS * 8 + i < len;
            let code = encode(values[i] * normalizer, spec.format);
            word |= select(inside, code, 0u32) << comptime![((i ^ 1) * 4) as u32];
        }
        codes[ABSOLUTE_POS] = word;
    }
}

/// Quantizes a contiguous weight.
pub(super) fn launch(weight: CubeTensor, layout: Layout) -> PackedTensors<CubeBackend> {
    let client = weight.client.clone();
    let (len, blocks) = (layout.len(), layout.blocks());
    let tables = client.create_from_slice(bytemuck::cast_slice(&layout.tables()));
    let tables = words(&client, &weight, tables, layout.table_words());
    // Words also where they hold float32s.
    let new = |len: usize| words(&client, &weight, client.empty(4 * len.max(1)), len);
    let (codes, scales) = (new(layout.code_words()), new(layout.scale_words()));
    if len == 0 {
        return PackedTensors { codes, scales, tables };
    }

    let vector = vector_size(&client, weight.dtype, 8);
    let vector = if len.is_multiple_of(vector) { vector } else { 1 };
    let dtype = elem(weight.dtype);
    let input = || buffer(&client, &weight, weight.dtype, len, vector);
    let plain = !layout.scales.is_coded();
    // Float32 scales are the absmax themselves.
    let absmax = if plain { scales.clone() } else { new(blocks) };

    let lanes = layout.block_size / 8;
    let units = lanes.max(UNITS as usize);
    let cube_dim = CubeDim::new_1d(units as u32);
    // SAFETY: the lengths are those of the layout; each kernel guards its ends.
    unsafe {
        absmax_kernel::launch_unchecked(
            &client,
            calculate_cube_count_elemwise(&client, blocks * lanes, cube_dim),
            cube_dim,
            vector,
            input(),
            word_buffer(&client, &absmax, blocks),
            len,
            blocks,
            lanes,
            units,
            dtype,
        );
    }
    encode_scales(&client, &layout, &absmax, &scales, &tables);
    let cube_dim = CubeDim::new_1d(UNITS);
    // SAFETY: as above.
    unsafe {
        encode_kernel::launch_unchecked(
            &client,
            calculate_cube_count_elemwise(&client, layout.code_words(), cube_dim),
            cube_dim,
            vector,
            input(),
            word_buffer(&client, &absmax, blocks),
            word_buffer(&client, &codes, layout.code_words()),
            len,
            layout.code_words(),
            Spec::of(&layout),
            dtype,
        );
    }
    PackedTensors { codes, scales, tables }
}

/// Writes 8-bit scales and their tables, and leaves the divisors of the elements in `absmax`.
fn encode_scales(
    client: &Client,
    layout: &Layout,
    absmax: &CubeTensor,
    scales: &CubeTensor,
    tables: &CubeTensor,
) {
    let blocks = layout.blocks();
    let cube_dim = CubeDim::new_1d(UNITS);
    let cubes = calculate_cube_count_elemwise(client, blocks, cube_dim);
    let of_scales = || word_buffer(client, scales, layout.scale_words());
    let of_tables = || word_buffer(client, tables, layout.table_words());
    match layout.scales {
        ScaleRule::Absmax => {}
        // SAFETY: the lengths are those of the layout, or of a number; the kernel guards its ends.
        ScaleRule::DoubleQuant => unsafe {
            let mean = reduce(client, &absmax.handle, blocks, Some(blocks as f32));
            double_quant_kernel::launch_unchecked(
                client,
                cubes,
                cube_dim,
                word_buffer(client, absmax, blocks),
                BufferArg::from_raw_parts(mean, 1),
                of_scales(),
                of_tables(),
                blocks,
            );
        },
        // SAFETY: as above.
        rule @ (ScaleRule::E8m0 | ScaleRule::E4m3) => unsafe {
            let largest = reduce(client, &absmax.handle, blocks, None);
            float_scale_kernel::launch_unchecked(
                client,
                cubes,
                cube_dim,
                word_buffer(client, absmax, blocks),
                BufferArg::from_raw_parts(largest, 1),
                of_scales(),
                of_tables(),
                blocks,
                rule,
            );
        },
    }
}

/// Sum of `len` float32 values divided by `count`, or without `count` their maximum. The buffer
/// holds `len` values.
fn reduce(client: &Client, values: &Handle, len: usize, count: Option<f32>) -> Handle {
    let cubes = len.div_ceil(SUMMED);
    let out = client.empty(4 * cubes);
    let divisor = count.filter(|_| cubes == 1).unwrap_or(1.0);
    let cube_dim = CubeDim::new_1d(UNITS);
    // SAFETY: both buffers are as long as said; reads are clamped to `len`, and each cube below
    // `cubes` writes one value.
    unsafe {
        reduce_kernel::launch_unchecked(
            client,
            calculate_cube_count_elemwise(client, cubes * UNITS as usize, cube_dim),
            cube_dim,
            BufferArg::from_raw_parts(values.clone(), len),
            BufferArg::from_raw_parts(out.clone(), cubes),
            len,
            divisor,
            count.is_some(),
        );
    }
    if cubes == 1 { out } else { reduce(client, &out, cubes, count) }
}
