//! Saving of an adapter as a GGUF file, as llama.cpp's `convert_lora_to_gguf.py` writes it.

use super::{
    model::{permute, permuted_heads},
    write::renamed,
};
use crate::{error::LlamaError, llama::Llama};
use burn_lora_adapter::AdaptableExt;
use burn_lora_io::gguf::{Entry, GgufWriter, TensorType};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;

impl Llama {
    /// Saves a LoRA as a GGUF file for llama.cpp (`--lora`) and Ollama (`ADAPTER`), in float32. The scaling of
    /// each layer is what it is here: rank-stabilised, and with patterns and several ranks, too.
    ///
    /// # Errors
    /// - Those of [`export_adapter`](AdaptableExt::export_adapter), for adapters that llama.cpp cannot run.
    /// - [`LlamaError::Format`] if the model's family, or an adapted layer, is none of llama.cpp's.
    /// - [`LlamaError::Io`] if the file cannot be written.
    pub fn save_adapter_gguf(&self, name: &str, path: impl AsRef<Path>) -> Result<(), LlamaError> {
        let path = path.as_ref();
        let wrong = |reason: String| LlamaError::format(path, reason);
        let Some(family) = self.config.family.gguf() else {
            let model_type = self.config.family.model_type();
            return Err(wrong(format!(
                "llama.cpp's names of the family {model_type} are not known"
            )));
        };
        // One rank and `alpha / rank` for all layers, and all checks.
        let folder = tempfile::tempdir().map_err(LlamaError::io(path))?;
        self.export_adapter(name, folder.path())?;
        let read = |file: &str| {
            let file = folder.path().join(file);
            burn_lora_io::read(&file).map_err(LlamaError::io(&file))
        };
        let settings: Value = serde_json::from_slice(&read("adapter_config.json")?)
            .map_err(|error| wrong(error.to_string()))?;
        let bytes = read("adapter_model.safetensors")?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;

        let mut file = GgufWriter::new(family.architecture);
        file.set("general.type", Entry::Text("adapter".into()));
        file.set("adapter.type", Entry::Text("lora".into()));
        let alpha = settings["lora_alpha"].as_f64().unwrap_or_default();
        file.set("adapter.lora.alpha", Entry::F32(alpha as f32));
        let mut all = vec![];
        for (key, view) in tensors.iter() {
            let parts = key.strip_prefix("base_model.model.").and_then(|key| {
                let key = key.strip_suffix(".weight")?;
                [".lora_A", ".lora_B"]
                    .iter()
                    .find_map(|part| Some((key.strip_suffix(part)?, *part)))
            });
            let named = parts.map(|(layer, part)| {
                let weight = format!("{layer}.weight");
                (renamed(&weight, &family), weight, part)
            });
            // Names of our own are of layers that llama.cpp has no name for.
            let Some(((own, false), weight, part)) =
                named.filter(|((own, _), weight, _)| own != weight)
            else {
                return Err(wrong(format!(
                    "`{key}`: llama.cpp has no name for this part of an adapter"
                )));
            };
            let mut values: Vec<f32> =
                view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let shape = view.shape().to_vec();
            // B's rows are those of the weight.
            let heads = permuted_heads(&self.config, &family, &weight);
            let heads = heads.filter(|_| part == ".lora_B");
            if let Some(heads) = heads {
                values = permute(&values, shape[0], heads);
            }
            let own = format!("{own}{}", part.to_ascii_lowercase());
            file.tensor(own, &shape, TensorType::F32).map_err(wrong)?;
            all.push(values);
        }
        let written = file.write::<std::io::Error>(
            path,
            |number, out| {
                all[number].iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
            },
            |_| Ok(()),
        );
        written.map_err(LlamaError::io(path))
    }
}
