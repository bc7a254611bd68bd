//! Dtypes by their names in run files and on command lines.

use burn_lora::prelude::FloatDType;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Dtype of weights that are not packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16
    Bf16,
    /// float16
    F16,
    /// float32
    F32,
}

impl From<Precision> for FloatDType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Bf16 => Self::BF16,
            Precision::F16 => Self::F16,
            Precision::F32 => Self::F32,
        }
    }
}
