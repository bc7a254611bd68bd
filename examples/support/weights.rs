//! Storage formats of linear layers, by their names in run files and on command lines.

use burn_lora::prelude::QuantConfig;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

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
}

impl WeightFormat {
    /// Settings of the format, at its default block size; NF4 and FP4 with double quantization.
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
