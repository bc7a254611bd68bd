//! Saving of a model as a checkpoint in Hugging Face's layout.

use super::{
    stacked::stacked_name,
    write::{Lazy, write},
};
use crate::{config::LlamaConfig, error::LlamaError, llama::Llama};
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptableExt};
use burn_lora_io::{
    progress::Work,
    shards::{INDEX, SINGLE},
};
use burn_lora_quant::{PackedWeight, ScaleRule};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

/// Options of [`Llama::save_pretrained`].
///
/// ```
/// use burn::tensor::FloatDType;
/// use burn_lora_llama::SaveOptions;
///
/// let options = SaveOptions::new().dtype(FloatDType::F32).max_shard_bytes(2 << 30);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    dtype: FloatDType,
    max_shard_bytes: usize,
    packed: bool,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl SaveOptions {
    /// Creates the default options: bfloat16, in shards of 5 GB, as transformers writes large
    /// models.
    pub const fn new() -> Self {
        Self { dtype: FloatDType::BF16, max_shard_bytes: 5_000_000_000, packed: false }
    }

    /// Sets the dtype of the files: float32, float16 or bfloat16.
    pub const fn dtype(mut self, dtype: FloatDType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets the maximum size of a shard in bytes; only a single larger tensor exceeds it.
    pub const fn max_shard_bytes(mut self, bytes: usize) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// Sets whether weights in NF4 and FP4 stay packed, as the tensors that bitsandbytes has for them,
    /// which transformers loads, too; otherwise they are decoded. Weights in other formats always are.
    pub const fn packed(mut self, packed: bool) -> Self {
        self.packed = packed;
        self
    }
}

impl Llama {
    /// Saves the model as transformers does: `config.json` and safetensors, in shards with an index
    /// if they are large. Packed weights are saved dequantized, or [packed](SaveOptions::packed). Tensors are read from the device
    /// one by one; each file is written under a temporary name and renamed, `config.json` last.
    ///
    /// The tokenizer's files are saved by [`Tokenizer::save`](crate::Tokenizer::save).
    ///
    /// # Errors
    /// - [`LlamaError::Format`] if the model has adapters
    ///   ([`merge_and_unload`](AdaptableExt::merge_and_unload) them first, or save them by
    ///   [`save_adapter`](AdaptableExt::save_adapter)), or a value exceeds float16.
    /// - [`LlamaError::Device`] if a tensor cannot be read from the device.
    /// - [`LlamaError::Io`] if a file cannot be written.
    pub fn save_pretrained(
        &self,
        folder: impl AsRef<Path>,
        options: &SaveOptions,
    ) -> Result<(), LlamaError> {
        let folder = folder.as_ref();
        if let Some(name) = self.adapter_names().first() {
            let reason = format!(
                "the model has the adapter `{name}`: call `merge_and_unload` before it is saved, or \
                 save the adapter alone by `save_adapter`"
            );
            return Err(LlamaError::format(folder, reason));
        }
        fs::create_dir_all(folder).map_err(LlamaError::io(folder))?;
        let tied = self.is_tied();
        let layers = self.layers();
        let layers: BTreeMap<_, _> = layers.into_iter().collect();
        let config = LlamaConfig { tie_word_embeddings: tied, ..self.config.clone() };
        let tensors = config.tensors().into_iter().map(|tensor| Lazy {
            layers: vec![layers[&tensor.layer]],
            name: tensor.name.clone(),
            bias: tensor.name.ends_with(".bias"),
            dtype: options.dtype,
            shape: tensor.shape,
            start: tensor.start,
            packed: None,
        });
        let mut tensors: Vec<Lazy<'_>> = tensors.collect();
        if config.family.stacked_experts() {
            tensors = stack(tensors);
        }
        for tensor in &mut tensors {
            tensor.name = config.family.stored_name(&tensor.name).into_owned();
            if options.packed {
                tensor.pack()?;
            }
        }

        write_shards(folder, &tensors, options.max_shard_bytes)?;
        let mut config = self.config.raw.clone();
        if let Value::Object(fields) = &mut config {
            // A head that is tied has no tensor, and is not to be packed either.
            let head = tied.then(|| self.output_head());
            fields.remove("quantization_config");
            fields.remove("torch_dtype");
            fields.insert("dtype".into(), json!(torch_name(options.dtype)));
            fields.insert("tie_word_embeddings".into(), json!(tied));
            if tensors.iter().any(|tensor| tensor.packed.is_some()) {
                fields.insert(
                    "quantization_config".into(),
                    quantization(&tensors, head, options.dtype),
                );
            }
        }
        write_json(&folder.join("config.json"), &config)
    }

    /// Returns `true` if the output head still shares the embedding's parameter.
    pub(crate) fn is_tied(&self) -> bool {
        let head = self.lm_head.base.weight.dense();
        head.is_some_and(|head| head.id == self.model.embed_tokens.weight.id)
    }
}

/// What transformers is told of weights that stay packed: the kind of the first, which all have, and the linear
/// layers that are not.
fn quantization(tensors: &[Lazy<'_>], head: Option<&str>, dtype: FloatDType) -> Value {
    let packed = |tensor: &Lazy<'_>| {
        let base = tensor.layers.first()?.base()?;
        Some(*base.weight.downcast_ref::<PackedWeight>()?.layout())
    };
    let layout = tensors.iter().filter(|tensor| tensor.packed.is_some()).find_map(packed);
    let format = layout.map_or("nf4", |layout| layout.format.name());
    let double = layout.is_some_and(|layout| layout.scales == ScaleRule::DoubleQuant);
    let dense = tensors.iter().filter(|tensor| tensor.packed.is_none() && !tensor.bias);
    let dense = dense.filter(|tensor| tensor.layers.iter().all(|layer| layer.base().is_some()));
    let dense = dense.filter_map(|tensor| tensor.name.strip_suffix(".weight"));
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": true,
        "load_in_8bit": false,
        "bnb_4bit_quant_type": format,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": torch_name(dtype),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": dense.chain(head).collect::<Vec<_>>(),
    })
}

/// Makes one tensor of those of all experts, in their order.
fn stack(tensors: Vec<Lazy<'_>>) -> Vec<Lazy<'_>> {
    let mut stacks: Vec<Lazy<'_>> = vec![];
    let mut places = BTreeMap::new();
    for mut tensor in tensors {
        let Some(name) = stacked_name(&tensor.name) else {
            stacks.push(tensor);
            continue;
        };
        match places.get(&name) {
            Some(&at) => {
                let stack: &mut Lazy<'_> = &mut stacks[at];
                stack.layers.append(&mut tensor.layers);
                stack.shape[0] += 1;
            }
            None => {
                places.insert(name.clone(), stacks.len());
                // `[out, in]` is stored transposed.
                tensor.shape.reverse();
                tensor.shape.insert(0, 1);
                stacks.push(Lazy { name, ..tensor });
            }
        }
    }
    stacks
}

fn write_shards(folder: &Path, tensors: &[Lazy<'_>], limit: usize) -> Result<(), LlamaError> {
    let mut shards: Vec<Vec<&Lazy<'_>>> = vec![];
    let mut size = 0usize;
    for tensor in tensors {
        size += tensor.bytes();
        if shards.is_empty() || size > limit {
            shards.push(vec![]);
            size = tensor.bytes();
        }
        shards.last_mut().expect("just pushed").push(tensor);
    }
    let work = Work::bytes("writing", tensors.iter().map(|tensor| tensor.bytes() as u64).sum());
    let (index, single) = (folder.join(INDEX), folder.join(SINGLE));
    let count = shards.len();
    let mut map = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let path = folder.join(&file);
        if count > 1 && path.exists() {
            // If this is cut off, the index would mix old shards and new ones.
            remove(&index)?;
        }
        write(&path, shard, &work)?;
        let entries = shard.iter().flat_map(|tensor| tensor.entries());
        map.extend(entries.map(|entry| (entry.name, file.clone())));
    }
    if count > 1 {
        let total: usize = tensors.iter().map(Lazy::bytes).sum();
        write_json(&index, &json!({ "metadata": { "total_size": total }, "weight_map": map }))?;
        // It would be read in place of the shards.
        remove(&single)?;
    } else {
        remove(&index)?;
    }
    remove_shards(folder, count)
}

/// Removes the shards of an earlier model of another size, as transformers does.
fn remove_shards(folder: &Path, count: usize) -> Result<(), LlamaError> {
    let number = |text: &str| Some(text).filter(|text| text.len() == 5)?.parse::<usize>().ok();
    for entry in fs::read_dir(folder).map_err(LlamaError::io(folder))? {
        let path = entry.map_err(LlamaError::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let parts = name
            .and_then(|name| name.strip_prefix("model-")?.strip_suffix(".safetensors"))
            .and_then(|name| name.split_once("-of-"))
            .and_then(|(part, parts)| number(part).and(number(parts)));
        if parts.is_some_and(|parts| parts != count || count == 1) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), LlamaError> {
    if path.exists() { fs::remove_file(path).map_err(LlamaError::io(path)) } else { Ok(()) }
}

fn write_json(path: &Path, value: &Value) -> Result<(), LlamaError> {
    let mut json = serde_json::to_vec_pretty(value).map_err(|e| LlamaError::format(path, e))?;
    json.push(b'\n');
    burn_lora_io::replace(path, &json).map_err(LlamaError::io(path))
}

fn torch_name(dtype: FloatDType) -> &'static str {
    match dtype {
        FloatDType::BF16 => "bfloat16",
        FloatDType::F16 => "float16",
        _ => "float32",
    }
}
