//! Decoding of 8-bit weights on CubeCL's runtimes.

use super::codec::{EightBitFormat, EightBitLayout};
use burn::tensor::{DType, Shape};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use burn_lora_kernels::cube::{MAX_ITEMS, UNITS, buffer, elem, vector_size};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// Compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Spec {
    format: EightBitFormat,
    block: [usize; 2],
}

#[cube]
fn value(code: u32, #[comptime] format: EightBitFormat) -> f32 {
    if comptime![format == EightBitFormat::Int8] {
        f32::cast_from(code ^ 128) - 128.0
    } else {
        let (exponent, mantissa) = ((code >> 3) & 15, code & 7);
        // Not by a shift of all bits: a device may flush a subnormal float32 to zero.
        let magnitude = if exponent == 0 {
            f32::cast_from(mantissa) * 0.001953125
        } else {
            f32::reinterpret(((exponent + 120) << 23) | (mantissa << 20))
        };
        if code >= 128 { -magnitude } else { magnitude }
    }
}

#[cube(launch_unchecked)]
fn decode_kernel<F: Float, N: Size>(
    codes: &[u32],
    scales: &[u32],
    out: &mut [Vector<F, N>],
    words: usize,
    width: usize,
    across: usize,
    #[comptime] spec: Spec,
    #[define(F)] _dtype: ElemType,
) {
    let word = ABSOLUTE_POS;
    if word < words {
        let vector = N::value().comptime();
        let code = codes[word];
        #[unroll]
        for v in 0..comptime![4 / vector] {
            let mut values = Vector::<F, N>::empty();
            #[unroll]
            for e in 0..vector {
                let item = comptime![v * vector + e];
                // Elements past the last are never read; their block may not exist.
                let at = word * 4 + item;
                let block = at / width / comptime![spec.block[0]] * across
                    + at % width / comptime![spec.block[1]];
                let block = min(block, scales.len() - 1);
                let scale = f32::reinterpret(scales[block]);
                let factor = comptime![spec.format.factor()];
                let code = (code >> comptime![(item * 8) as u32]) & 255;
                values.insert(e, F::cast_from(value(code, spec.format) * scale * factor));
            }
            out[word * comptime![4 / vector] + v] = values;
        }
    }
}

/// Decodes the weight, `[out, in]`, into `dtype`.
pub(super) fn decode(
    codes: CubeTensor,
    scales: CubeTensor,
    layout: EightBitLayout,
    dtype: DType,
) -> CubeTensor {
    assert!(layout.len() <= MAX_ITEMS, "a weight of {:?} is too large for a GPU", layout.shape);
    let [codes, scales] = [codes, scales].map(into_contiguous);
    let client = codes.client.clone();
    let words = layout.code_words();
    // The last word is written whole: the buffer has room for it, the tensor is shorter.
    let mut handle = client.empty((words * 4).max(1) * dtype.size());
    if words > 0 {
        let cube_dim = CubeDim::new_1d(UNITS);
        let vector = vector_size(&client, dtype, 4);
        // SAFETY: the lengths are those of the layout, and the output's buffer is as long as its
        // argument says; the kernel stays below `words`.
        unsafe {
            decode_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, words, cube_dim),
                cube_dim,
                vector,
                buffer(&client, &codes, DType::U32, words, 1),
                buffer(&client, &scales, DType::U32, layout.scale_words(), 1),
                BufferArg::from_raw_parts(handle.clone(), words * 4 / vector),
                words,
                layout.shape[1],
                layout.blocks()[1],
                Spec { format: layout.format, block: layout.block },
                elem(dtype),
            );
        }
    }
    let surplus = (words * 4).max(1) - layout.len();
    handle.offset_end = (surplus > 0).then_some((surplus * dtype.size()) as u64);
    CubeTensor::new_contiguous(client, codes.device, Shape::new(layout.shape), handle, dtype)
}
