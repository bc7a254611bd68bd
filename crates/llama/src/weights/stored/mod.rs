//! Storage of quantized weights in checkpoints: one file for each way, and its line in [`STORED`].

mod eight_bits;
mod four_bits;
mod mxfp4;

use super::source::Source;
use crate::{error::LlamaError, fields::ConfigFields};
use burn::tensor::Device;
use burn_lora_quant::{Frozen, StorageFormat};
use serde_json::Value;
use std::sync::Arc;

/// Way to store quantized weights.
pub(crate) trait Stored: Sync {
    /// Format that `quantization_config` declares, or `None` if it is about weights stored
    /// otherwise.
    ///
    /// # Errors
    /// [`LlamaError::Field`] if a setting cannot be used.
    fn format(
        &self,
        settings: &ConfigFields<'_>,
    ) -> Result<Option<Arc<dyn StorageFormat>>, LlamaError>;

    /// Names of the tensors beside the weight of this name, if it is stored this way; the weight
    /// itself need not be there.
    fn parts(&self, source: &dyn Source, weight: &str) -> Option<Vec<String>>;

    /// Reads a weight that is stored this way. `settings` is `quantization_config`.
    ///
    /// # Errors
    /// [`LlamaError::Format`] or [`LlamaError::Shape`] if the tensors do not fit each other.
    fn read(
        &self,
        source: &dyn Source,
        weight: &str,
        settings: &Value,
        device: &Device,
    ) -> Result<Frozen, LlamaError>;
}

/// All ways to store quantized weights.
const STORED: &[&dyn Stored] =
    &[&four_bits::FourBits, &eight_bits::Int8, &eight_bits::Fp8, &mxfp4::Mxfp4];

/// Format that `quantization_config` declares, if it is there.
///
/// # Errors
/// [`LlamaError::Field`] if a setting cannot be used, or no format here has these settings.
pub(crate) fn format(
    fields: &ConfigFields<'_>,
) -> Result<Option<Arc<dyn StorageFormat>>, LlamaError> {
    let Some(settings) = fields.object("quantization_config")? else { return Ok(None) };
    for stored in STORED {
        if let Some(format) = stored.format(&settings)? {
            return Ok(Some(format));
        }
    }
    let method: String = settings.get("quant_method")?.unwrap_or_else(|| "missing".into());
    let reason = "bitsandbytes (4 bits, or 8), fp8, mxfp4 and compressed-tensors (float-quantized) are read; take \
                  the checkpoint that is not quantized, and quantize it on loading";
    Err(settings.wrong("quant_method", method, reason))
}

/// Way in which a weight is stored, with the tensors beside it; `None` if it is dense.
pub(crate) fn find(
    source: &dyn Source,
    weight: &str,
) -> Option<(&'static dyn Stored, Vec<String>)> {
    STORED.iter().find_map(|stored| Some((*stored, stored.parts(source, weight)?)))
}
