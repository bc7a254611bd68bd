//! Families of models: one file each, and its line in [`FAMILIES`].

mod common;
mod gemma3;
mod gpt_oss;
mod llama;
mod mistral;
mod mixtral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;

use crate::{
    config::{LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
};
use serde_json::Value;
use std::path::Path;

pub use common::ConfigDefaults;

/// All families.
pub(crate) static FAMILIES: &[&dyn ModelFamily] = &[
    &llama::Llama,
    &mistral::Mistral,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &gemma3::Gemma3,
    &gemma3::Gemma3Multimodal,
    &phi3::Phi3,
    &mixtral::Mixtral,
    &qwen3_moe::Qwen3Moe,
    &gpt_oss::GptOss,
];

impl LlamaConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// - [`LlamaError::Io`] if the file cannot be read.
    /// - [`LlamaError::Format`] if it is not a JSON object.
    /// - [`LlamaError::Field`] if a field is missing, or its value is malformed or not supported.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, LlamaError> {
        Self::from_file_with(path, &[])
    }

    /// Reads a `config.json` of one of these families, or of one that is supported here.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_file_with(
        path: impl AsRef<Path>,
        families: &[&'static dyn ModelFamily],
    ) -> Result<Self, LlamaError> {
        let path = path.as_ref();
        let json = burn_lora_io::read(path).map_err(LlamaError::io(path))?;
        let raw = serde_json::from_slice(&json).map_err(|e| LlamaError::format(path, e))?;
        Self::from_value(&raw, path, families)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file), without [`LlamaError::Io`].
    pub fn from_json(json: &str) -> Result<Self, LlamaError> {
        let path = Path::new("config.json");
        let raw = serde_json::from_str(json).map_err(|e| LlamaError::format(path, e))?;
        Self::from_value(&raw, path, &[])
    }

    pub(crate) fn from_value(
        raw: &Value,
        path: &Path,
        families: &[&'static dyn ModelFamily],
    ) -> Result<Self, LlamaError> {
        let fields = ConfigFields::new(path, raw)?;
        let config = family(&fields, families)?.config(&fields)?;
        config.check(&fields)?;
        Ok(config)
    }

    /// Refuses a specification that no decoder can be built from.
    fn check(&self, fields: &ConfigFields<'_>) -> Result<(), LlamaError> {
        let wrong = |what: String, reason| Err(fields.wrong("num_hidden_layers", what, reason));
        for (index, layer) in self.layers.iter().enumerate() {
            let attention = &layer.attention;
            if attention.rope >= self.ropes.len() {
                return wrong(
                    format!("layer {index}"),
                    "it names a rotary table that is not there",
                );
            }
            if !attention.num_heads.is_multiple_of(attention.num_kv_heads.max(1)) {
                return wrong(
                    format!("layer {index}"),
                    "its heads are no multiple of those of keys",
                );
            }
            if self.ropes[attention.rope].dim > attention.head_dim {
                return wrong(format!("layer {index}"), "its rotary table is wider than a head");
            }
        }
        Ok(())
    }
}

/// Family of a configuration.
fn family(
    fields: &ConfigFields<'_>,
    families: &[&'static dyn ModelFamily],
) -> Result<&'static dyn ModelFamily, LlamaError> {
    let known = || families.iter().chain(FAMILIES).copied();
    let supported = || {
        let names: Vec<_> = known().map(|family| family.class()).collect();
        let (last, names) = names.split_last().expect("there are some");
        format!("supported are {} and {last}", names.join(", "))
    };
    let classes = fields.get::<Vec<String>>("architectures")?.unwrap_or_default();
    let of_class = classes
        .first()
        .map(|name| {
            // The same decoder with another head.
            let decoder = name.replace("ForSequenceClassification", "ForCausalLM");
            let family = known().find(|family| family.class() == decoder);
            family.ok_or_else(|| fields.wrong("architectures", name, &supported()))
        })
        .transpose()?;
    let of_type = fields
        .get::<String>("model_type")?
        .map(|name| {
            let family = known().find(|family| family.model_type() == name);
            family.ok_or_else(|| fields.wrong("model_type", name, &supported()))
        })
        .transpose()?;
    match (of_class, of_type) {
        (class, Some(family)) => {
            if class.is_some_and(|class| class != family) {
                fields.warn(format_args!(
                    "`architectures` and `model_type` contradict each other: it is loaded as the \
                     latter says, {}",
                    family.model_type()
                ));
            }
            Ok(family)
        }
        (Some(family), None) => Ok(family),
        (None, None) => Err(fields.wrong("architectures", "missing", &supported())),
    }
}
