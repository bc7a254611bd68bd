//! Packed weights on the CPU: on all cores, decoded tile by tile into each core's cache.

#[cfg(target_arch = "x86_64")]
mod few;

use super::{PackedOps, PackedTensors, in_fp8, product_shape, rows};
use crate::{
    codec::{PackedView, absmax, encode_scales, encode_word},
    fp8,
    layout::Layout,
};
use burn::{
    backend::{
        Flex,
        ops::FloatTensorOps,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, FloatDType, Shape, TensorData},
};
use burn_flex::FlexTensor;
use burn_lora_kernels::flex::{dot, from_f32, to_f32};
use gemm::{Parallelism, gemm};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

/// Elements that a task decodes or encodes: a multiple of every block size, and 64 KiB of float32.
const CHUNK: usize = 16 << 10;

/// Maximal number of rows of `x` for which each decoded value is used at once rather than stored in
/// a tile.
const FEW_ROWS: usize = 4;

/// Number of rows, or columns, of a weight that has `count` of them, that a task decodes and multiplies: those with which all
/// cores are done first. Each task rearranges all of x for its product, which takes as long as the products of a few rows.
fn tile_of(count: usize, depth: usize) -> usize {
    const STEP: usize = 64;
    const REARRANGED: usize = 6;
    /// Most elements of a tile: they stay in a cache.
    const ELEMENTS: usize = 1 << 20;
    let cores = rayon::current_num_threads();
    let most = (ELEMENTS / depth.max(1)).clamp(STEP, 8 * STEP);
    let time = |tile: &usize| count.div_ceil(tile * cores) * (tile + REARRANGED);
    (STEP..=most).step_by(STEP).min_by_key(time).unwrap_or(STEP)
}

impl PackedOps for Flex {
    fn pack(weight: FloatTensor<Self>, layout: Layout) -> PackedTensors<Self> {
        layout.check();
        let weight = to_f32(weight);
        let weight: &[f32] = weight.storage();
        assert_eq!(weight.len(), layout.len(), "the elements of a weight {:?}", layout.shape);
        let blocks = CHUNK / layout.block_size;
        let mut maxima = vec![0.0; layout.blocks()];
        maxima.par_chunks_mut(blocks).zip(weight.par_chunks(CHUNK)).for_each(|(maxima, values)| {
            for (max, block) in maxima.iter_mut().zip(values.chunks(layout.block_size)) {
                *max = absmax(block);
            }
        });
        let (scales, tables, normalizers) = encode_scales(&layout, &maxima);
        let mut codes = vec![0; layout.code_words()];
        codes
            .par_chunks_mut(CHUNK / 8)
            .zip(weight.par_chunks(CHUNK))
            .zip(normalizers.par_chunks(blocks))
            .for_each(|((codes, values), normalizers)| {
                for (word, (code, values)) in codes.iter_mut().zip(values.chunks(8)).enumerate() {
                    let normalizer = normalizers[word * 8 / layout.block_size];
                    *code = encode_word(layout.format, values, normalizer);
                }
            });
        let words = |words: Vec<u32>| {
            let shape = [words.len()];
            FlexTensor::from_data(TensorData::new(words, shape))
        };
        PackedTensors { codes: words(codes), scales: words(scales), tables: words(tables) }
    }

    fn unpack(packed: PackedTensors<Self>, layout: Layout, dtype: FloatDType) -> FloatTensor<Self> {
        let packed = Words::of(packed);
        let view = packed.view(layout);
        let data = match dtype {
            FloatDType::F16 => {
                decode_half(&view, |out: &mut [f16], f32| out.convert_from_f32_slice(f32))
            }
            FloatDType::BF16 => {
                decode_half(&view, |out: &mut [bf16], f32| out.convert_from_f32_slice(f32))
            }
            dtype => {
                let mut out = vec![0.0; layout.len()];
                out.par_chunks_mut(CHUNK)
                    .enumerate()
                    .for_each(|(i, out)| view.decode(i * CHUNK, out));
                return from_f32(out, layout.shape.into(), dtype.into());
            }
        };
        FlexTensor::from_data(data)
    }

    fn packed_matmul(
        x: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        transposed: bool,
    ) -> FloatTensor<Self> {
        let dtype = x.dtype();
        let shape =
            product_shape(&Shape::from(x.layout().shape().to_vec()), layout.shape, transposed);
        let x = to_f32(x);
        let packed = Words::of(packed);
        let view = packed.view(layout);
        let [out, rows] = [layout.shape[usize::from(transposed)], rows(&shape)];
        let fp8 = view.fp8_scale().filter(|_| in_fp8(rows, &layout)).map(|scale| {
            let mut x = x.storage().to_vec();
            let scales = fp8::round_rows(&mut x, layout.shape[usize::from(!transposed)]);
            (x, scales, scale)
        });
        let x = fp8.as_ref().map_or(x.storage(), |(x, ..)| x);
        let weight = Weight { view, fp8: fp8.as_ref().map(|(.., scale)| *scale) };
        // The product is computed transposed, so that the results of a task are contiguous.
        let mut result = vec![0.0f32; out * rows];
        if !result.is_empty() && !layout.is_empty() {
            match (transposed, rows) {
                (false, ..=FEW_ROWS) => few_rows(&weight.view, x, rows, &mut result),
                (false, _) => forward(&weight, x, rows, &mut result),
                (true, _) => backward(&weight, x, rows, &mut result),
            }
        }
        if let Some((_, scales, scale)) = fp8 {
            let scaled =
                |row: &mut [f32]| row.iter_mut().zip(&scales).for_each(|(y, s)| *y *= s * scale);
            result.par_chunks_mut(rows.max(1)).for_each(scaled);
        }
        let result = FlexTensor::from_data(TensorData::new(result, [out, rows]));
        let result = result.transpose(0, 1).reshape(shape);
        match dtype {
            DType::F32 => result,
            dtype => Self::float_cast(result, dtype.into()),
        }
    }
}

/// The words of a packed weight, contiguous.
struct Words {
    codes: FlexTensor,
    scales: FlexTensor,
    tables: FlexTensor,
}

impl Words {
    fn of(packed: PackedTensors<Flex>) -> Self {
        let [codes, scales, tables] = [packed.codes, packed.scales, packed.tables]
            .map(|words: IntTensor<Flex>| words.to_contiguous());
        Self { codes, scales, tables }
    }

    fn view(&self, layout: Layout) -> PackedView<'_> {
        let Self { codes, scales, tables } = self;
        PackedView::new(layout, codes.storage(), scales.storage(), tables.storage())
    }
}

/// A weight as a factor of a product.
struct Weight<'a> {
    view: PackedView<'a>,
    /// Scale of the weight in E4M3, if it is rounded to that.
    fp8: Option<f32>,
}

impl Weight<'_> {
    fn shape(&self) -> [usize; 2] {
        self.view.layout().shape
    }

    /// Decodes elements, with the scale of E4M3 left out.
    fn decode(&self, start: usize, out: &mut [f32]) {
        self.view.decode(start, out);
        if let Some(scale) = self.fp8 {
            out.iter_mut().for_each(|value| *value = fp8::round(*value / scale));
        }
    }
}

fn decode_half<H: burn::tensor::Element + Default>(
    view: &PackedView<'_>,
    convert: impl Fn(&mut [H], &[f32]) + Sync,
) -> TensorData {
    let mut out = vec![H::default(); view.layout().len()];
    out.par_chunks_mut(CHUNK).enumerate().for_each_init(
        || vec![0.0; CHUNK],
        |buffer, (i, out)| {
            let buffer = &mut buffer[..out.len()];
            view.decode(i * CHUNK, buffer);
            convert(out, buffer);
        },
    );
    TensorData::new(out, view.layout().shape)
}

/// `W * x^T` for few rows of `x`: each core decodes a piece of a row of `W` and uses it at once.
fn few_rows(view: &PackedView<'_>, x: &[f32], rows: usize, result: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if few::supports(view.layout()) {
        return few::few_rows(view, x, rows, result);
    }
    const PIECE: usize = 256;
    let width = view.layout().shape[1];
    result.par_chunks_mut(rows).enumerate().with_min_len(16).for_each(|(row, sums)| {
        let mut buffer = [0.0; PIECE];
        for start in (0..width).step_by(PIECE) {
            let piece = &mut buffer[..PIECE.min(width - start)];
            view.decode(row * width + start, piece);
            for (sum, x) in sums.iter_mut().zip(x.chunks(width)) {
                *sum += dot(piece, &x[start..start + piece.len()]);
            }
        }
    });
}

/// `W * x^T`: each task decodes some rows of `W`.
fn forward(weight: &Weight<'_>, x: &[f32], rows: usize, result: &mut [f32]) {
    let [height, width] = weight.shape();
    let lines = tile_of(height, width);
    result.par_chunks_mut(lines * rows).enumerate().for_each_init(
        || vec![0.0; lines * width],
        |tile, (i, result)| {
            let tile = &mut tile[..result.len() / rows * width];
            weight.decode(i * lines * width, tile);
            multiply_transposed(tile, [width, 1], x, [width, 1], width, false, result, rows);
        },
    );
}

/// `W^T * x^T`: each task decodes some columns of `W`, some rows at a time.
fn backward(weight: &Weight<'_>, x: &[f32], rows: usize, result: &mut [f32]) {
    const DEPTH: usize = 1024;
    let [height, width] = weight.shape();
    let lines = tile_of(width, DEPTH);
    result.par_chunks_mut(lines * rows).enumerate().for_each_init(
        || vec![0.0; lines * DEPTH],
        |tile, (i, result)| {
            let columns = result.len() / rows;
            for start in (0..height).step_by(DEPTH) {
                let depth = DEPTH.min(height - start);
                let tile = &mut tile[..depth * columns];
                for (j, row) in tile.chunks_mut(columns).enumerate() {
                    weight.decode((start + j) * width + i * lines, row);
                }
                let x = &x[start..];
                multiply_transposed(
                    tile,
                    [1, columns],
                    x,
                    [height, 1],
                    depth,
                    start > 0,
                    result,
                    rows,
                );
            }
        },
    );
}

/// `result (+)= w * x^T` on one core: `w` is `[result.len() / rows, depth]` and `x` is
/// `[rows, depth]`, each with its strides.
#[expect(clippy::too_many_arguments, reason = "a matrix product has that many")]
fn multiply_transposed(
    w: &[f32],
    w_strides: [usize; 2],
    x: &[f32],
    x_strides: [usize; 2],
    depth: usize,
    accumulate: bool,
    result: &mut [f32],
    rows: usize,
) {
    let height = result.len() / rows;
    let end =
        |lines: usize, strides: [usize; 2]| (lines - 1) * strides[0] + (depth - 1) * strides[1];
    assert!(end(height, w_strides) < w.len() && end(rows, x_strides) < x.len());
    let [w_row, w_col, x_row, x_col] =
        [w_strides[0], w_strides[1], x_strides[0], x_strides[1]].map(|stride| stride as isize);
    // SAFETY: the last element that each matrix reads is inside its slice, as just asserted, and
    // `result` is `[height, rows]`.
    unsafe {
        gemm(
            height,
            rows,
            depth,
            result.as_mut_ptr(),
            1,
            rows as isize,
            accumulate,
            w.as_ptr(),
            w_col,
            w_row,
            x.as_ptr(),
            x_row,
            x_col,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
