//! Dequantization of GGUF tensors to float32. Source: ggml, `ggml-quants.c`.

use burn::tensor::DType;
use burn_lora_io::gguf::TensorType;
use half::{bf16, f16};
use std::thread;

/// Dtype of a type that is not quantized.
pub(super) fn dense(kind: TensorType) -> Option<DType> {
    match kind {
        TensorType::F32 => Some(DType::F32),
        TensorType::F16 => Some(DType::F16),
        TensorType::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Dequantizes whole blocks, on all cores.
pub(super) fn dequantize(kind: TensorType, bytes: &[u8]) -> Vec<f32> {
    let (block_values, block_bytes) = kind.block();
    let blocks = bytes.len() / block_bytes;
    let mut values = vec![0.0; blocks * block_values];
    // A thread for less than this costs more than it saves.
    const LEAST: usize = 1 << 16;
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
    let share = blocks.div_ceil(threads).max(LEAST / block_values);
    thread::scope(|scope| {
        let shares = bytes.chunks(share * block_bytes).zip(values.chunks_mut(share * block_values));
        let mut shares = shares.collect::<Vec<_>>();
        let last = shares.pop();
        for (bytes, values) in shares {
            scope.spawn(move || decode(kind, bytes, values));
        }
        if let Some((bytes, values)) = last {
            decode(kind, bytes, values);
        }
    });
    values
}

fn decode(kind: TensorType, bytes: &[u8], values: &mut [f32]) {
    match kind {
        TensorType::F32 => each(bytes, values, |block, [y]| *y = f32::from_le_bytes(*block)),
        TensorType::F16 => {
            each(bytes, values, |block, [y]| *y = f16::from_le_bytes(*block).to_f32())
        }
        TensorType::BF16 => {
            each(bytes, values, |block, [y]| *y = bf16::from_le_bytes(*block).to_f32())
        }
        TensorType::Q4_0 => each(bytes, values, q4_0),
        TensorType::Q4_1 => each(bytes, values, q4_1),
        TensorType::Q5_0 => each(bytes, values, q5_0),
        TensorType::Q5_1 => each(bytes, values, q5_1),
        TensorType::Q8_0 => each(bytes, values, q8_0),
        TensorType::Q2K => each(bytes, values, q2_k),
        TensorType::Q3K => each(bytes, values, q3_k),
        TensorType::Q4K => each(bytes, values, q4_k),
        TensorType::Q5K => each(bytes, values, q5_k),
        TensorType::Q6K => each(bytes, values, q6_k),
        TensorType::Iq4Nl => each(bytes, values, iq4_nl),
        TensorType::Iq4Xs => each(bytes, values, iq4_xs),
        TensorType::Mxfp4 => each(bytes, values, mxfp4),
    }
}

/// Decodes block by block.
fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    values: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let blocks = bytes.as_chunks().0.iter().zip(values.as_chunks_mut().0);
    blocks.for_each(|(block, values)| decode(block, values));
}

/// Float16 at a byte offset.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `d·(q - 8)`; low nibbles are the first half of the values.
fn q4_0(block: &[u8; 18], y: &mut [f32; 32]) {
    let d = half(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        y[i] = d * f32::from((byte & 15) as i8 - 8);
        y[i + 16] = d * f32::from((byte >> 4) as i8 - 8);
    }
}

/// `d·q + m`.
fn q4_1(block: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, byte) in block[4..].iter().enumerate() {
        y[i] = d * f32::from(byte & 15) + m;
        y[i + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// Codes of a block whose fifth bits are stored apart.
fn five_bits(high: &[u8], low: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| {
        let nibble = if i < 16 { low[i] & 15 } else { low[i - 16] >> 4 };
        nibble | (high[i / 8] >> (i % 8) & 1) << 4
    })
}

/// `d·(q - 16)`.
fn q5_0(block: &[u8; 22], y: &mut [f32; 32]) {
    let d = half(block, 0);
    *y = five_bits(&block[2..6], &block[6..]).map(|q| d * f32::from(q as i8 - 16));
}

/// `d·q + m`.
fn q5_1(block: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    *y = five_bits(&block[4..8], &block[8..]).map(|q| d * f32::from(q) + m);
}

/// `d·q`.
fn q8_0(block: &[u8; 34], y: &mut [f32; 32]) {
    let d = half(block, 0);
    for (y, q) in y.iter_mut().zip(&block[2..]) {
        *y = f32::from(*q as i8) * d;
    }
}

/// Code of two bits of value `i` of 256: each half has 32 bytes, and each quarter of a half its bits of them.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    let (side, quarter) = (i / 128, i / 32 % 4);
    bytes[side * 32 + i % 32] >> (2 * quarter) & 3
}

/// `d·scale·q - dmin·minimum`; scale and minimum of 16 values are the nibbles of a byte.
fn q2_k(block: &[u8; 84], y: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (i, y) in y.iter_mut().enumerate() {
        let byte = block[i / 16];
        let (scale, minimum) = (d * f32::from(byte & 15), dmin * f32::from(byte >> 4));
        *y = scale * f32::from(two_bits(&block[16..80], i)) - minimum;
    }
}

/// `d·(scale - 32)·(q - 4)`: the third bits of the codes come first, those of a part of 32 in the same place
/// of all bytes; 16 values share a scale of 6 bits, the upper two stored apart.
fn q3_k(block: &[u8; 110], y: &mut [f32; 256]) {
    let (d, scales) = (half(block, 108), &block[96..108]);
    for (i, y) in y.iter_mut().enumerate() {
        let group = i / 16;
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let scale = low | (scales[8 + group % 4] >> (group / 4 * 2) & 3) << 4;
        let q = two_bits(&block[32..96], i) | (block[i % 32] >> (i / 32) & 1) << 2;
        *y = d * f32::from(scale as i8 - 32) * f32::from(q as i8 - 4);
    }
}

/// Values of the codes of IQ4_NL and IQ4_XS.
const NON_LINEAR: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of the codes of MXFP4 (E2M1).
pub(super) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `scale·value(q)`; low nibbles are the first half of the values.
fn by_table(table: &[i8; 16], scale: f32, nibbles: &[u8], y: &mut [f32]) {
    for (i, byte) in nibbles.iter().enumerate() {
        let value = |code: u8| scale * f32::from(table[usize::from(code)]);
        (y[i], y[i + 16]) = (value(byte & 15), value(byte >> 4));
    }
}

fn iq4_nl(block: &[u8; 18], y: &mut [f32; 32]) {
    by_table(&NON_LINEAR, half(block, 0), &block[2..], y);
}

/// As IQ4_NL, with a scale of 6 bits less 32 for each part of 32: two bits of it, then four.
fn iq4_xs(block: &[u8; 136], y: &mut [f32; 256]) {
    let (d, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (part, y) in y.chunks_exact_mut(32).enumerate() {
        let low = block[4 + part / 2] >> (part % 2 * 4) & 15;
        let scale = low | ((high >> (2 * part) & 3) as u8) << 4;
        by_table(&NON_LINEAR, d * f32::from(scale as i8 - 32), &block[8 + part * 16..][..16], y);
    }
}

/// `2^(e - 127)·value(q)`, `e` the first byte.
fn mxfp4(block: &[u8; 17], y: &mut [f32; 32]) {
    by_table(&E2M1, half_power(block[0]), &block[1..], y);
}

/// `2^(e - 128)`.
pub(super) fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Scale and minimum of part `i` of 8, of 6 bits each: the upper two bits of the last four parts
/// are stored above those of the first four.
fn scale_and_minimum(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, minimum) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        let low = packed[i + 4];
        (low & 15 | packed[i - 4] >> 6 << 4, low >> 4 | packed[i] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

/// `d·scale·q - dmin·minimum`; 32 bytes are two parts, the low nibbles the first.
fn q4_k(block: &[u8; 144], y: &mut [f32; 256]) {
    k_blocks(block, &block[16..], y, |_, _| 0);
}

/// As Q4_K; bit `i` of the bytes before the nibbles is the fifth bit of part `i`.
fn q5_k(block: &[u8; 176], y: &mut [f32; 256]) {
    k_blocks(block, &block[48..], y, |part, i| (block[16 + i] >> part & 1) << 4);
}

fn k_blocks(head: &[u8], nibbles: &[u8], y: &mut [f32; 256], high: impl Fn(usize, usize) -> u8) {
    let (d, dmin) = (half(head, 0), half(head, 2));
    for (part, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&head[4..16], part);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let bytes = &nibbles[part / 2 * 32..][..32];
        for (i, (y, byte)) in y.iter_mut().zip(bytes).enumerate() {
            let q = byte >> (part % 2 * 4) & 15 | high(part, i);
            *y = scale * f32::from(q) - minimum;
        }
    }
}

/// `d·scale·(q - 32)`; each half of the values has 64 bytes of low nibbles, 32 of upper bit pairs
/// and 8 scales.
fn q6_k(block: &[u8; 210], y: &mut [f32; 256]) {
    let d = half(block, 208);
    for (part, y) in y.chunks_exact_mut(32).enumerate() {
        let (side, quarter) = (part / 4, part % 4);
        let low = &block[side * 64 + quarter % 2 * 32..][..32];
        let high = &block[128 + side * 32..][..32];
        for (i, y) in y.iter_mut().enumerate() {
            let scale = d * f32::from(block[192 + part * 2 + i / 16] as i8);
            let q = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4;
            *y = scale * f32::from(q as i8 - 32);
        }
    }
}
