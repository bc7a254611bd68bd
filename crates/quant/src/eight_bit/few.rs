//! `W · xᵀ` for few rows of `x` and a weight of 8-bit integers: each value is widened in a register, and used there for all
//! rows.

use super::codec::{EightBitFormat, EightBitLayout};
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Elements that are widened together.
const PART: usize = 32;

/// Rows of the weight that a task takes at least.
const ROWS: usize = 32;

/// Most rows of `x`.
const FEW: usize = 16;

/// Rows of `x` for which a value is widened once.
const GROUP: usize = 4;

/// Returns `true` if [`few_rows`] can compute the product of this weight with so many rows here.
pub(super) fn supports(layout: &EightBitLayout, rows: usize) -> bool {
    let [height, width] = layout.block;
    (1..=FEW).contains(&rows)
        && layout.format == EightBitFormat::Int8
        && height == 1
        && width.is_multiple_of(PART)
        && layout.shape[1].is_multiple_of(width)
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
}

/// Computes `W · xᵀ`, `[out, rows]`.
///
/// # Panics
/// If the lengths do not fit, or [`supports`] is not true.
pub(super) fn few_rows(
    layout: &EightBitLayout,
    codes: &[u32],
    scales: &[u32],
    x: &[f32],
    rows: usize,
) -> Vec<f32> {
    let [height, width] = layout.shape;
    assert!(supports(layout, rows), "a product of {rows} rows with {layout:?}");
    assert_eq!([x.len(), codes.len() * 4], [rows * width, height * width], "sizes of a product");
    let blocks = width / layout.block[1];
    let mut result = vec![0.0f32; height * rows];
    let results = result.par_chunks_mut(rows).zip(codes.par_chunks(width / 4));
    let results = results.zip(scales.par_chunks(blocks)).with_min_len(ROWS);
    results.for_each(|((sums, codes), scales)| {
        for (sums, x) in sums.chunks_mut(GROUP).zip(x.chunks(GROUP * width)) {
            // SAFETY: the processor has the instructions, and the lengths fit, as checked.
            unsafe {
                match sums.len() {
                    1 => one_row::<1>(codes, scales, x, sums),
                    2 => one_row::<2>(codes, scales, x, sums),
                    3 => one_row::<3>(codes, scales, x, sums),
                    _ => one_row::<GROUP>(codes, scales, x, sums),
                }
            }
        }
    });
    let factor = layout.format.factor();
    result.iter_mut().for_each(|sum| *sum *= factor);
    result
}

/// Product of a row of the weight with `R` rows of `x`, without the format's factor.
///
/// # Safety
/// The processor has AVX2 and FMA; `x` has `R` rows as long as that of the weight, whose blocks have a multiple of [`PART`]
/// elements, one scale for each.
#[target_feature(enable = "avx2,fma")]
unsafe fn one_row<const R: usize>(codes: &[u32], scales: &[u32], x: &[f32], sums: &mut [f32]) {
    let (width, block) = (codes.len() * 4, codes.len() / scales.len());
    let mut totals = [_mm256_setzero_ps(); R];
    for (number, (codes, scale)) in codes.chunks_exact(block).zip(scales).enumerate() {
        let scale = _mm256_set1_ps(f32::from_bits(*scale));
        let mut block_sums = [[_mm256_setzero_ps(); 2]; R];
        for (part, codes) in codes.as_chunks::<{ PART / 4 }>().0.iter().enumerate() {
            let from = number * block * 4 + part * PART;
            for vector in 0..PART / 8 {
                // SAFETY: two words of eight.
                let bytes = unsafe { _mm_loadl_epi64(codes.as_ptr().add(vector * 2).cast()) };
                let values = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                for (r, sums) in block_sums.iter_mut().enumerate() {
                    // SAFETY: inside row `r` of `x`, as required of the caller.
                    let x =
                        unsafe { _mm256_loadu_ps(x.as_ptr().add(r * width + from + vector * 8)) };
                    sums[vector % 2] = _mm256_fmadd_ps(values, x, sums[vector % 2]);
                }
            }
        }
        for (total, [even, odd]) in totals.iter_mut().zip(block_sums) {
            *total = _mm256_fmadd_ps(_mm256_add_ps(even, odd), scale, *total);
        }
    }
    for (sum, total) in sums.iter_mut().zip(totals) {
        let mut lanes = [0.0f32; 8];
        // SAFETY: there are eight.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), total) };
        *sum = lanes.iter().sum();
    }
}
