//! MXFP4 weights as gpt-oss has them: blocks of codes, and a scale for each.

use super::Stored;
use crate::{error::LlamaError, fields::ConfigFields, weights::source::Source};
use burn::tensor::{DType, Device};
use burn_lora_quant::{Frozen, PackedWeight, QuantConfig, StorageFormat, codec::Packed};
use serde_json::Value;
use std::sync::Arc;

pub(super) struct Mxfp4;

/// Names of the blocks and of the scales of a weight.
fn names(weight: &str) -> [String; 2] {
    let layer = weight.strip_suffix("weight").unwrap_or(weight);
    ["blocks", "scales"].map(|part| format!("{layer}{part}"))
}

impl Stored for Mxfp4 {
    fn format(
        &self,
        settings: &ConfigFields<'_>,
    ) -> Result<Option<Arc<dyn StorageFormat>>, LlamaError> {
        let method: Option<String> = settings.get("quant_method")?;
        let here = method.as_deref() == Some("mxfp4");
        Ok(here.then(|| Arc::new(QuantConfig::mxfp4()) as Arc<dyn StorageFormat>))
    }

    fn parts(&self, source: &dyn Source, weight: &str) -> Option<Vec<String>> {
        let names = names(weight);
        names.iter().all(|name| source.shape(name).is_some()).then(|| names.into())
    }

    fn read(
        &self,
        source: &dyn Source,
        weight: &str,
        _settings: &Value,
        device: &Device,
    ) -> Result<Frozen, LlamaError> {
        let [blocks, scales] = names(weight);
        let found = source.shape(&blocks).unwrap_or_default().to_vec();
        // Rows of blocks, each of 16 bytes.
        let [out, count, bytes] = found[..] else {
            let reason = format!("`{blocks}` is {found:?}, expected three dimensions");
            return Err(LlamaError::format(source.path(&blocks), reason));
        };
        let shape = |tensor: &str, expected: Vec<usize>| {
            let (tensor, path) = (tensor.to_owned(), source.path(tensor).to_owned());
            let found = source.shape(&tensor).unwrap_or_default().to_vec();
            match found == expected {
                true => Ok(()),
                false => Err(LlamaError::Shape { path, tensor, found, expected }),
            }
        };
        shape(&blocks, vec![out, count, 16])?;
        shape(&scales, vec![out, count])?;
        let read = |tensor: &str| {
            let data = source.read(tensor)?;
            match data.dtype() {
                DType::U8 => Ok(data),
                found => Err(LlamaError::DType {
                    path: source.path(tensor).into(),
                    tensor: tensor.into(),
                    found: format!("{found:?}"),
                    expected: "U8",
                }),
            }
        };
        let (codes, scales_of) = (read(&blocks)?, read(&scales)?);
        let shape = [out, count * 2 * bytes];
        let packed = Packed::from_mxfp4(weight, codes.as_bytes(), scales_of.as_bytes(), shape);
        let packed = packed.map_err(|error| LlamaError::format(source.path(&scales), error))?;
        Ok(Frozen::new(PackedWeight::from_packed(packed, device)))
    }
}
