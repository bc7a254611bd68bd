//! Writes GGUF files, also broken ones.

use crate::common::{golden, tensors};
use burn_lora_llama::LlamaConfig;
use std::path::{Path, PathBuf};

pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q8_0: u32 = 8;

/// A value of the metadata: its kind and its bytes.
pub type Value = (u32, Vec<u8>);

pub fn text(value: &str) -> Value {
    (8, string(value.as_bytes()))
}

pub fn int(value: u32) -> Value {
    (4, value.to_le_bytes().into())
}

pub fn float(value: f32) -> Value {
    (6, value.to_le_bytes().into())
}

pub fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// A tensor with the dimensions as in the file: the innermost first.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// In place of where it is.
    pub offset: Option<u64>,
}

#[derive(Clone)]
pub struct File {
    pub version: u32,
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

impl File {
    pub fn set(&mut self, key: &str, value: Value) {
        self.remove(key);
        self.metadata.push((key.into(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| name != key);
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub fn push(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.push_bytes(name, shape, F32, bytemuck::cast_slice(values).to_vec());
    }

    pub fn push_bytes(&mut self, name: &str, shape: &[usize], kind: u32, data: Vec<u8>) {
        let dims = shape.iter().rev().map(|size| *size as u64).collect();
        self.tensors.push(Tensor { name: name.into(), dims, kind, data, offset: None });
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, (kind, bytes)) in &self.metadata {
            out.extend(string(key.as_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        let mut data = vec![];
        for tensor in &self.tensors {
            out.extend(string(tensor.name.as_bytes()));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

/// llama.cpp's order of the rows of q and k.
fn permute(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (row, half) = (values.len() / rows, rows / heads / 2);
    let mut out = vec![];
    for head in 0..heads {
        for i in 0..half {
            for side in 0..2 {
                let at = (head * 2 * half + side * half + i) * row;
                out.extend(&values[at..at + row]);
            }
        }
    }
    out
}

/// Where the names differ.
const NAMES: [(&str, &str); 14] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.", "blk."),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_attention_layernorm", "ffn_norm"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.", "attn_"),
];

/// A golden checkpoint as llama.cpp would convert it for this architecture.
pub fn converted(variant: &str, architecture: &str) -> File {
    let config = LlamaConfig::from_file(golden(variant).join("config.json")).unwrap();
    let attention = &config.layers[0].attention;
    let mut file = File { version: 3, metadata: vec![], tensors: vec![] };
    file.set("general.architecture", text(architecture));
    let sizes = [
        ("block_count", config.layers.len()),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.layers[0].feed_forward.mlp().intermediate_size),
        ("attention.head_count", attention.num_heads),
        ("attention.head_count_kv", attention.num_kv_heads),
        ("rope.dimension_count", attention.head_dim),
        ("vocab_size", config.vocab_size),
    ];
    for (key, size) in sizes {
        file.set(&format!("{architecture}.{key}"), int(size as u32));
    }
    let eps = float(config.norm.eps as f32);
    file.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), eps);
    file.set(&format!("{architecture}.rope.freq_base"), float(config.ropes[0].theta as f32));
    file.set("tokenizer.ggml.eos_token_id", int(2));
    for (name, (shape, values)) in tensors(&golden(variant).join("model.safetensors")) {
        let heads = match () {
            _ if architecture != "llama" => None,
            _ if name.contains("q_proj") => Some(attention.num_heads),
            _ if name.contains("k_proj") => Some(attention.num_kv_heads),
            _ => None,
        };
        let values = heads.map_or(values.clone(), |heads| permute(&values, shape[0], heads));
        let name = NAMES.iter().fold(name, |name, (from, to)| name.replace(from, to));
        file.push(&name, &shape, &values);
    }
    file
}

/// The divisors that llama.cpp's converter writes for Llama 3.1, after its formula.
pub fn llama3_divisors(theta: f32, head_dim: usize, factor: f32, original: f32) -> Vec<f32> {
    let wavelength = |i: usize| {
        let frequency = 1.0 / theta.powf((2 * i) as f32 / head_dim as f32);
        2.0 * std::f32::consts::PI / frequency
    };
    let divisor = |wavelength: f32| match () {
        _ if wavelength < original / 4.0 => 1.0,
        _ if wavelength > original => factor,
        _ => {
            let smooth = (original / wavelength - 1.0) / 3.0;
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(|i| divisor(wavelength(i))).collect()
}

/// Rows of 8-bit blocks.
pub fn q8_0(values: &[f32]) -> Vec<u8> {
    let block = |block: &[f32]| {
        let d = block.iter().fold(0.0f32, |max, value| max.max(value.abs())) / 127.0;
        let code = |value: &f32| if d == 0.0 { 0 } else { (value / d).round() as i8 as u8 };
        let mut bytes = half::f16::from_f32(d).to_le_bytes().to_vec();
        bytes.extend(block.iter().map(code));
        bytes
    };
    values.chunks(32).flat_map(block).collect()
}
