//! MXFP4 weights as gpt-oss' files have them.

use crate::{
    codec::{Packed, to_words},
    config::QuantConfig,
    error::QuantError,
};

/// Scale that stands for NaN.
const NAN: u8 = 255;

impl Packed {
    /// Reads the weight `name` of blocks and scales, without a change of any value: 16 bytes for each
    /// block of 32 values, the first of two in the low half of a byte, and an exponent for each block.
    ///
    /// ```
    /// use burn_lora_quant::codec::Packed;
    ///
    /// // 0.5 and -6, times 2; then zeros.
    /// let blocks = [[0xf1].as_slice(), &[0; 15]].concat();
    /// let packed = Packed::from_mxfp4("weight", &blocks, &[128], [1, 32])?;
    /// assert_eq!(packed.dequantize()[..3], [1.0, -12.0, 0.0]);
    /// # Ok::<_, burn_lora_quant::QuantError>(())
    /// ```
    ///
    /// # Errors
    /// - [`QuantError::Length`] if the numbers of bytes do not fit the shape `[out, in]`.
    /// - [`QuantError::Value`] if a scale is 255, which stands for NaN.
    pub fn from_mxfp4(
        name: &str,
        blocks: &[u8],
        scales: &[u8],
        shape: [usize; 2],
    ) -> Result<Self, QuantError> {
        let layout = QuantConfig::mxfp4().layout(shape);
        for (found, expected, why) in [
            (2 * blocks.len(), layout.len(), "two values a byte"),
            (scales.len() * layout.block_size, layout.len(), "a scale for 32 values of a row"),
        ] {
            if found != expected {
                let (tensor, why) = (name.to_owned(), format!("{why}, {shape:?}"));
                return Err(QuantError::Length { tensor, found, expected, why });
            }
        }
        if let Some(block) = scales.iter().position(|scale| *scale == NAN) {
            return Err(QuantError::Value {
                tensor: name.into(),
                field: format!("the scale of block {block}"),
                found: format!("{NAN}, NaN"),
                expected: "an exponent: the file is damaged, or was saved so".into(),
            });
        }
        let halves_swapped = blocks.iter().map(|byte| byte.rotate_left(4));
        let codes = to_words(&halves_swapped.collect::<Vec<_>>());
        let tables = layout.tables().iter().map(|value| value.to_bits()).collect();
        Ok(Self { layout, codes, scales: to_words(scales), tables })
    }
}
