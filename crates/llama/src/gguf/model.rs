//! GGUF file as a checkpoint: tensors under Hugging Face's names, in Hugging Face's order of rows.

use super::{
    config,
    dequantize::{dense, dequantize},
};
use crate::{
    config::{GgufFamily, LlamaConfig},
    error::LlamaError,
    spec::GateUp,
    weights::{Source, bytes::copied},
};
use burn::tensor::{DType, TensorData};
use burn_lora_io::gguf::{Gguf, SUPPORTED, TensorInfo, type_name};
use std::{collections::BTreeMap, path::Path};

/// Model in a GGUF file.
pub(crate) struct GgufModel {
    gguf: Gguf,
    /// Tensors by Hugging Face's names.
    tensors: BTreeMap<String, Place>,
    config: LlamaConfig,
    family: GgufFamily,
}

/// Place of a tensor.
struct Place {
    /// Name in the file.
    name: String,
    /// Another tensor of the file, whose rows are between those of the first.
    between: Option<String>,
    /// Shape; that of one expert, if the tensor has those of all.
    shape: Vec<usize>,
    /// Number of an expert.
    expert: Option<usize>,
}

/// Modules of a layer: llama.cpp's names, and the paths in the layer.
pub(super) const MODULES: [(&str, &str); 12] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
];

/// Weights of all experts in one tensor.
pub(super) const EXPERTS: [(&str, &str); 3] =
    [("ffn_gate_exps", "gate_proj"), ("ffn_up_exps", "up_proj"), ("ffn_down_exps", "down_proj")];

impl GgufModel {
    /// Opens a file; reads and checks all but the tensors.
    ///
    /// # Errors
    /// As [`Gguf::open`]; also if the model or the type of a tensor is not supported.
    pub fn open(path: &Path) -> Result<Self, LlamaError> {
        let gguf = Gguf::open(path)?;
        if let Some(parts) =
            gguf.get("split.count").and_then(|count| count.as_u64()).filter(|n| *n > 1)
        {
            let reason = format!(
                "one of {parts} parts of a model: make one file of them by `llama-gguf-split --merge`"
            );
            return Err(LlamaError::format(path, reason));
        }
        let (config, family) = config::config(&gguf)?;
        let mut tensors = BTreeMap::<String, Place>::new();
        for (name, tensor) in gguf.tensors() {
            if let Err(id) = tensor.dtype {
                return Err(dtype(path, name, type_name(id), SUPPORTED));
            }
            if name == config::DIVISORS || family.extra.contains(&name.as_str()) {
                continue;
            }
            for (theirs, place) in places(name, &tensor.shape, &family) {
                if let Some(other) = tensors.insert(theirs, place) {
                    let reason = format!("`{name}` and `{}` are the same tensor", other.name);
                    return Err(LlamaError::format(path, reason));
                }
            }
        }
        if alternate(&config) {
            join(&mut tensors, path)?;
        }
        Ok(Self { gguf, tensors, config, family })
    }

    /// Shape and settings of the model.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.gguf.tensors().get(&self.tensors.get(name)?.name)
    }

    /// Bytes of a tensor of the file, or of its expert.
    fn data(&self, name: &str, expert: Option<usize>) -> &[u8] {
        let Some(tensor) = self.gguf.tensors().get(name) else { return &[] };
        let all = self.gguf.data(tensor);
        match expert {
            None => all,
            Some(expert) => {
                let size = all.len() / tensor.shape[0].max(1);
                &all[expert * size..(expert + 1) * size]
            }
        }
    }

    /// Values of a tensor of the file, or of its expert: of a dense type as they are, of a block type as float32.
    fn values(&self, name: &str, place: &Place, shape: &[usize]) -> Result<TensorData, LlamaError> {
        let path = self.gguf.path();
        let kind = self.gguf.tensors()[name].dtype;
        let kind = kind.map_err(|id| dtype(path, name, type_name(id), SUPPORTED))?;
        let bytes = self.data(name, place.expert);
        Ok(match dense(kind) {
            Some(dtype) => TensorData::from_bytes_vec(copied(bytes), shape.to_vec(), dtype),
            None => TensorData::new(dequantize(kind, bytes), shape.to_vec()),
        })
    }
}

/// `true` if gate and up of an expert are one tensor of the model, their rows in turn, and two of the file.
pub(super) fn alternate(config: &LlamaConfig) -> bool {
    config.layers[0].feed_forward.mlp().gate_up == GateUp::Interleaved
}

/// Makes one tensor of gate and up.
fn join(tensors: &mut BTreeMap<String, Place>, path: &Path) -> Result<(), LlamaError> {
    let gates: Vec<_> =
        tensors.keys().filter(|name| name.contains(".gate_proj.")).cloned().collect();
    for gate in gates {
        let up = gate.replace(".gate_proj.", ".up_proj.");
        let Some(between) = tensors.remove(&up) else { continue };
        let mut place = tensors.remove(&gate).expect("it is one of them");
        if between.shape != place.shape {
            let (path, found, expected) = (path.into(), between.shape, place.shape);
            return Err(LlamaError::Shape { path, tensor: between.name, found, expected });
        }
        place.shape[0] *= 2;
        place.between = Some(between.name);
        tensors.insert(gate.replace(".gate_proj.", ".gate_up_proj."), place);
    }
    Ok(())
}

/// Rows of both in turn.
fn in_turn(first: TensorData, second: TensorData) -> TensorData {
    let (first, second) = match first.dtype() == second.dtype() {
        true => (first, second),
        false => (first.convert_dtype(DType::F32), second.convert_dtype(DType::F32)),
    };
    let (mut shape, dtype) = (first.shape().to_vec(), first.dtype());
    let row = (first.as_bytes().len() / shape[0].max(1)).max(1);
    let rows = first.as_bytes().chunks(row).zip(second.as_bytes().chunks(row));
    let bytes = rows.flat_map(|(first, second)| [first, second]).flatten().copied().collect();
    shape[0] *= 2;
    TensorData::from_bytes_vec(bytes, shape, dtype)
}

fn dtype(path: &Path, tensor: &str, found: String, expected: &'static str) -> LlamaError {
    LlamaError::DType { path: path.into(), tensor: tensor.into(), found, expected }
}

/// Hugging Face's names of a tensor, which may have the weights of all experts: those of an unknown
/// name are its own.
fn places(name: &str, shape: &[usize], family: &GgufFamily) -> Vec<(String, Place)> {
    let place = |shape: &[usize], expert| Place {
        name: name.into(),
        between: None,
        shape: shape.into(),
        expert,
    };
    let one = |theirs: String| vec![(theirs, place(shape, None))];
    let known = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(known) = known {
        return one(known.into());
    }
    let in_layer = || {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        // Canonical only: `01` would be a second name of the same layer.
        let layer = layer.parse::<usize>().ok().filter(|number| number.to_string() == layer)?;
        let (module, kind) = rest.rsplit_once('.')?;
        matches!(kind, "weight" | "bias").then_some((layer, module, kind))
    };
    let Some((layer, module, kind)) = in_layer() else { return one(name.into()) };
    let find = |names: &[(&str, &'static str)]| {
        names.iter().find(|(theirs, _)| *theirs == module).map(|(_, path)| *path)
    };
    if let Some(path) = find(family.parameters).filter(|_| kind == "weight") {
        return one(format!("model.layers.{layer}.{path}"));
    }
    if let Some(path) = find(family.modules).or_else(|| find(&MODULES)) {
        return one(format!("model.layers.{layer}.{path}.{kind}"));
    }
    match (find(&EXPERTS), shape) {
        (Some(path), [experts, shape @ ..]) => (0..*experts)
            .map(|expert| {
                let name = format!("model.layers.{layer}.mlp.experts.{expert}.{path}.{kind}");
                (name, place(shape, Some(expert)))
            })
            .collect(),
        _ => one(name.into()),
    }
}

/// Number of heads whose rows llama.cpp permutes in a tensor, if it does.
pub(super) fn permuted_heads(
    config: &LlamaConfig,
    family: &GgufFamily,
    name: &str,
) -> Option<usize> {
    let (module, _) = name.rsplit_once('.')?;
    let attention = &config.layers[0].attention;
    let heads = if module.ends_with("self_attn.q_proj") {
        attention.num_heads
    } else if module.ends_with("self_attn.k_proj") {
        attention.num_kv_heads
    } else {
        return None;
    };
    family.permuted.then_some(heads)
}

/// llama.cpp's order of rows: the two halves of each head interleaved, since it rotates neighbours.
pub(super) fn permute(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (row, half) = (values.len() / rows, rows / heads / 2);
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for i in 0..half {
            for side in 0..2 {
                let at = (head * 2 * half + side * half + i) * row;
                out.extend_from_slice(&values[at..at + row]);
            }
        }
    }
    out
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
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|place| place.shape.as_slice())
    }

    fn path(&self, _: &str) -> &Path {
        self.gguf.path()
    }

    fn bytes(&self, name: &str) -> usize {
        let Some(place) = self.tensors.get(name) else { return 0 };
        let names = [Some(&place.name), place.between.as_ref()];
        names.into_iter().flatten().map(|name| self.data(name, place.expert).len()).sum()
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        let path = self.gguf.path();
        let missing =
            || LlamaError::MissingTensors { path: path.into(), tensors: vec![name.into()] };
        let place = self.tensors.get(name).ok_or_else(missing)?;
        let shape = place.shape.clone();
        let data = match &place.between {
            None => self.values(&place.name, place, &shape)?,
            Some(between) => {
                let half = [&[shape[0] / 2], &shape[1..]].concat();
                let [first, second] =
                    [&place.name, between].map(|name| self.values(name, place, &half));
                in_turn(first?, second?)
            }
        };
        let offset = self.family.norm_offset;
        if offset != 0.0 && name.ends_with("norm.weight") {
            let values = data.convert_dtype(DType::F32).try_into_vec::<f32>().expect("float32");
            let values = values.into_iter().map(|value| value - offset).collect();
            return Ok(TensorData::new::<f32, _>(values, shape));
        }
        let Some(heads) = permuted_heads(&self.config, &self.family, name) else { return Ok(data) };
        let rows = shape[0];
        if !rows.is_multiple_of(2 * heads) {
            return Err(LlamaError::Shape {
                path: path.into(),
                tensor: name.into(),
                found: shape,
                expected: vec![
                    heads * self.config.layers[0].attention.head_dim,
                    self.config.hidden_size,
                ],
            });
        }
        let (bytes, dtype) = (data.as_bytes(), data.dtype());
        let bytes = unpermute(bytes, bytes.len() / rows, heads);
        Ok(TensorData::from_bytes_vec(bytes, shape, dtype))
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
