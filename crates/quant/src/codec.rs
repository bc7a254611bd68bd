//! Scalar reference: 4-bit codes and scales of a slice of float32, without tensors.
//!
//! It defines the results of every device, and the CPU backend runs on it.
//!
//! ```
//! use burn_lora_quant::{QuantConfig, codec::Packed};
//!
//! let weight: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
//! let packed = Packed::quantize(&weight, [4, 64], &QuantConfig::nf4())?;
//! let error = packed.dequantize().iter().zip(&weight).map(|(q, w)| (q - w).abs()).sum::<f32>() / 256.0;
//! assert!(error < 0.1);
//! # Ok::<_, burn_lora_quant::QuantError>(())
//! ```

use crate::{
    config::QuantConfig,
    error::QuantError,
    format::Format,
    layout::Layout,
    scale::{NESTED_BLOCK, ScaleRule, encode_e8m0, nvfp4_global},
};
use burn_lora_kernels::dynamic::nearest;
use std::ops::Range;

/// A quantized weight in host memory, in the words that [`Layout`] describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The layout of the words.
    pub layout: Layout,
    /// The 4-bit codes.
    pub codes: Vec<u32>,
    /// The scale of each block.
    pub scales: Vec<u32>,
    /// Codebook, map of the scales, offset and outer float32s.
    pub tables: Vec<u32>,
}

impl Packed {
    /// Quantizes a row-major weight of `shape` `[out, in]`.
    ///
    /// A block with a NaN decodes to NaN, one with an infinity to NaN or infinities.
    ///
    /// # Errors
    /// [`QuantError::BlockSize`] or [`QuantError::DoubleQuant`], as [`QuantConfig::validate`].
    ///
    /// # Panics
    /// If the number of elements of `weight` does not fit `shape`.
    pub fn quantize(
        weight: &[f32],
        shape: [usize; 2],
        config: &QuantConfig,
    ) -> Result<Self, QuantError> {
        config.validate()?;
        let layout = config.layout(shape);
        assert_eq!(weight.len(), layout.len(), "a weight of shape {shape:?}");
        let absmax: Vec<f32> = weight.chunks(layout.block_size).map(absmax).collect();
        let (scales, tables, normalizers) = encode_scales(&layout, &absmax);
        let codes = weight
            .chunks(8)
            .enumerate()
            .map(|(word, values)| {
                encode_word(layout.format, values, normalizers[word * 8 / layout.block_size])
            })
            .collect();
        Ok(Self { layout, codes, scales, tables })
    }

    /// Decodes the weight, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.layout.len()];
        self.view().decode(0, &mut out);
        out
    }

    /// Borrows the weight for decoding.
    pub fn view(&self) -> PackedView<'_> {
        PackedView::new(self.layout, &self.codes, &self.scales, &self.tables)
    }
}

/// Returns the largest magnitude; NaN if there is a NaN.
pub(crate) fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, value| {
        let value = value.abs();
        if value > max || value.is_nan() { value } else { max }
    })
}

/// Factor of a block's elements before encoding: `1 / scale`, never infinite. bitsandbytes' least
/// absmax is 1e-38.
fn normalizer(scale: f32) -> f32 {
    1.0 / if scale < 1e-38 { 1e-38 } else { scale }
}

/// Encodes the absmax of each block; returns the words of the scales, the tables, and the
/// normalizer of each block.
pub(crate) fn encode_scales(layout: &Layout, absmax: &[f32]) -> (Vec<u32>, Vec<u32>, Vec<f32>) {
    let mut tables = layout.tables();
    let map = layout.scales.map();
    let ascending = &map[..layout.scales.ascending().min(map.len())];
    let (offset, outer) = (Layout::OFFSET, Layout::OFFSET + 1);
    let mut normalizers: Vec<f32> = absmax.iter().copied().map(normalizer).collect();
    let codes: Vec<u8> = match layout.scales {
        ScaleRule::Absmax => {
            let bits = absmax.iter().map(|scale| scale.to_bits()).collect();
            return (bits, to_bits(&tables), normalizers);
        }
        ScaleRule::DoubleQuant => {
            let sum: f64 = absmax.iter().copied().map(f64::from).sum();
            tables[offset] = (sum / absmax.len().max(1) as f64) as f32;
            let mut codes = Vec::with_capacity(absmax.len());
            for (i, block) in absmax.chunks(NESTED_BLOCK).enumerate() {
                let shifted: Vec<f32> = block.iter().map(|scale| scale - tables[offset]).collect();
                tables[outer + i] = self::absmax(&shifted);
                let normalizer = normalizer(tables[outer + i]);
                codes.extend(shifted.iter().map(|s| nearest(ascending, s * normalizer, false)));
            }
            codes
        }
        ScaleRule::E8m0 => absmax.iter().copied().map(encode_e8m0).collect(),
        ScaleRule::E4m3 => {
            tables[outer] = nvfp4_global(self::absmax(absmax));
            let unit = 1.0 / (6.0 * tables[outer]);
            absmax.iter().map(|absmax| nearest(ascending, absmax * unit, true)).collect()
        }
    };
    if matches!(layout.scales, ScaleRule::E8m0 | ScaleRule::E4m3) {
        let coded = |code: &u8| map[usize::from(*code)] * tables[outer];
        normalizers = codes.iter().map(coded).map(normalizer).collect();
    }
    let words = codes
        .chunks(4)
        .map(|codes| codes.iter().rev().fold(0, |word, code| word << 8 | u32::from(*code)));
    (words.collect(), to_bits(&tables), normalizers)
}

fn to_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Packs bytes into little-endian words, padded with zeros.
pub(crate) fn to_words(bytes: &[u8]) -> Vec<u32> {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let rest = (!rest.is_empty()).then_some(&last);
    words.iter().chain(rest).map(|word| u32::from_le_bytes(*word)).collect()
}

/// Encodes up to 8 elements that share a scale into a word.
pub(crate) fn encode_word(format: Format, values: &[f32], normalizer: f32) -> u32 {
    let nibble = |word, (i, value): (usize, &f32)| {
        word | u32::from(format.encode(value * normalizer)) << shift(i)
    };
    values.iter().enumerate().fold(0, nibble)
}

/// Bit offset of element `i` in a word: bytes from the lowest, the high half first.
const fn shift(i: usize) -> usize {
    (i ^ 1) * 4
}

/// A borrowed quantized weight, ready for decoding.
pub struct PackedView<'a> {
    layout: Layout,
    codes: &'a [u32],
    scales: &'a [u32],
    tables: &'a [u32],
    /// The two values of each byte of codes: halves the number of look-ups.
    pairs: [[f32; 2]; 256],
}

impl<'a> PackedView<'a> {
    /// Creates a view of words in `layout`.
    ///
    /// # Panics
    /// If the numbers of words do not fit `layout`, or if no [`QuantConfig`] has that layout.
    pub fn new(layout: Layout, codes: &'a [u32], scales: &'a [u32], tables: &'a [u32]) -> Self {
        layout.check();
        let found = [codes.len(), scales.len(), tables.len()];
        let expected = [layout.code_words(), layout.scale_words(), layout.table_words()];
        assert_eq!(found, expected, "words of codes, scales and tables of {layout:?}");
        let value = |code: usize| f32::from_bits(tables[code]);
        let pairs = std::array::from_fn(|byte| [value(byte >> 4), value(byte & 15)]);
        Self { layout, codes, scales, tables, pairs }
    }

    /// Layout of the words.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Scale of the E4M3 weight, if products are computed in FP8.
    #[cfg(feature = "cpu")]
    pub(crate) fn fp8_scale(&self) -> Option<f32> {
        self.layout.fp8.then(|| f32::from_bits(self.tables[self.tables.len() - 1]))
    }

    /// Returns the scale of a block.
    ///
    /// # Panics
    /// If the block does not exist.
    pub fn scale(&self, block: usize) -> f32 {
        assert!(block < self.layout.blocks(), "block {block} of {:?}", self.layout.shape);
        self.known_scale(block)
    }

    /// Words of the codes.
    #[cfg(feature = "cpu")]
    pub(crate) fn codes(&self) -> &'a [u32] {
        self.codes
    }

    /// Values of the codes.
    #[cfg(feature = "cpu")]
    pub(crate) fn codebook(&self) -> [f32; 16] {
        std::array::from_fn(|code| f32::from_bits(self.tables[code]))
    }

    /// Returns the scale of an existing block.
    pub(crate) fn known_scale(&self, block: usize) -> f32 {
        self.layout.scale(self.scales, self.tables, block)
    }

    /// Decodes the elements from `start` on into `out`, as many as it holds.
    ///
    /// # Panics
    /// If they extend past the end of the weight.
    pub fn decode(&self, start: usize, out: &mut [f32]) {
        let (len, end) = (self.layout.len(), start.saturating_add(out.len()));
        assert!(end <= len, "elements {start} to {end} of a weight of {len}");
        let size = self.layout.block_size;
        let mut rest = out;
        let mut at = start;
        while !rest.is_empty() {
            let block = at / size;
            let count = ((block + 1) * size - at).min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            self.decode_block(at..at + count, self.known_scale(block), head);
            (rest, at) = (tail, at + count);
        }
    }

    /// Decodes a part of one block.
    fn decode_block(&self, range: Range<usize>, scale: f32, out: &mut [f32]) {
        let pairs = &self.pairs;
        let element =
            |i: usize| pairs[(self.codes[i / 8] >> (8 * (i % 8 / 2)) & 0xff) as usize][i % 2];
        // Whole words in the middle, single elements at both ends.
        let whole = range.start.next_multiple_of(8)..range.end / 8 * 8;
        if whole.is_empty() {
            out.iter_mut().zip(range).for_each(|(out, i)| *out = element(i) * scale);
            return;
        }
        let (head, out) = out.split_at_mut(whole.start - range.start);
        let (middle, tail) = out.split_at_mut(whole.len());
        head.iter_mut().zip(range.start..).for_each(|(out, i)| *out = element(i) * scale);
        tail.iter_mut().zip(whole.end..).for_each(|(out, i)| *out = element(i) * scale);
        let words = &self.codes[whole.start / 8..whole.end / 8];
        for (out, word) in middle.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            let bytes = word.to_le_bytes();
            for (out, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                let [first, second] = pairs[usize::from(byte)];
                *out = [first * scale, second * scale];
            }
        }
    }
}
