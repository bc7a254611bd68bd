//! GGUF file as a checkpoint: tensors under Hugging Face's names, in Hugging Face's order of rows.

use super::{
    config,
    dequantize::{dense, dequantize},
};
use crate::{config::LlamaConfig, error::LlamaError, weights::Source};
use burn::tensor::{DType, TensorData};
use burn_lora_io::gguf::{Gguf, SUPPORTED, TensorInfo, type_name};
use std::{collections::BTreeMap, path::Path};

/// Tensor of the divisors of the rotary frequencies.
const DIVISORS: &str = "rope_freqs.weight";

/// Model in a GGUF file.
pub(crate) struct GgufModel {
    gguf: Gguf,
    /// Names in the file, by Hugging Face's names.
    names: BTreeMap<String, String>,
    config: LlamaConfig,
    /// `true` if llama.cpp has permuted the rows of q and k.
    permuted: bool,
}

impl GgufModel {
    /// Opens a file; reads and checks all but the tensors.
    ///
    /// # Errors
    /// As [`Gguf::open`]; also if the model or the type of a tensor is not supported.
    pub fn open(path: &Path) -> Result<Self, LlamaError> {
        let gguf = Gguf::open(path)?;
        let permuted = config::architecture(&gguf)? == "llama";
        if let Some(parts) =
            gguf.get("split.count").and_then(|count| count.as_u64()).filter(|n| *n > 1)
        {
            let reason = format!(
                "one of {parts} parts of a model: make one file of them by `llama-gguf-split --merge`"
            );
            return Err(LlamaError::format(path, reason));
        }
        let mut names = BTreeMap::new();
        for (name, tensor) in gguf.tensors() {
            if let Err(id) = tensor.dtype {
                return Err(dtype(path, name, type_name(id), SUPPORTED));
            }
            if name == DIVISORS {
                continue;
            }
            let theirs = hugging_face(name).unwrap_or_else(|| name.clone());
            if let Some(other) = names.insert(theirs, name.clone()) {
                let reason = format!("`{name}` and `{other}` are the same tensor");
                return Err(LlamaError::format(path, reason));
            }
        }
        let divisors = gguf.tensors().get(DIVISORS).map(|tensor| match tensor.dtype {
            Ok(kind) if dense(kind) == Some(DType::F32) => Ok(dequantize(kind, gguf.data(tensor))),
            Ok(kind) => Err(dtype(path, DIVISORS, kind.name(), "F32")),
            Err(id) => Err(dtype(path, DIVISORS, type_name(id), "F32")),
        });
        let config = config::config(&gguf, divisors.transpose()?)?;
        Ok(Self { gguf, names, config, permuted })
    }

    /// Shape and settings of the model.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.gguf.tensors().get(self.names.get(name)?)
    }

    /// Number of heads whose rows llama.cpp has permuted in this tensor, if it has.
    fn permuted_heads(&self, name: &str) -> Option<usize> {
        let (module, _) = name.rsplit_once('.')?;
        let attention = &self.config.layers[0].attention;
        let heads = if module.ends_with("self_attn.q_proj") {
            attention.num_heads
        } else if module.ends_with("self_attn.k_proj") {
            attention.num_kv_heads
        } else {
            return None;
        };
        self.permuted.then_some(heads)
    }
}

fn dtype(path: &Path, tensor: &str, found: String, expected: &'static str) -> LlamaError {
    LlamaError::DType { path: path.into(), tensor: tensor.into(), found, expected }
}

/// Hugging Face's name of a tensor, by llama.cpp's name.
fn hugging_face(name: &str) -> Option<String> {
    let known = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => {
            let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
            // Canonical only: `01` would be a second name of the same layer.
            let layer = layer.parse::<usize>().ok().filter(|number| number.to_string() == layer)?;
            let (module, kind) = rest.rsplit_once('.')?;
            let module = match module {
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "attn_q_norm" => "self_attn.q_norm",
                "attn_k_norm" => "self_attn.k_norm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                "attn_norm" => "input_layernorm",
                "ffn_norm" => "post_attention_layernorm",
                _ => return None,
            };
            if !matches!(kind, "weight" | "bias") {
                return None;
            }
            return Some(format!("model.layers.{layer}.{module}.{kind}"));
        }
    };
    Some(known.into())
}

/// Undoes llama.cpp's order of rows: it interleaves the two halves of each head, since it rotates
/// neighbours.
fn unpermute(bytes: &[u8], row: usize, heads: usize) -> Vec<u8> {
    let rows = bytes.len() / row;
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for side in 0..2 {
            for i in 0..half {
                let from = (head * 2 * half + 2 * i + side) * row;
                out.extend_from_slice(&bytes[from..from + row]);
            }
        }
    }
    out
}

impl Source for GgufModel {
    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensor(name).map(|tensor| tensor.shape.as_slice())
    }

    fn path(&self, _: &str) -> &Path {
        self.gguf.path()
    }

    fn bytes(&self, name: &str) -> usize {
        self.tensor(name).map_or(0, |tensor| self.gguf.data(tensor).len())
    }

    /// Reads a dense type as it is, and a block type as float32.
    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        let path = self.gguf.path();
        let missing =
            || LlamaError::MissingTensors { path: path.into(), tensors: vec![name.into()] };
        let tensor = self.tensor(name).ok_or_else(missing)?;
        let kind = tensor.dtype.map_err(|id| dtype(path, name, type_name(id), SUPPORTED))?;
        let bytes = self.gguf.data(tensor);
        let shape = tensor.shape.clone();
        let data = match dense(kind) {
            Some(dtype) => TensorData::from_bytes_vec(bytes.to_vec(), shape, dtype),
            None => TensorData::new(dequantize(kind, bytes), shape),
        };
        let Some(heads) = self.permuted_heads(name) else { return Ok(data) };
        let rows = tensor.shape[0];
        if !rows.is_multiple_of(2 * heads) {
            return Err(LlamaError::Shape {
                path: path.into(),
                tensor: name.into(),
                found: tensor.shape.clone(),
                expected: vec![
                    heads * self.config.layers[0].attention.head_dim,
                    self.config.hidden_size,
                ],
            });
        }
        let (bytes, dtype) = (data.as_bytes(), data.dtype());
        let bytes = unpermute(bytes, bytes.len() / rows, heads);
        Ok(TensorData::from_bytes_vec(bytes, tensor.shape.clone(), dtype))
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        match self.tensor(name).and_then(|tensor| tensor.dtype.ok()).map(dense) {
            Some(Some(dtype)) => vec![dtype],
            Some(None) => vec![DType::BF16, DType::F32],
            None => vec![],
        }
    }

    /// bfloat16 for block types, whose models were trained in it.
    fn dtype(&self) -> DType {
        let weight = self.tensor("model.layers.0.self_attn.q_proj.weight");
        let kind = weight.and_then(|tensor| tensor.dtype.ok());
        kind.map_or(DType::F32, |kind| dense(kind).unwrap_or(DType::BF16))
    }
}
