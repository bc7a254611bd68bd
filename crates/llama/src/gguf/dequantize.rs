//! The types of GGUF's tensors, and what their values are as float32. Source: ggml, `ggml-quants.c`.

use burn::tensor::DType;
use half::{bf16, f16};
use std::thread;

/// What can be read, for messages.
pub(super) const SUPPORTED: &str =
    "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K";

/// A type that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q4K = 12,
    Q5K = 13,
    Q6K = 14,
    BF16 = 30,
}

/// The name of a type by its number, also of one that cannot be read.
pub(super) fn type_name(id: u32) -> String {
    const NAMES: [&str; 40] = [
        "F32",
        "F16",
        "Q4_0",
        "Q4_1",
        "Q4_2",
        "Q4_3",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q8_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "Q8_K",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ3_XXS",
        "IQ1_S",
        "IQ4_NL",
        "IQ3_S",
        "IQ2_S",
        "IQ4_XS",
        "I8",
        "I16",
        "I32",
        "I64",
        "F64",
        "IQ1_M",
        "BF16",
        "Q4_0_4_4",
        "Q4_0_4_8",
        "Q4_0_8_8",
        "TQ1_0",
        "TQ2_0",
        "IQ4_NL_4_4",
        "IQ4_NL_4_8",
        "IQ4_NL_8_8",
        "MXFP4",
    ];
    NAMES.get(id as usize).map_or(format!("of type {id}"), |name| name.to_string())
}

impl TensorType {
    /// The type of this number in the file, if it can be read.
    pub fn from_id(id: u32) -> Option<Self> {
        const ALL: [TensorType; 11] = [
            TensorType::F32,
            TensorType::F16,
            TensorType::Q4_0,
            TensorType::Q4_1,
            TensorType::Q5_0,
            TensorType::Q5_1,
            TensorType::Q8_0,
            TensorType::Q4K,
            TensorType::Q5K,
            TensorType::Q6K,
            TensorType::BF16,
        ];
        ALL.into_iter().find(|known| *known as u32 == id)
    }

    /// Its name in llama.cpp.
    pub fn name(self) -> String {
        type_name(self as u32)
    }

    /// Values in a block, and bytes.
    const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// The dtype, if values are stored as they are.
    pub fn dense(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// The bytes of a tensor; an error is the reason alone.
    pub fn bytes(self, shape: &[usize]) -> Result<usize, String> {
        let (values, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(values) {
            return Err(format!("rows of {row} values, {} has blocks of {values}", self.name()));
        }
        let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size));
        // float32 has to fit as well.
        count
            .filter(|count| count.checked_mul(4).is_some_and(|size| isize::try_from(size).is_ok()))
            .and_then(|count| (count / values).checked_mul(bytes))
            .ok_or_else(|| format!("{shape:?} is larger than memory can be"))
    }

    /// The values of whole blocks, by all cores.
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let (block_values, block_bytes) = self.block();
        let blocks = bytes.len() / block_bytes;
        let mut values = vec![0.0; blocks * block_values];
        // A thread for less than this costs more than it saves.
        const LEAST: usize = 1 << 16;
        let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
        let share = blocks.div_ceil(threads).max(LEAST / block_values);
        thread::scope(|scope| {
            let shares =
                bytes.chunks(share * block_bytes).zip(values.chunks_mut(share * block_values));
            let mut shares = shares.collect::<Vec<_>>();
            let last = shares.pop();
            for (bytes, values) in shares {
                scope.spawn(move || self.decode(bytes, values));
            }
            if let Some((bytes, values)) = last {
                self.decode(bytes, values);
            }
        });
        values
    }

    fn decode(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => each(bytes, values, |block, [y]| *y = f32::from_le_bytes(*block)),
            Self::F16 => each(bytes, values, |block, [y]| *y = f16::from_le_bytes(*block).to_f32()),
            Self::BF16 => {
                each(bytes, values, |block, [y]| *y = bf16::from_le_bytes(*block).to_f32())
            }
            Self::Q4_0 => each(bytes, values, q4_0),
            Self::Q4_1 => each(bytes, values, q4_1),
            Self::Q5_0 => each(bytes, values, q5_0),
            Self::Q5_1 => each(bytes, values, q5_1),
            Self::Q8_0 => each(bytes, values, q8_0),
            Self::Q4K => each(bytes, values, q4_k),
            Self::Q5K => each(bytes, values, q5_k),
            Self::Q6K => each(bytes, values, q6_k),
        }
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

/// The float16 at a place.
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

/// The codes of a block whose fifth bits lie apart.
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

/// Scale and minimum of part `i` of 8, of 6 bits each: the upper two bits of the last four parts lie
/// above the first four's.
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

/// `d·scale·(q - 32)`; each half of the values has 64 bytes of low nibbles, 32 of upper bit pairs and
/// 8 scales.
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
