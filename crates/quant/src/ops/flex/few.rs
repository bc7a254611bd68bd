//! `W · xᵀ` for few rows of `x`: each value is decoded into a vector register, and used there for all rows.
//!
//! 32 bytes of codes are 64 elements. The codebook is a table of 16 for each of the four bytes of a float32, which a byte
//! shuffle looks up for 32 codes at once; interleaving the four gives the values, in an order in which `x` is put first.

use crate::{codec::PackedView, layout::Layout};
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Elements that are decoded together.
const BLOCK: usize = 64;

/// Vectors of eight elements in a block.
const VECTORS: usize = BLOCK / 8;

/// Rows of the weight that a task takes at least.
const ROWS: usize = 16;

/// Returns `true` if [`few_rows`] can compute a product with this weight here.
pub(super) fn supports(layout: &Layout) -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && layout.shape[1].is_multiple_of(BLOCK)
        && layout.block_size.is_multiple_of(BLOCK / 2)
}

/// Computes `W · xᵀ`, `[out, rows]`, for at most four rows.
///
/// # Panics
/// If the lengths do not fit, or [`supports`] is not true.
pub(super) fn few_rows(view: &PackedView<'_>, x: &[f32], rows: usize, result: &mut [f32]) {
    let layout = view.layout();
    let [height, width] = layout.shape;
    assert!(supports(layout), "a product of few rows with {layout:?}");
    assert_eq!([x.len(), result.len()], [rows * width, rows * height], "the sizes of a product");
    let x = arranged(x);
    let planes = planes(view.codebook());
    let of_row = |row: usize, sums: &mut [f32]| {
        // SAFETY: the processor has the instructions, and the row is one of the weight's, as checked.
        unsafe {
            match rows {
                1 => one_row::<1>(view, &planes, &x, row, sums),
                2 => one_row::<2>(view, &planes, &x, row, sums),
                3 => one_row::<3>(view, &planes, &x, row, sums),
                4 => one_row::<4>(view, &planes, &x, row, sums),
                _ => panic!("{rows} rows are not few"),
            }
        }
    };
    let results = result.par_chunks_mut(rows).enumerate().with_min_len(ROWS);
    results.for_each(|(row, sums)| of_row(row, sums));
}

/// Place in a block of element `lane` of vector `number`: first those in the high halves of the bytes, then the others.
fn place(number: usize, lane: usize) -> usize {
    let byte = lane / 4 * 16 + number % 4 * 4 + lane % 4;
    2 * byte + number / 4
}

/// Puts the elements of each block in the order in which they are decoded.
fn arranged(x: &[f32]) -> Vec<f32> {
    let blocks = x.chunks_exact(BLOCK);
    blocks
        .flat_map(|block| {
            (0..VECTORS).flat_map(move |v| (0..8).map(move |lane| block[place(v, lane)]))
        })
        .collect()
}

/// The bytes of the codebook's values: the first of each, the second, ..
fn planes(codebook: [f32; 16]) -> [[u8; 16]; 4] {
    std::array::from_fn(|byte| std::array::from_fn(|code| codebook[code].to_le_bytes()[byte]))
}

/// Scales of the elements of a row, those of half a [`BLOCK`] at a time: without a division for each.
struct Scales<'a> {
    view: &'a PackedView<'a>,
    block: usize,
    /// Elements of the block that are left.
    left: usize,
    scale: f32,
}

impl<'a> Scales<'a> {
    fn new(view: &'a PackedView<'a>, first: usize) -> Self {
        let size = view.layout().block_size;
        let (block, left) = (first / size, size - first % size);
        Self { view, block, left, scale: view.known_scale(block) }
    }

    fn next(&mut self) -> f32 {
        if self.left == 0 {
            self.block += 1;
            self.left = self.view.layout().block_size;
            self.scale = self.view.known_scale(self.block);
        }
        self.left -= BLOCK / 2;
        self.scale
    }
}

/// Product of a row of the weight with `R` rows of `x`.
///
/// # Safety
/// The processor has AVX2 and FMA; `x` has `R` rows of the weight's width, a multiple of [`BLOCK`], and the weight has the row.
#[target_feature(enable = "avx2,fma")]
unsafe fn one_row<const R: usize>(
    view: &PackedView<'_>,
    planes: &[[u8; 16]; 4],
    x: &[f32],
    row: usize,
    sums: &mut [f32],
) {
    let width = view.layout().shape[1];
    let codes = &view.codes()[row * width / 8..][..width / 8];
    let table = planes.map(|plane| {
        // SAFETY: a plane has 16 bytes.
        _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(plane.as_ptr().cast()) })
    });
    let low = _mm256_set1_epi8(15);
    let mut totals = [_mm256_setzero_ps(); R];
    let mut scales = Scales::new(view, row * width);
    for (number, codes) in codes.chunks_exact(BLOCK / 8).enumerate() {
        let [first, second] = [scales.next(), scales.next()];
        let scales = _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first));
        // SAFETY: a block of codes has 32 bytes.
        let bytes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
        let halves =
            [_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), _mm256_and_si256(bytes, low)];
        let mut block = [[_mm256_setzero_ps(); 2]; R];
        for (half, codes) in halves.into_iter().enumerate() {
            let [a, b, c, d] = table.map(|plane| _mm256_shuffle_epi8(plane, codes));
            let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
            let (ef, gh) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
            let values = [
                _mm256_unpacklo_epi16(ab, cd),
                _mm256_unpackhi_epi16(ab, cd),
                _mm256_unpacklo_epi16(ef, gh),
                _mm256_unpackhi_epi16(ef, gh),
            ];
            for (vector, values) in values.into_iter().enumerate() {
                let values = _mm256_castsi256_ps(values);
                let from = number * BLOCK + (half * 4 + vector) * 8;
                for (r, block) in block.iter_mut().enumerate() {
                    // SAFETY: inside row `r` of `x`, as required of the caller.
                    let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(r * width + from)) };
                    block[vector % 2] = _mm256_fmadd_ps(values, x, block[vector % 2]);
                }
            }
        }
        for (total, [even, odd]) in totals.iter_mut().zip(block) {
            *total = _mm256_fmadd_ps(_mm256_add_ps(even, odd), scales, *total);
        }
    }
    for (sum, total) in sums.iter_mut().zip(totals) {
        let mut lanes = [0.0f32; 8];
        // SAFETY: there are eight.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), total) };
        *sum = lanes.iter().sum();
    }
}
