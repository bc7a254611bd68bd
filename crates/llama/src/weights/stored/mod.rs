//! How checkpoints store quantized weights: one file for each way, and its line in [`STORED`].

mod eight_bits;
mod four_bits;

use super::source::Source;
use crate::{error::LlamaError, fields::Fields};
use burn::tensor::Device;
use burn_lora_quant::{Frozen, StorageFormat};
use serde_json::Value;
use std::sync::Arc;

/// A way to store quantized weights.
pub(crate) trait Stored: Sync {
    /// What `quantization_config` says of weights that are stored so, or `None` if it is about others.
    ///
    /// # Errors
    /// Settings that cannot be used.
    fn format(&self, settings: &Fields<'_>) -> Result<Option<Arc<dyn StorageFormat>>, LlamaError>;

    /// The tensors beside the weight of this name, if it is stored so.
    fn parts(&self, source: &dyn Source, weight: &str) -> Option<Vec<String>>;

    /// Reads a weight that is stored so. `settings` is `quantization_config`.
    ///
    /// # Errors
    /// Tensors that do not fit each other.
    fn read(
        &self,
        source: &dyn Source,
        weight: &str,
        settings: &Value,
        device: &Device,
    ) -> Result<Frozen, LlamaError>;
}

/// All of them.
const STORED: &[&dyn Stored] = &[&four_bits::FourBits, &eight_bits::Int8, &eight_bits::Fp8];

/// How `quantization_config` says that the weights are stored.
///
/// # Errors
/// Settings that cannot be used.
pub(crate) fn format(fields: &Fields<'_>) -> Result<Option<Arc<dyn StorageFormat>>, LlamaError> {
    let Some(settings) = fields.object("quantization_config")? else { return Ok(None) };
    for stored in STORED {
        if let Some(format) = stored.format(&settings)? {
            return Ok(Some(format));
        }
    }
    let method: String = settings.get("quant_method")?.unwrap_or_else(|| "missing".into());
    let reason = "bitsandbytes (4 bits, or 8), fp8 and compressed-tensors (float-quantized) are read; take \
                  the checkpoint that is not quantized, and quantize it on loading";
    Err(settings.wrong("quant_method", method, reason))
}

/// The way in which a weight is stored, with the tensors beside it; `None` of one that is dense.
pub(crate) fn find(
    source: &dyn Source,
    weight: &str,
) -> Option<(&'static dyn Stored, Vec<String>)> {
    STORED.iter().find_map(|stored| Some((*stored, stored.parts(source, weight)?)))
}
