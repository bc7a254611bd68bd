//! Storage formats of linear layers, by name.

use crate::{
    config::QuantConfig, eight_bit::EightBitConfig, error::QuantError, storage::StorageFormat,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// Storage format of the linear layers of a model, by its name in run files and on command lines.
/// Settings that a name does not have are those of the [`StorageFormat`] behind it.
///
/// ```
/// use burn_lora_quant::{QuantConfig, WeightFormat};
///
/// let format: WeightFormat = "nf4".parse()?;
/// assert_eq!(format.four_bits(), Some(QuantConfig::nf4().double_quant(true)));
/// assert!(WeightFormat::None.storage().is_none());
///
/// let error = "nf5".parse::<WeightFormat>().unwrap_err();
/// assert!(error.to_string().contains("none, nf4, fp4"));
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WeightFormat {
    /// As in the checkpoint: plain LoRA.
    None,
    /// 4 bits, NormalFloat: QLoRA's (arXiv:2305.14314), with double quantization.
    Nf4,
    /// 4 bits, bitsandbytes' other format, with double quantization.
    Fp4,
    /// 4 bits, OCP Microscaling.
    Mxfp4,
    /// 4 bits, NVIDIA's.
    Nvfp4,
    /// 8 bits, LLM.int8 (arXiv:2208.07339): one scale per row.
    Int8,
    /// 8 bits, E4M3 floats: one scale per 128 rows and columns.
    Fp8,
}

impl WeightFormat {
    /// All formats, in the order of their declaration.
    pub const ALL: [Self; 7] =
        [Self::None, Self::Nf4, Self::Fp4, Self::Mxfp4, Self::Nvfp4, Self::Int8, Self::Fp8];

    /// Name in files and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
        }
    }

    /// Description in a few words, for help texts.
    pub const fn about(self) -> &'static str {
        match self {
            Self::None => "As in the checkpoint: plain LoRA",
            Self::Nf4 => "4 bits, NormalFloat: QLoRA's",
            Self::Fp4 => "4 bits, bitsandbytes' other format",
            Self::Mxfp4 => "4 bits, OCP Microscaling",
            Self::Nvfp4 => "4 bits, NVIDIA's",
            Self::Int8 => "8 bits, LLM.int8: a scale per row",
            Self::Fp8 => "8 bits, E4M3 floats: a scale per 128 rows and columns",
        }
    }

    /// Returns the settings of the format, at its default block size; `None` if weights stay as
    /// they are.
    pub fn storage(self) -> Option<Arc<dyn StorageFormat>> {
        match self {
            Self::Int8 => Some(Arc::new(EightBitConfig::int8())),
            Self::Fp8 => Some(Arc::new(EightBitConfig::fp8())),
            other => other.four_bits().map(|config| Arc::new(config) as _),
        }
    }

    /// Returns the settings of a 4-bit format. NF4 and FP4 are quantized twice.
    pub fn four_bits(self) -> Option<QuantConfig> {
        match self {
            Self::None | Self::Int8 | Self::Fp8 => None,
            Self::Nf4 => Some(QuantConfig::nf4().double_quant(true)),
            Self::Fp4 => Some(QuantConfig::fp4().double_quant(true)),
            Self::Mxfp4 => Some(QuantConfig::mxfp4()),
            Self::Nvfp4 => Some(QuantConfig::nvfp4()),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

impl FromStr for WeightFormat {
    type Err = QuantError;

    fn from_str(name: &str) -> Result<Self, QuantError> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| QuantError::Name {
            found: name.into(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}
