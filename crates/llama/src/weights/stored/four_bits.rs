//! 4-bit weights of bitsandbytes (NF4, FP4).

use super::Stored;
use crate::{
    error::LlamaError,
    fields::ConfigFields,
    weights::{source::Source, values::check_values},
};
use burn::tensor::{Device, FloatDType};
use burn_lora_quant::{Frozen, PackedWeight, QuantConfig, StorageFormat, codec::Packed};
use serde_json::Value;
use std::{cell::RefCell, sync::Arc};

pub(super) struct FourBits;

impl Stored for FourBits {
    fn format(
        &self,
        settings: &ConfigFields<'_>,
    ) -> Result<Option<Arc<dyn StorageFormat>>, LlamaError> {
        let method: Option<String> = settings.get("quant_method")?;
        let eight = settings.get("load_in_8bit")?.unwrap_or(false);
        if method.as_deref() != Some("bitsandbytes") || eight {
            return Ok(None);
        }
        let four = settings.get("load_in_4bit")?.unwrap_or(false);
        if !four {
            return Err(settings.wrong("load_in_4bit", four, "expected 4 bits, or 8"));
        }
        // The defaults are bitsandbytes'.
        let kind: Option<String> = settings.get("bnb_4bit_quant_type")?;
        let config = match kind.as_deref() {
            Some("nf4") => QuantConfig::nf4(),
            _ => QuantConfig::fp4(),
        };
        let double = settings.get("bnb_4bit_use_double_quant")?.unwrap_or(false);
        Ok(Some(Arc::new(config.double_quant(double))))
    }

    fn parts(&self, source: &dyn Source, weight: &str) -> Option<Vec<String>> {
        let state = |format: &str| format!("{weight}.quant_state.bitsandbytes__{format}");
        ["nf4", "fp4"].into_iter().find(|format| source.shape(&state(format)).is_some())?;
        let prefix = format!("{weight}.");
        let names = source.names().into_iter().filter(|part| part.starts_with(&prefix));
        Some(names.map(str::to_owned).collect())
    }

    fn read(
        &self,
        source: &dyn Source,
        weight: &str,
        _settings: &Value,
        device: &Device,
    ) -> Result<Frozen, LlamaError> {
        let failed = RefCell::new(None);
        let tensor = |name: &str| {
            source.shape(name)?;
            let data = source.read(name).and_then(|data| {
                check_values(source.path(name), name, &data, FloatDType::F32, false)?;
                Ok(data)
            });
            data.map_err(|error| *failed.borrow_mut() = Some(error)).ok()
        };
        let packed = Packed::from_bitsandbytes(weight, tensor);
        if let Some(error) = failed.take() {
            return Err(error);
        }
        let packed = packed.map_err(|error| LlamaError::format(source.path(weight), error))?;
        Ok(Frozen::new(PackedWeight::from_packed(packed, device)))
    }
}
