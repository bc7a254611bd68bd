//! Settings of 4-bit quantization.

use crate::{error::QuantError, format::Format, layout::Layout, scale::ScaleRule};
use serde::{Deserialize, Serialize};

/// Settings of 4-bit quantization.
///
/// ```
/// use burn_lora_quant::QuantConfig;
///
/// // QLoRA's setting: 4.127 bits a weight
/// let config = QuantConfig::nf4().double_quant(true);
/// assert!((config.bits_per_weight() - 4.127).abs() < 1e-3);
///
/// let error = QuantConfig::nf4().block_size(48).validate().unwrap_err();
/// assert!(error.to_string().contains("48"));
/// ```
///
/// In a file (bitsandbytes' names `quant_type` and `blocksize` are accepted, too):
///
/// ```
/// # use burn_lora_quant::QuantConfig;
/// let config: QuantConfig = serde_json::from_str(r#"{"format": "nf4", "double_quant": true}"#)?;
/// assert_eq!(config, QuantConfig::nf4().double_quant(true));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", deny_unknown_fields)]
pub struct QuantConfig {
    format: Format,
    block_size: usize,
    double_quant: bool,
}

/// Fields of a [`QuantConfig`] in a file, with defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(alias = "quant_type")]
    format: Format,
    #[serde(alias = "blocksize")]
    block_size: Option<usize>,
    #[serde(default)]
    double_quant: bool,
}

impl TryFrom<Fields> for QuantConfig {
    type Error = QuantError;

    fn try_from(fields: Fields) -> Result<Self, QuantError> {
        let config = Self {
            format: fields.format,
            block_size: fields.block_size.unwrap_or(fields.format.default_block_size()),
            double_quant: fields.double_quant,
        };
        config.validate().map(|()| config)
    }
}

impl QuantConfig {
    /// Creates the settings of a format at its default block size (NF4 and FP4: 64, MXFP4: 32,
    /// NVFP4: 16).
    pub const fn new(format: Format) -> Self {
        Self { format, block_size: format.default_block_size(), double_quant: false }
    }

    /// NormalFloat (NF4), in blocks of 64.
    pub const fn nf4() -> Self {
        Self::new(Format::Nf4)
    }

    /// bitsandbytes' 4-bit float (FP4), in blocks of 64.
    pub const fn fp4() -> Self {
        Self::new(Format::Fp4)
    }

    /// OCP MXFP4, in blocks of 32 with a power of two as scale.
    pub const fn mxfp4() -> Self {
        Self::new(Format::Mxfp4)
    }

    /// NVIDIA's NVFP4, in blocks of 16 with an E4M3 scale.
    pub const fn nvfp4() -> Self {
        Self::new(Format::Nvfp4)
    }

    /// Sets the number of weights that share a scale: a power of two from 32 to 4096 for NF4 and
    /// FP4 (smaller blocks are more accurate and take more memory); fixed for the other formats.
    pub const fn block_size(mut self, block_size: usize) -> Self {
        self.block_size = block_size;
        self
    }

    /// Sets whether the scales of NF4 and FP4 are quantized to 8 bits: 0.127 instead of 0.5 bits
    /// per weight at blocks of 64.
    pub const fn double_quant(mut self, double_quant: bool) -> Self {
        self.double_quant = double_quant;
        self
    }

    /// The format.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Returns `true` if the scales are quantized, too.
    pub const fn is_double_quant(&self) -> bool {
        self.double_quant
    }

    /// Checks that the settings are compatible.
    ///
    /// # Errors
    /// [`QuantError::BlockSize`] if the format does not have the block size;
    /// [`QuantError::DoubleQuant`] for double quantization of a format whose scales are 8 bits
    /// already.
    pub fn validate(&self) -> Result<(), QuantError> {
        let format = self.format.name();
        let (fits, allowed) = match self.format {
            Format::Nf4 | Format::Fp4 => (
                self.block_size.is_power_of_two() && (32..=4096).contains(&self.block_size),
                "a power of two from 32 to 4096 (64 is usual)",
            ),
            Format::Mxfp4 => (self.block_size == 32, "32"),
            Format::Nvfp4 => (self.block_size == 16, "16"),
        };
        if !fits {
            return Err(QuantError::BlockSize { format, block_size: self.block_size, allowed });
        }
        if self.double_quant && !matches!(self.format, Format::Nf4 | Format::Fp4) {
            return Err(QuantError::DoubleQuant { format });
        }
        Ok(())
    }

    /// Size of a large weight in bits per element, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        let scale = match self.scales() {
            ScaleRule::Absmax => 32.0,
            ScaleRule::DoubleQuant => 8.0 + 32.0 / crate::scale::NESTED_BLOCK as f64,
            ScaleRule::E8m0 | ScaleRule::E4m3 => 8.0,
        };
        4.0 + scale / self.block_size as f64
    }

    /// Returns the layout of a weight of shape `[out, in]`; its bytes are exact.
    ///
    /// ```
    /// use burn_lora_quant::QuantConfig;
    ///
    /// assert_eq!(QuantConfig::nf4().layout([4096, 4096]).bytes(), 4096 * 4096 * 9 / 16 + 64);
    /// ```
    pub fn layout(&self, shape: [usize; 2]) -> Layout {
        Layout::new(self.format, self.scales(), self.block_size, shape)
    }

    fn scales(&self) -> ScaleRule {
        match self.format {
            Format::Mxfp4 => ScaleRule::E8m0,
            Format::Nvfp4 => ScaleRule::E4m3,
            _ if self.double_quant => ScaleRule::DoubleQuant,
            _ => ScaleRule::Absmax,
        }
    }
}

impl Layout {
    /// Settings that lead to this layout.
    pub fn config(&self) -> QuantConfig {
        QuantConfig::new(self.format)
            .block_size(self.block_size)
            .double_quant(self.scales == ScaleRule::DoubleQuant)
    }

    /// Panics unless a [`QuantConfig`] has this layout, whose fields are public.
    pub(crate) fn check(&self) {
        let config = self.config();
        let plain = Self { fp8: false, ..*self };
        let exists = config.validate().is_ok() && config.layout(self.shape) == plain;
        assert!(exists, "no setting has {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_errors() {
        for block_size in [0, 16, 48, 8192] {
            assert!(QuantConfig::nf4().block_size(block_size).validate().is_err(), "{block_size}");
        }
        assert!(QuantConfig::mxfp4().block_size(64).validate().is_err());
        assert!(QuantConfig::nvfp4().double_quant(true).validate().is_err());
        for block_size in [32, 64, 4096] {
            assert!(QuantConfig::fp4().block_size(block_size).validate().is_ok(), "{block_size}");
        }
    }

    #[test]
    fn files() {
        let read = |json: &str| serde_json::from_str::<QuantConfig>(json);
        for config in [QuantConfig::nf4().double_quant(true), QuantConfig::nvfp4()] {
            assert_eq!(read(&serde_json::to_string(&config).unwrap()).unwrap(), config);
        }
        let names = r#"{"quant_type": "fp4", "blocksize": 128}"#;
        assert_eq!(read(names).unwrap(), QuantConfig::fp4().block_size(128));
        let error = read(r#"{"format": "nf4", "block_size": 48}"#).unwrap_err().to_string();
        assert!(error.contains("nf4 has no blocks of 48"), "{error}");
        assert!(read(r#"{"format": "int4"}"#).is_err());
        assert!(read(r#"{"format": "nf4", "blok_size": 64}"#).is_err());
    }
}
