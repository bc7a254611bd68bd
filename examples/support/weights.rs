//! Storage formats of linear layers, by their names in run files and on command lines.

use burn_lora::prelude::{EightBitConfig, QuantConfig, StorageFormat};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Storage format of the linear layers of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// As in the checkpoint: plain LoRA
    None,
    /// 4 bits, NormalFloat: QLoRA's
    Nf4,
    /// 4 bits, bitsandbytes' other format
    Fp4,
    /// 4 bits, OCP Microscaling
    Mxfp4,
    /// 4 bits, NVIDIA's
    Nvfp4,
    /// 8 bits, LLM.int8: a scale for each row
    Int8,
    /// 8 bits, E4M3 floats: a scale for each 128 rows and columns
    Fp8,
}

impl WeightFormat {
    /// The settings of the format, at its default block size. NF4 and FP4 are quantized twice.
    pub fn quantize(self) -> Option<Arc<dyn StorageFormat>> {
        match self {
            Self::Int8 => Some(Arc::new(EightBitConfig::int8())),
            Self::Fp8 => Some(Arc::new(EightBitConfig::fp8())),
            other => other.four_bits().map(|config| Arc::new(config) as _),
        }
    }

    /// The settings of a format of 4 bits.
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
