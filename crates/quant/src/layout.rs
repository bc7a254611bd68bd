//! Memory layout of a packed weight.

use crate::{
    format::Format,
    scale::{NESTED_BLOCK, ScaleRule},
};

/// Memory layout of one weight: three arrays of 32-bit words.
///
/// - codes: 8 per word. Byte `i` of the array (little endian) holds elements `2i`, in its high
///   half, and `2i + 1`: the same bytes as in bitsandbytes. Blocks run over the flattened row-major
///   weight, whatever its row length.
/// - scales: float32 bits, one per block, or 8-bit codes, 4 per word, lowest byte first.
/// - tables: float32 bits: the codebook (16), and with coded scales their map (256), the offset
///   and the outer float32s; with products in FP8 at last the scale of the E4M3 weight.
///
/// Words are integers even where they hold float32 bits, so that nothing that processes the float
/// parameters of a model (a cast, an optimizer) changes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Format of the codes.
    pub format: Format,
    /// Rule of the scales.
    pub scales: ScaleRule,
    /// Number of elements that share a scale; a power of two, at least 16.
    pub block_size: usize,
    /// Logical shape of the weight, `[out, in]`.
    pub shape: [usize; 2],
    /// Whether products are computed in FP8 ([`PackedWeight::with_fp8`](crate::PackedWeight::with_fp8)).
    pub fp8: bool,
}

impl Layout {
    /// Index of the offset in the tables; the outer float32s follow it.
    pub(crate) const OFFSET: usize = 16 + 256;

    pub(crate) fn new(
        format: Format,
        scales: ScaleRule,
        block_size: usize,
        shape: [usize; 2],
    ) -> Self {
        Self { format, scales, block_size, shape, fp8: false }
    }

    /// Number of elements.
    ///
    /// # Panics
    /// If it exceeds `usize`.
    pub const fn len(&self) -> usize {
        self.shape[0].checked_mul(self.shape[1]).expect("the elements of a weight")
    }

    /// Returns `true` if the weight has no elements.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of blocks, the last of which may be shorter.
    pub const fn blocks(&self) -> usize {
        self.len().div_ceil(self.block_size)
    }

    /// Number of words of codes.
    pub const fn code_words(&self) -> usize {
        self.len().div_ceil(8)
    }

    /// Number of words of scales.
    pub const fn scale_words(&self) -> usize {
        if self.scales.is_coded() { self.blocks().div_ceil(4) } else { self.blocks() }
    }

    /// Number of words of tables.
    pub const fn table_words(&self) -> usize {
        let scales = if self.scales.is_coded() { Self::OFFSET + 1 + self.outer_len() } else { 16 };
        scales + self.fp8 as usize
    }

    /// Number of outer float32s.
    pub const fn outer_len(&self) -> usize {
        match self.scales {
            ScaleRule::Absmax => 0,
            ScaleRule::DoubleQuant => self.blocks().div_ceil(NESTED_BLOCK),
            ScaleRule::E8m0 | ScaleRule::E4m3 => 1,
        }
    }

    /// Returns the scale of a block from the words of scales and tables.
    #[inline]
    pub(crate) fn scale(&self, scales: &[u32], tables: &[u32], block: usize) -> f32 {
        if !self.scales.is_coded() {
            return f32::from_bits(scales[block]);
        }
        let code = scales[block / 4] >> (8 * (block % 4)) & 0xff;
        let table = |i: usize| f32::from_bits(tables[i]);
        let outer = if self.scales == ScaleRule::DoubleQuant { block / NESTED_BLOCK } else { 0 };
        // bitsandbytes rounds after the product, so this is no fused multiply-add.
        table(16 + code as usize) * table(Self::OFFSET + 1 + outer) + table(Self::OFFSET)
    }

    /// Initial tables, independent of the weight: codebook and map, offset 0, outer float32s 1.
    pub(crate) fn tables(&self) -> Vec<f32> {
        let mut tables = self.format.codebook().to_vec();
        tables.extend(self.scales.map());
        if self.scales.is_coded() {
            tables.push(0.0);
        }
        tables.resize(self.table_words(), 1.0);
        tables
    }

    /// Total bytes of the three arrays.
    pub const fn bytes(&self) -> usize {
        4 * (self.code_words() + self.scale_words() + self.table_words())
    }
}

#[cfg(test)]
mod tests {
    use crate::QuantConfig;

    #[test]
    fn sizes() {
        let layout = QuantConfig::nf4().double_quant(true).layout([4096, 4096]);
        assert_eq!(layout.code_words() * 8, 4096 * 4096);
        assert_eq!(layout.scale_words() * 4, 4096 * 64);
        assert_eq!(layout.outer_len(), 1024);
        // what `bits_per_weight` says, and the tables
        let bits = layout.bytes() as f64 * 8.0 / layout.len() as f64;
        let expected = QuantConfig::nf4().double_quant(true).bits_per_weight();
        assert!((bits - expected).abs() < 1e-3, "{bits}");

        let odd = QuantConfig::nvfp4().layout([3, 7]);
        assert_eq!((odd.blocks(), odd.code_words(), odd.scale_words()), (2, 3, 1));
        assert_eq!(odd.tables().len(), odd.table_words());
    }
}
