//! 8-bit weights on the host: the layout, and the scalar reference of encoding and decoding.

use crate::{
    scale::{E4M3_MAX, ScaleRule},
    storage::StorageBytes,
};
use burn_lora_kernels::dynamic::nearest;
use serde::{Deserialize, Serialize};

/// An 8-bit number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EightBitFormat {
    /// A signed integer from -127 to 127, where 127 stands for the scale, the largest magnitude of
    /// the block: LLM.int8 (arXiv:2208.07339), as stored by bitsandbytes.
    Int8,
    /// The 8-bit float E4M3 without infinities (OCP, arXiv:2209.05433), times the scale: blockwise
    /// as in DeepSeek-V3 (arXiv:2412.19437) and compressed-tensors.
    Fp8,
}

impl EightBitFormat {
    /// Factor of a decoded value, beside its scale.
    pub(crate) const fn factor(self) -> f32 {
        match self {
            // bitsandbytes' constant, 1 / 127
            Self::Int8 => 7.874_016e-3,
            Self::Fp8 => 1.0,
        }
    }

    /// The value of each code.
    pub(crate) fn values(self) -> Vec<f32> {
        match self {
            Self::Int8 => (0..=255).map(|code: u8| f32::from(code as i8)).collect(),
            Self::Fp8 => ScaleRule::E4m3.map(),
        }
    }
}

/// Layout of an 8-bit weight: row-major, one byte per element, 4 per word, low byte first; and a
/// float32 scale for each block, block row after block row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EightBitLayout {
    /// Format of the codes.
    pub format: EightBitFormat,
    /// The logical shape, `[out, in]`.
    pub shape: [usize; 2],
    /// Rows and columns of a block, which shares a scale.
    pub block: [usize; 2],
}

impl EightBitLayout {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape[0].checked_mul(self.shape[1]).expect("the elements of a weight")
    }

    /// Returns `true` if the weight has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of words of codes.
    pub fn code_words(&self) -> usize {
        self.len().div_ceil(4)
    }

    /// Number of blocks down and across.
    pub fn blocks(&self) -> [usize; 2] {
        [0, 1].map(|side| self.shape[side].div_ceil(self.block[side].max(1)))
    }

    /// Number of scales, each a word.
    pub fn scale_words(&self) -> usize {
        self.blocks().iter().product()
    }

    /// Bytes of codes and of scales.
    pub fn bytes(&self) -> StorageBytes {
        let word = size_of::<u32>();
        StorageBytes { codes: self.code_words() * word, scales: self.scale_words() * word }
    }

    /// Returns the block of an element.
    fn block_of(&self, at: usize) -> usize {
        let width = self.shape[1];
        at / width / self.block[0] * self.blocks()[1] + at % width / self.block[1]
    }

    /// Decodes the elements from `first` on.
    #[cfg(feature = "cpu")]
    pub(crate) fn decode(&self, codes: &[u32], scales: &[u32], first: usize, out: &mut [f32]) {
        let (values, factor) = (self.format.values(), self.format.factor());
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            // Up to the end of the block's part of this row, all have one scale.
            let column = at % self.shape[1];
            let end = (column / self.block[1] + 1) * self.block[1];
            let count = (end.min(self.shape[1]) - column).min(rest.len());
            let (run, after) = rest.split_at_mut(count);
            let scale = f32::from_bits(scales[self.block_of(at)]);
            for (at, out) in (at..).zip(run) {
                let code = codes[at / 4] >> (at % 4 * 8) & 255;
                *out = values[code as usize] * scale * factor;
            }
            (at, rest) = (at + count, after);
        }
    }

    /// Encodes a row-major weight; returns codes and scales.
    pub(crate) fn encode(&self, weight: &[f32]) -> [Vec<u32>; 2] {
        let mut maxima = vec![0.0f32; self.scale_words()];
        for (at, value) in weight.iter().enumerate() {
            let max = &mut maxima[self.block_of(at)];
            // NaN is kept, too.
            *max = if value.is_nan() { *value } else { max.max(value.abs()) };
        }
        let map = self.format.values();
        let code = |at: usize, value: f32| {
            let max = maxima[self.block_of(at)];
            match self.format {
                EightBitFormat::Fp8 => {
                    let scaled = value / fp8_scale(max);
                    let code = nearest(&map[..127], scaled.abs(), true);
                    code | if scaled.is_sign_negative() { 0x80 } else { 0 }
                }
                EightBitFormat::Int8 if max == 0.0 => 0,
                // As in bitsandbytes: the product with 127 / absmax, rounded half to even.
                EightBitFormat::Int8 => (value * (127.0 / max)).round_ties_even() as i8 as u8,
            }
        };
        let mut codes = vec![0u32; self.code_words()];
        for (at, value) in weight.iter().enumerate() {
            codes[at / 4] |= u32::from(code(at, *value)) << (at % 4 * 8);
        }
        let scale = |max: &f32| match self.format {
            EightBitFormat::Fp8 => fp8_scale(*max),
            EightBitFormat::Int8 => *max,
        };
        [codes, maxima.iter().map(|max| scale(max).to_bits()).collect()]
    }
}

/// Scale of a block with the largest magnitude `max`, which becomes the largest 8-bit float.
fn fp8_scale(max: f32) -> f32 {
    let scale = max / E4M3_MAX;
    if scale == 0.0 { 1.0 } else { scale }
}
