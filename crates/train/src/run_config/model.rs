//! The base model of a run.

use crate::error::TrainError;
use burn::tensor::FloatDType;
use burn_lora_llama::{Llama, LlamaConfig, Loader};
use burn_lora_quant::{StorageFormat, WeightFormat};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, str::FromStr, sync::Arc};

/// `[model]` of a run: the base, and how it is loaded.
///
/// ```
/// use burn_lora_quant::WeightFormat;
/// use burn_lora_train::{ModelConfig, Precision};
///
/// let model = ModelConfig {
///     path: Some("models/Qwen3-4B".into()),
///     format: WeightFormat::Nf4,
///     block_size: Some(128),
///     dtype: Some(Precision::Bf16),
///     ..ModelConfig::default()
/// };
/// assert!(model.validate().is_ok());
/// let error = ModelConfig { format: WeightFormat::Int8, ..model }.validate().unwrap_err();
/// assert!(error.to_string().starts_with("`block_size` is 128"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A folder in Hugging Face's layout, a GGUF file, or with the feature `hub` an id.
    pub path: Option<PathBuf>,
    /// Storage format of the linear layers.
    pub format: WeightFormat,
    /// `true` if the scales of NF4 and FP4 are quantized too, which is the default.
    pub double_quant: Option<bool>,
    /// Number of weights that share a scale; by default that of the format.
    pub block_size: Option<usize>,
    /// Dtype of the computation and of what is not packed; by default by checkpoint and device.
    pub dtype: Option<Precision>,
    /// Arithmetic of the products with weights of 4 bits; by default that of the dtype.
    pub compute: Option<Compute>,
    /// `true` if the embeddings stay in host memory.
    pub host_embeddings: bool,
    /// Folder of an adapter in PEFT's format to continue training, in place of a new one:
    /// `[adapter]` is not used then.
    pub adapter: Option<PathBuf>,
}

impl Default for ModelConfig {
    /// NF4 with double quantization (QLoRA).
    fn default() -> Self {
        Self {
            path: None,
            format: WeightFormat::Nf4,
            double_quant: None,
            block_size: None,
            dtype: None,
            compute: None,
            host_embeddings: false,
            adapter: None,
        }
    }
}

impl ModelConfig {
    /// Returns the storage format of the linear layers; `None` if they stay as they are.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a setting that the format does not have;
    /// [`TrainError::Settings`] for a value that it does not take.
    pub fn storage(&self) -> Result<Option<Arc<dyn StorageFormat>>, TrainError> {
        let Some(mut config) = self.format.four_bits() else {
            let format = self.format.storage();
            let set = [
                ("double_quant", self.double_quant.map(|twice| twice.to_string())),
                ("block_size", self.block_size.map(|size| size.to_string())),
            ];
            let set = set.into_iter().find_map(|(name, value)| Some((name, value?)));
            return match set {
                Some((name, value)) if format.is_some() => {
                    Err(TrainError::setting(name, value, "it goes with a format of 4 bits"))
                }
                _ => Ok(format),
            };
        };
        if let Some(twice) = self.double_quant {
            config = config.double_quant(twice);
        }
        if let Some(size) = self.block_size {
            config = config.block_size(size);
        }
        let checked = config.validate();
        checked.map_err(|error| TrainError::settings(format!("`{}`", self.format), error))?;
        Ok(Some(Arc::new(config)))
    }

    /// Checks the settings, independent of the model.
    ///
    /// # Errors
    /// As [`storage`](Self::storage); [`TrainError::Setting`] for FP8 products with weights of 8 bits.
    pub fn validate(&self) -> Result<(), TrainError> {
        self.storage()?;
        let eight = self.format.four_bits().is_none() && self.format.storage().is_some();
        match self.compute {
            Some(compute) if eight => {
                let why = "it goes with weights of 4 bits";
                Err(TrainError::setting("model.compute", compute.name(), why))
            }
            _ => Ok(()),
        }
    }

    /// Returns `true` if both answers of a pair can share their prompt, as far as the settings of the model are at hand.
    pub(super) fn shares_prompts(&self) -> bool {
        let file = self.path.as_ref().map(|path| path.join("config.json"));
        let config = file.filter(|file| file.is_file()).map(LlamaConfig::from_file);
        config.is_none_or(|config| config.is_ok_and(|config| config.shares_prompts()))
    }

    /// Returns the loader of the model.
    ///
    /// # Errors
    /// [`TrainError::Missing`] without a path; as [`storage`](Self::storage) otherwise.
    pub fn loader(&self) -> Result<Loader, TrainError> {
        let needed = "name a folder, a .gguf file or a model id";
        let path = self.path.as_ref();
        let path = path.ok_or(TrainError::Missing { name: "model.path", needed })?;
        let mut loader = Llama::from_pretrained(path).host_embeddings(self.host_embeddings);
        loader = loader.fp8(self.compute == Some(Compute::Fp8));
        if let Some(format) = self.storage()? {
            loader = loader.quantize(format);
        }
        if let Some(dtype) = self.dtype {
            loader = loader.dtype(dtype.into());
        }
        Ok(loader)
    }
}

/// Arithmetic of the products with weights of 4 bits, by its name in run files and on command lines.
///
/// ```
/// use burn_lora_train::RunConfig;
///
/// let run = RunConfig::default().with("model.compute", "fp8")?;
/// assert_eq!(run.model.compute.map(|compute| compute.name()), Some("fp8"));
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compute {
    /// FP8, E4M3 ([`Loader::fp8`]): CUDA with compute capability 8.9 or later.
    Fp8,
}

impl Compute {
    /// Name in files and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8",
        }
    }
}

/// Dtype of weights that are not packed, by its name in run files and on command lines.
///
/// ```
/// use burn::tensor::FloatDType;
/// use burn_lora_train::Precision;
///
/// assert_eq!(FloatDType::from("bf16".parse::<Precision>()?), FloatDType::BF16);
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// float32.
    F32,
}

impl Precision {
    /// All dtypes, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::F16, Self::F32];

    /// Name in files and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

impl FromStr for Precision {
    type Err = TrainError;

    fn from_str(name: &str) -> Result<Self, TrainError> {
        let found = Self::ALL.into_iter().find(|dtype| dtype.name() == name);
        found.ok_or_else(|| TrainError::setting("dtype", name, "it has to be bf16, f16 or f32"))
    }
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
