//! 8-bit weights: bitsandbytes' LLM.int8, and FP8 with scales per block (DeepSeek), row or tensor
//! (compressed-tensors).

use super::Stored;
use crate::{error::LlamaError, fields::ConfigFields, weights::source::Source};
use burn::tensor::{DType, Device};
use burn_lora_quant::{
    EightBitConfig, EightBitFormat, EightBitLayout, EightBitWeight, Frozen, StorageFormat,
};
use serde_json::Value;
use std::sync::Arc;

pub(super) struct Int8;

pub(super) struct Fp8;

/// Path of the layer of a weight, with its trailing dot.
fn layer(weight: &str) -> &str {
    weight.strip_suffix("weight").unwrap_or(weight)
}

impl Stored for Int8 {
    fn format(
        &self,
        settings: &ConfigFields<'_>,
    ) -> Result<Option<Arc<dyn StorageFormat>>, LlamaError> {
        let method: Option<String> = settings.get("quant_method")?;
        let eight = settings.get("load_in_8bit")?.unwrap_or(false);
        let here = method.as_deref() == Some("bitsandbytes") && eight;
        Ok(here.then(|| Arc::new(EightBitConfig::int8()) as Arc<dyn StorageFormat>))
    }

    fn parts(&self, source: &dyn Source, weight: &str) -> Option<Vec<String>> {
        let scales = format!("{}SCB", layer(weight));
        let here = source.stored_dtype(weight) == Some("I8") && source.shape(&scales).is_some();
        let format = format!("{}weight_format", layer(weight));
        let format = Some(format).filter(|format| source.shape(format).is_some());
        here.then(|| std::iter::once(scales).chain(format).collect())
    }

    fn read(
        &self,
        source: &dyn Source,
        weight: &str,
        _settings: &Value,
        device: &Device,
    ) -> Result<Frozen, LlamaError> {
        let wrong = |reason: String| LlamaError::format(source.path(weight), reason);
        let format = format!("{}weight_format", layer(weight));
        if source.shape(&format).is_some() {
            // 0 is row-major; the others are tiled for kinds of cards.
            let found = source.read(&format)?;
            if found.as_bytes().iter().any(|byte| *byte != 0) {
                return Err(wrong(format!(
                    "`{format}` is not 0 (row): save it by a newer bitsandbytes"
                )));
            }
        }
        let layout = |shape| EightBitConfig::int8().layout(shape);
        read(source, weight, &format!("{}SCB", layer(weight)), layout, device)
    }
}

impl Fp8 {
    /// Name of a weight's scales: DeepSeek's, or compressed-tensors'.
    fn scales(source: &dyn Source, weight: &str) -> Option<String> {
        let names = ["weight_scale_inv", "weight_scale"];
        let mut names = names.into_iter().map(|name| format!("{}{name}", layer(weight)));
        names.find(|name| source.shape(name).is_some())
    }
}

/// Rows and columns of a block, from DeepSeek's `weight_block_size` or compressed-tensors'
/// `config_groups`.
fn block(size: &Value, groups: &Value) -> Option<[usize; 2]> {
    let block = match size.as_array() {
        Some(block) => block,
        None => weights(groups)["block_structure"].as_array()?,
    };
    let side = |side: usize| block.get(side)?.as_u64().map(|side| side as usize);
    Some([side(0)?, side(1)?]).filter(|sides| sides.iter().all(|side| *side > 0))
}

/// Settings of the weights in compressed-tensors' first group.
fn weights(groups: &Value) -> &Value {
    let first = groups.as_object().and_then(|groups| groups.values().next());
    first.map_or(&Value::Null, |group| &group["weights"])
}

impl Stored for Fp8 {
    fn format(
        &self,
        settings: &ConfigFields<'_>,
    ) -> Result<Option<Arc<dyn StorageFormat>>, LlamaError> {
        let method: Option<String> = settings.get("quant_method")?;
        match method.as_deref() {
            Some("fp8") => (),
            Some("compressed-tensors") => {
                settings.equals("format", "float-quantized".to_owned())?
            }
            _ => return Ok(None),
        }
        let value = |name| settings.value(name).unwrap_or(&Value::Null);
        let (size, groups) = (value("weight_block_size"), value("config_groups"));
        let block = match (block(size, groups), weights(groups)["strategy"].as_str()) {
            (Some(block), _) => block,
            (None, Some("channel")) => [1, 0],
            (None, Some("tensor")) => [0, 0],
            (None, None) if groups.is_null() => [0, 0],
            (None, other) => {
                let reason = "expected tensor, channel, or block with `block_structure`";
                return Err(settings.wrong("strategy", other.unwrap_or("missing"), reason));
            }
        };
        Ok(Some(Arc::new(EightBitConfig { format: EightBitFormat::Fp8, block })))
    }

    fn parts(&self, source: &dyn Source, weight: &str) -> Option<Vec<String>> {
        let scales = Self::scales(source, weight)?;
        // The scale of the inputs of an 8-bit product; here inputs are not quantized.
        let input = format!("{}input_scale", layer(weight));
        let input = Some(input).filter(|input| source.shape(input).is_some());
        (source.stored_dtype(weight) == Some("F8_E4M3"))
            .then(|| std::iter::once(scales).chain(input).collect())
    }

    fn read(
        &self,
        source: &dyn Source,
        weight: &str,
        settings: &Value,
        device: &Device,
    ) -> Result<Frozen, LlamaError> {
        let scales = Self::scales(source, weight).expect("it is stored so");
        let found = source.shape(&scales).unwrap_or_default().to_vec();
        let shape = source.shape(weight).unwrap_or_default().to_vec();
        let layout = |shape: [usize; 2]| {
            let count: usize = found.iter().product();
            let block = match block(&settings["weight_block_size"], &settings["config_groups"]) {
                Some(block) => block,
                None if count == 1 => [shape[0].max(1), shape[1].max(1)],
                None => [1, shape[1].max(1)],
            };
            EightBitLayout { format: EightBitFormat::Fp8, shape, block }
        };
        if let [out, width] = shape[..] {
            let expected = layout([out, width]).blocks();
            let count = expected.iter().product::<usize>();
            let fits = found == expected
                || (count == 1 || expected[1] == 1) && found.iter().product::<usize>() == count;
            if !fits {
                return Err(LlamaError::Shape {
                    path: source.path(&scales).into(),
                    tensor: scales,
                    found,
                    expected: expected.to_vec(),
                });
            }
        }
        read(source, weight, &scales, layout, device)
    }
}

/// Reads a weight with its scales.
fn read(
    source: &dyn Source,
    weight: &str,
    scales: &str,
    layout: impl Fn([usize; 2]) -> EightBitLayout,
    device: &Device,
) -> Result<Frozen, LlamaError> {
    let wrong = |reason: String| LlamaError::format(source.path(weight), reason);
    let codes = source.read(weight)?;
    let [out, width] = codes.shape()[..] else {
        return Err(wrong(format!("`{weight}` is {:?}, expected two dimensions", codes.shape())));
    };
    let scales = source.read(scales)?.convert_dtype(DType::F32);
    let scales: Vec<f32> = scales.try_into_vec().map_err(|error| wrong(format!("{error:?}")))?;
    let stored =
        EightBitWeight::from_bytes(codes.as_bytes(), &scales, layout([out, width]), device);
    stored.map(Frozen::new).map_err(|error| wrong(format!("`{weight}`: {error}")))
}
