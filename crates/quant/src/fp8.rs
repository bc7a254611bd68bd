//! Products in FP8: the values of E4M3, and the scales of weights and rows.
//!
//! A product is computed as `y[i, j] = s[i] · t · Σ q(x[i, k] / s[i]) · q(w[j, k] / t)`, where `q` rounds
//! to E4M3 (arXiv:2209.05433). A row of `x` has its own scale, which maps its largest magnitude to 448,
//! the end of E4M3's range; the weight has one, a power of two, so that 4-bit floats with powers of two
//! as scales (MXFP4) lose nothing but what is below E4M3's range.

use crate::{error::QuantError, layout::Layout, scale::E4M3_MAX};

/// Divisor of both sides of a weight that cuBLASLt multiplies in FP8.
const MULTIPLE: usize = 16;

/// Least magnitude of a row's largest value; a row below it counts as zero.
#[cfg(any(feature = "cpu", test))]
const LEAST: f32 = 1e-30;

/// Returns the scale of a weight: the least power of two that maps no value beyond E4M3's range.
///
/// # Errors
/// [`QuantError::Fp8`] if the weight has no products in FP8.
pub(crate) fn weight_scale(
    layout: &Layout,
    scales: &[u32],
    tables: &[u32],
) -> Result<f32, QuantError> {
    let shape = layout.shape;
    let failed = |reason: String| Err(QuantError::Fp8 { reason });
    if shape.iter().any(|side| !side.is_multiple_of(MULTIPLE)) {
        return failed(format!("a weight {shape:?}: its sides have to be multiples of {MULTIPLE}"));
    }
    let codes = tables[..16].iter().map(|&bits| f32::from_bits(bits).abs());
    let largest = codes.fold(0.0, f32::max);
    let scales = (0..layout.blocks()).map(|block| layout.scale(scales, tables, block).abs());
    let largest = scales.fold(0.0, larger) * largest;
    if !largest.is_finite() {
        return failed(format!("a weight {shape:?} with values that are not finite"));
    }
    let least = (largest / E4M3_MAX).max(f32::MIN_POSITIVE);
    Ok(least.log2().ceil().exp2())
}

/// The larger one; NaN if one of them is.
fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}

/// Rounds each row to E4M3; returns the scales of the rows.
#[cfg(any(feature = "cpu", test))]
pub(crate) fn round_rows(values: &mut [f32], width: usize) -> Vec<f32> {
    let rows = values.chunks_mut(width.max(1));
    rows.map(|row| {
        let wider =
            |max: f32, value: &f32| if value.is_nan() { *value } else { value.abs().max(max) };
        let largest = row.iter().fold(0.0, |max: f32, value| match max.is_nan() {
            true => max,
            false => wider(max, value),
        });
        let factor = if largest > LEAST { E4M3_MAX / largest } else { 0.0 };
        row.iter_mut().for_each(|value| *value = round(*value * factor));
        largest / E4M3_MAX
    })
    .collect()
}

/// Rounds to the nearest E4M3 value, to even in the middle, to the end of the range beyond it.
#[cfg(any(feature = "cpu", test))]
pub(crate) fn round(value: f32) -> f32 {
    if value.is_nan() {
        return value;
    }
    let magnitude = value.abs().min(E4M3_MAX);
    // Three bits of mantissa; below 2^-6 the values are 2^-9 apart.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let quantum = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    ((magnitude / quantum).round_ties_even() * quantum).copysign(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{QuantConfig, codec::Packed, scale::ScaleRule};

    fn scale_of(packed: &Packed) -> Result<f32, QuantError> {
        weight_scale(&packed.layout, &packed.scales, &packed.tables)
    }

    #[test]
    fn values_are_those_of_the_format() {
        let map = ScaleRule::E4m3.map();
        let ascending = &map[..127];
        for (code, pair) in ascending.windows(2).enumerate() {
            let [low, high] = [pair[0], pair[1]];
            let middle = (low + high) / 2.0;
            let even = if code % 2 == 0 { low } else { high };
            for (value, expected) in [
                (low, low),
                (middle, even),
                (middle - middle * 1e-6, low),
                (middle + middle * 1e-6, high),
            ] {
                assert_eq!(round(value), expected, "{value}");
                assert_eq!(round(-value), -expected, "-{value}");
            }
        }
        assert_eq!((round(1e9), round(f32::NEG_INFINITY)), (448.0, -448.0));
        assert!(round(f32::NAN).is_nan());
    }

    #[test]
    fn rows_have_scales_of_their_own() {
        let mut rows = [1.0, -2.0, 0.5, 0.0, 0.0, 0.0, 1e-38, 1e-38, 0.0, f32::NAN, 1.0, 2.0];
        let scales = round_rows(&mut rows, 3);
        assert_eq!(scales[0], 2.0 / 448.0);
        assert_eq!(rows[..9], [224.0, -448.0, 112.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(scales[3].is_nan());
    }

    /// MXFP4 is exact in E4M3.
    #[test]
    fn floats_of_four_bits_with_powers_of_two_as_scales_lose_nothing() {
        let values: Vec<f32> = (0..32 * 64).map(|i| (i as f32 * 0.7).sin() * 0.03).collect();
        let error = |config: QuantConfig| {
            let packed = Packed::quantize(&values, [32, 64], &config).unwrap();
            let scale = scale_of(&packed).unwrap();
            let decoded = packed.dequantize();
            let worst = decoded.iter().map(|w| (round(w / scale) * scale - w).abs());
            worst.fold(0.0, f32::max) / decoded.iter().fold(0.0f32, |max, w| w.abs().max(max))
        };
        assert_eq!(error(QuantConfig::mxfp4()), 0.0);
        let (nf4, nvfp4) = (error(QuantConfig::nf4()), error(QuantConfig::nvfp4()));
        assert!((1e-3..0.04).contains(&nf4) && (1e-3..0.04).contains(&nvfp4), "{nf4} {nvfp4}");
    }

    #[test]
    fn what_has_no_products_in_fp8_is_an_error() {
        let packed = Packed::quantize(&[1.0; 24 * 64], [24, 64], &QuantConfig::nf4()).unwrap();
        assert!(scale_of(&packed).unwrap_err().to_string().contains("[24, 64]"));
        let packed = Packed::quantize(&[f32::NAN; 64 * 64], [64, 64], &QuantConfig::nf4()).unwrap();
        assert!(scale_of(&packed).unwrap_err().to_string().contains("finite"));
    }
}
