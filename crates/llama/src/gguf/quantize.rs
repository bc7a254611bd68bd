//! Encoding of float32 in GGUF's types, to the bits of llama.cpp's `llama-quantize` without an
//! importance matrix (ggml, `ggml-quants.c`): the inverse of [`dequantize`](super::dequantize).

use super::dequantize::{E2M1, half_power};
use burn_lora_io::gguf::TensorType;
use half::{bf16, f16};
use rayon::prelude::*;

/// Types that tensors can be written in.
pub(super) const WRITABLE: [TensorType; 9] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4K,
    TensorType::Q6K,
    TensorType::Mxfp4,
    TensorType::Q5_0,
];

/// Values below which a block counts as zero.
const ZERO: f32 = 1e-15;

/// Encodes values, a whole number of blocks.
///
/// # Panics
/// If the type is not one of [`WRITABLE`].
pub(super) fn quantize(kind: TensorType, values: &[f32]) -> Vec<u8> {
    match kind {
        TensorType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        TensorType::F16 => {
            values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
        }
        TensorType::BF16 => {
            values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
        }
        TensorType::Q8_0 => each(values, q8_0),
        TensorType::Q4_0 => each(values, q4_0),
        TensorType::Q4K => each(values, q4_k),
        TensorType::Q6K => each(values, q6_k),
        TensorType::Mxfp4 => each(values, mxfp4),
        TensorType::Q5_0 => each(values, q5_0),
        other => panic!("{} is not written", other.name()),
    }
}

/// Encodes block by block, on all processors.
fn each<const VALUES: usize, const BYTES: usize>(
    values: &[f32],
    encode: fn(&[f32; VALUES]) -> [u8; BYTES],
) -> Vec<u8> {
    let blocks: Vec<_> = values.as_chunks().0.par_iter().map(encode).collect();
    blocks.into_flattened()
}

fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

/// Writes a scale as float16.
fn put(block: &mut [u8], at: usize, scale: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
}

fn rounded(scale: f32) -> f32 {
    f16::from_f32(scale).to_f32()
}

/// Nearest integer, ties to even.
fn nearest(value: f32) -> i32 {
    value.round_ties_even() as i32
}

/// The scale is the largest magnitude by 127; ties round away from zero.
fn q8_0(x: &[f32; 32]) -> [u8; 34] {
    let scale = x.iter().fold(0.0, |max: f32, x| max.max(x.abs())) / 127.0;
    let by = inverse(scale);
    let mut block = [0; 34];
    put(&mut block, 0, scale);
    for (code, x) in block[2..].iter_mut().zip(x) {
        *code = (x * by).round() as i8 as u8;
    }
    block
}

/// The value of the largest magnitude has code 0, which is -8.
fn q4_0(x: &[f32; 32]) -> [u8; 18] {
    let scale = largest(x) / -8.0;
    let by = inverse(scale);
    let mut block = [0; 18];
    put(&mut block, 0, scale);
    let code = |x: f32| ((x * by + 8.5) as i8 as u8).min(15);
    for i in 0..16 {
        block[2 + i] = code(x[i]) | code(x[i + 16]) << 4;
    }
    block
}

/// As Q4_0 with codes to 31, whose fifth bits come before the nibbles.
fn q5_0(x: &[f32; 32]) -> [u8; 22] {
    let scale = largest(x) / -16.0;
    let by = inverse(scale);
    let mut block = [0; 22];
    put(&mut block, 0, scale);
    for (i, x) in x.iter().enumerate() {
        let code = ((x * by + 16.5) as i8 as u8).min(31);
        block[2 + i / 8] |= code >> 4 << (i % 8);
        block[6 + i % 16] |= (code & 15) << (i / 16 * 4);
    }
    block
}

/// The scale is the power of two with which the largest magnitude is from 4 to 8, of which 6 is the largest
/// code. Blocks that were in MXFP4 keep their values.
fn mxfp4(x: &[f32; 32]) -> [u8; 17] {
    let most = largest(x).abs();
    let exponent = if most > 0.0 { (most.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
    let scale = half_power(exponent);
    let code = |x: f32| {
        let error = |code: &usize| (f32::from(E2M1[*code]) * scale - x).abs();
        (0..16).reduce(|best, code| if error(&code) < error(&best) { code } else { best })
    };
    let mut block = [0; 17];
    block[0] = exponent;
    for (i, x) in x.iter().enumerate() {
        block[1 + i % 16] |= (code(*x).expect("16 codes") as u8) << (i / 16 * 4);
    }
    block
}

/// Value of the largest magnitude, the first of several.
fn largest(x: &[f32]) -> f32 {
    x.iter().copied().fold(0.0, |max: f32, x| if x.abs() > max.abs() { x } else { max })
}

/// Each 32 values have a scale and a minimum, which are multiples of the block's own.
fn q4_k(x: &[f32; 256]) -> [u8; 144] {
    let parts: [(f32, f32, [u8; 32]); 8] = std::array::from_fn(|i| {
        let x: &[f32; 32] = x[32 * i..].first_chunk().expect("256 values");
        let mean = (x.iter().map(|x| x * x).sum::<f32>() / 32.0).sqrt();
        scale_and_minimum(x, &x.map(|x| mean + x.abs()))
    });
    let [scale, minimum] = [parts.map(|part| part.0), parts.map(|part| part.1)].map(|values| {
        values.into_iter().fold(0.0, |max: f32, value| if value > max { value } else { max })
    });
    let [by_scale, by_minimum] =
        [scale, minimum].map(|max| if max > 0.0 { 63.0 / max } else { 0.0 });
    let scales = parts.map(|part| (nearest(by_scale * part.0) as u8).min(63));
    let minimums = parts.map(|part| (nearest(by_minimum * part.1) as u8).min(63));
    let mut block = [0; 144];
    let [d, dmin] = [scale, minimum].map(|max| max / 63.0);
    put(&mut block, 0, d);
    put(&mut block, 2, dmin);
    for i in 0..4 {
        // The upper two bits of the last four are above those of the first four.
        block[4 + i] = scales[i] | scales[i + 4] >> 4 << 6;
        block[8 + i] = minimums[i] | minimums[i + 4] >> 4 << 6;
        block[12 + i] = scales[i + 4] & 15 | (minimums[i + 4] & 15) << 4;
    }
    let mut codes = parts.map(|part| part.2);
    for (i, codes) in codes.iter_mut().enumerate() {
        let (d, dm) = (rounded(d) * f32::from(scales[i]), rounded(dmin) * f32::from(minimums[i]));
        if d != 0.0 {
            *codes = std::array::from_fn(|j| nearest((x[32 * i + j] + dm) / d).clamp(0, 15) as u8);
        }
    }
    for (i, byte) in block[16..].iter_mut().enumerate() {
        let (pair, j) = (i / 32 * 2, i % 32);
        *byte = codes[pair][j] | codes[pair + 1][j] << 4;
    }
    block
}

/// Searches the scale and the minimum of `x ≈ scale·q - minimum` with codes from 0 to 15 that have the least
/// weighted square error: 21 grids, and for the codes of each the best line through them. A grid begins at
/// the best minimum so far.
fn scale_and_minimum(x: &[f32; 32], weights: &[f32; 32]) -> (f32, f32, [u8; 32]) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        min = if *x < min { *x } else { min };
        max = if *x > max { *x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    let mut min = min.min(0.0);
    if max == min {
        return (0.0, -min, [0; 32]);
    }
    let codes = |by: f32, min: f32| x.map(|x| nearest(by * (x - min)).clamp(0, 15));
    let error = |codes: &[i32; 32], scale: f32, min: f32| {
        let mut sum = 0.0;
        for i in 0..32 {
            let difference = scale * codes[i] as f32 + min - x[i];
            sum += weights[i] * (difference * difference);
        }
        sum
    };
    let by = 15.0 / (max - min);
    let (mut best, mut scale) = (codes(by, min), 1.0 / by);
    let mut least = error(&best, scale, min);
    for step in 0..=20 {
        let found = codes((-1.0 + 0.1 * step as f32 + 15.0) / (max - min), min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for i in 0..32 {
            let (l, w) = (found[i] as f32, weights[i]);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut own_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut own_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if own_min > 0.0 {
            (own_min, own_scale) = (0.0, sum_xl / sum_l2);
        }
        let own = error(&found, own_scale, own_min);
        if own < least {
            (best, least, scale, min) = (found, own, own_scale, own_min);
        }
    }
    (scale, -min, best.map(|code| code as u8))
}

/// Each 16 values have a scale of 8 bits, a multiple of the block's own.
fn q6_k(x: &[f32; 256]) -> [u8; 210] {
    let parts: [(f32, [i32; 16]); 16] =
        std::array::from_fn(|i| symmetric(x[16 * i..].first_chunk().expect("256 values")));
    let scale = largest(&parts.map(|part| part.0));
    let mut block = [0; 210];
    if scale.abs() < ZERO {
        return block;
    }
    let by = -128.0 / scale;
    let d = 1.0 / by;
    put(&mut block, 208, d);
    let scales = parts.map(|part| nearest(by * part.0).min(127) as i8);
    let mut codes = [0u8; 256];
    for i in 0..16 {
        block[192 + i] = scales[i] as u8;
        let d = rounded(d) * f32::from(scales[i]);
        for j in 0..16 {
            let code = match d == 0.0 {
                true => parts[i].1[j],
                false => nearest(x[16 * i + j] / d).clamp(-32, 31),
            };
            codes[16 * i + j] = (code + 32) as u8;
        }
    }
    for side in 0..2 {
        let code = |quarter: usize, i: usize| codes[128 * side + 32 * quarter + i];
        for i in 0..32 {
            let [a, b, c, d] = std::array::from_fn(|quarter| code(quarter, i));
            block[64 * side + i] = a & 15 | (c & 15) << 4;
            block[64 * side + 32 + i] = b & 15 | (d & 15) << 4;
            block[128 + 32 * side + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
    block
}

/// Searches the scale of `x ≈ scale·q` with codes from -32 to 31 that has the least square error, weighted by
/// the squares of the values: 19 grids, and for the codes of each the best scale.
fn symmetric(x: &[f32; 16]) -> (f32, [i32; 16]) {
    let max = largest(x);
    if max.abs() < ZERO {
        return (0.0, [-32; 16]);
    }
    let codes = |by: f32| x.map(|x| nearest(by * x).clamp(-32, 31));
    let sums = |codes: &[i32; 16]| {
        let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
        for (x, code) in x.iter().zip(codes) {
            let (w, l) = (x * x, *code as f32);
            sum_lx += w * x * l;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut best = codes(-32.0 / max);
    let (sum_lx, sum_l2): (f32, f32) = sums(&best);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
    let mut gain = scale * sum_lx;
    for step in (-9..=9).filter(|step| *step != 0) {
        let found = codes(-(32.0 + 0.1 * step as f32) / max);
        let (sum_lx, sum_l2) = sums(&found);
        if sum_l2 > 0.0 && sum_lx * sum_lx > gain * sum_l2 {
            (best, scale) = (found, sum_lx / sum_l2);
            gain = scale * sum_lx;
        }
    }
    (scale, best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// testdata/gguf/quantized.py: blocks that llama.cpp's library made.
    #[test]
    fn blocks_are_llama_cpps() {
        let file = std::fs::read("../../testdata/gguf/quantized.safetensors").unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let values: Vec<f32> = file
            .tensor("values")
            .unwrap()
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        for kind in WRITABLE.into_iter().filter(|kind| *kind != TensorType::F32) {
            let name = kind.name();
            let expected = file.tensor(&format!("{name}.bytes")).unwrap();
            let (found, size) = (quantize(kind, &values), kind.block().1);
            assert_eq!(found.len(), expected.data().len());
            let blocks = found.chunks(size).zip(expected.data().chunks(size)).enumerate();
            for (i, (found, expected)) in blocks {
                assert_eq!(found, expected, "{name}, block {i}");
            }
        }
    }
}
