//! How linear layers are stored: names for run files and command lines.

use burn_lora::prelude::QuantConfig;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How the linear layers of a model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// As the checkpoint has them: plain LoRA
    None,
    /// 4 bits, NormalFloat: QLoRA's
    Nf4,
    /// 4 bits, bitsandbytes' other format
    Fp4,
    /// 4 bits, OCP Microscaling
    Mxfp4,
    /// 4 bits, NVIDIA's
    Nvfp4,
}

impl WeightFormat {
    /// The settings of the format, at its default block size. NF4 and FP4 are quantized twice.
    pub fn quantize(self) -> Option<QuantConfig> {
        match self {
            Self::None => None,
            Self::Nf4 => Some(QuantConfig::nf4().double_quant(true)),
            Self::Fp4 => Some(QuantConfig::fp4().double_quant(true)),
            Self::Mxfp4 => Some(QuantConfig::mxfp4()),
            Self::Nvfp4 => Some(QuantConfig::nvfp4()),
        }
    }
}
