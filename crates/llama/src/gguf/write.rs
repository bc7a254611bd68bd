//! Saving of a model as a GGUF file, as llama.cpp's converter and `llama-quantize` write it.

use super::{
    metadata::{check, divisors, metadata},
    model::{EXPERTS, MODULES, alternate, permute, permuted_heads},
    quantize::{WRITABLE, quantize},
};
use crate::{
    config::{GgufFamily, LlamaConfig},
    error::LlamaError,
    llama::Llama,
};
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptableExt, AdaptedLayer};
use burn_lora_io::{
    gguf::{Entry, TensorType},
    progress::Work,
};
use burn_lora_text::Tokenizer;
use std::{collections::BTreeMap, io::Write, path::Path};

/// Type of the weights of a GGUF file, by llama.cpp's names.
///
/// Norms, biases and routers are always F32. As by `llama-quantize`, the output head of a model in Q4_0 or
/// Q4_K is Q6_K, and weights whose rows are no whole number of blocks of 256 are Q5_0 instead of Q4_K and
/// Q8_0 instead of Q6_K, or F16 where they are no blocks of 32 either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgufType {
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    BF16,
    /// 8 bits, blocks of 32: 8.5 bits a weight.
    Q8_0,
    /// 4 bits, blocks of 32: 4.5 bits a weight.
    Q4_0,
    /// 4 bits, blocks of 256 with scales and minimums of 32: 4.5 bits a weight.
    Q4K,
    /// 6 bits, blocks of 256 with scales of 16: 6.56 bits a weight.
    Q6K,
    /// Experts in 4 bits, blocks of 32 whose scales are powers of two (4.25 bits a weight), all else Q8_0:
    /// the weights of gpt-oss keep their values.
    Mxfp4,
}

impl GgufType {
    /// All types.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4K,
        Self::Q6K,
        Self::Mxfp4,
    ];

    /// llama.cpp's name: `Q4_K`.
    pub fn name(self) -> String {
        self.tensor().name()
    }

    /// Name in small letters: `q4_k`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
            Self::Mxfp4 => "mxfp4",
        }
    }

    fn tensor(self) -> TensorType {
        WRITABLE[Self::ALL.iter().position(|kind| *kind == self).expect("all are listed")]
    }

    /// `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::BF16 => 32,
            Self::Q8_0 => 7,
            Self::Q4_0 => 2,
            Self::Q4K => 14,
            Self::Q6K => 18,
            Self::Mxfp4 => 38,
        }
    }

    /// Type of a tensor.
    fn of(self, name: &str, shape: &[usize]) -> TensorType {
        let [_, .., row] = shape else { return TensorType::F32 };
        if name.ends_with("ffn_gate_inp.weight") || name.ends_with(".bias") {
            return TensorType::F32;
        }
        let asked = match self {
            Self::Q4_0 | Self::Q4K if name == "output.weight" => TensorType::Q6K,
            Self::Mxfp4 if shape.len() < 3 => TensorType::Q8_0,
            _ => self.tensor(),
        };
        let smaller = match asked {
            TensorType::Q4K => TensorType::Q5_0,
            TensorType::Q6K => TensorType::Q8_0,
            other => other,
        };
        let fits = |kind: &TensorType| row.is_multiple_of(kind.block().0);
        [asked, smaller].into_iter().find(fits).unwrap_or(TensorType::F16)
    }
}

/// A tensor of the file.
struct Out<'a> {
    name: String,
    shape: Vec<usize>,
    kind: TensorType,
    content: Content<'a>,
}

enum Content<'a> {
    /// Parts of layers, one after the other: an expert each.
    Layers(Vec<Part<'a>>),
    Values(Vec<f32>),
}

struct Part<'a> {
    layer: &'a dyn AdaptedLayer,
    bias: bool,
    /// First row of the tensor in the layer, and its rows.
    rows: (usize, usize),
    /// Of each two rows the first (0) or the second (1).
    side: Option<usize>,
    /// Heads whose rows are permuted.
    heads: Option<usize>,
    /// Added to the values.
    offset: f32,
}

impl Llama {
    /// Saves the model with its tokenizer as a GGUF file, which llama.cpp, Ollama and LM Studio run. Packed
    /// weights are dequantized; tensors are read from the device and encoded one by one.
    ///
    /// # Errors
    /// - [`LlamaError::Format`] if the model has adapters (merge them first), is of a family that llama.cpp
    ///   has not or that is not written, or has a setting that these files have no place for.
    /// - [`LlamaError::Text`] if llama.cpp's files have no place for the tokenizer.
    /// - [`LlamaError::Device`] if a tensor cannot be read from the device.
    /// - [`LlamaError::Io`] if the file cannot be written.
    pub fn save_gguf(
        &self,
        path: impl AsRef<Path>,
        tokenizer: &Tokenizer,
        kind: GgufType,
    ) -> Result<(), LlamaError> {
        let path = path.as_ref();
        if let Some(name) = self.adapter_names().first() {
            let reason =
                format!("the model has the adapter `{name}`: call `merge_and_unload` first");
            return Err(LlamaError::format(path, reason));
        }
        let Some(family) = self.config.family.gguf() else {
            let reason = format!(
                "models of the family {} are not written as GGUF: save the model, and convert it by \
                 llama.cpp's convert_hf_to_gguf.py",
                self.config.family.model_type()
            );
            return Err(LlamaError::format(path, reason));
        };
        if kind == GgufType::Mxfp4 && !family.experts {
            let reason = "MXFP4 is a type of experts, which this model has not: take Q8_0 or Q4_K";
            return Err(LlamaError::format(path, reason));
        }
        let mut file = metadata(&self.config, &family);
        file.set("general.file_type", Entry::U32(kind.file_type()));
        if let Some(name) = path.file_stem() {
            file.set("general.name", Entry::Text(name.to_string_lossy().into_owned()));
        }
        tokenizer.write_gguf(self.config.vocab_size, &mut file)?;
        let tensors = self.gguf_tensors(&family, kind);
        for tensor in &tensors {
            let added = file.tensor(&tensor.name, &tensor.shape, tensor.kind);
            added.map_err(|reason| LlamaError::format(path, reason))?;
        }
        let work = Work::items("writing tensors", tensors.len());
        let written = file.write::<Failure>(
            path,
            |number, out| {
                work.advance(1);
                tensors[number].write(out)
            },
            |written| check(&self.config, written, path).map_err(Failure::Model),
        );
        written.map_err(|failure| match failure {
            Failure::Io(error) => LlamaError::io(path)(error),
            Failure::Model(error) => error,
        })
    }

    fn gguf_tensors(&self, family: &GgufFamily, kind: GgufType) -> Vec<Out<'_>> {
        let layers: BTreeMap<_, _> = self.layers().into_iter().collect();
        let tied = self.is_tied();
        let config = LlamaConfig { tie_word_embeddings: tied, ..self.config.clone() };
        let mut out: Vec<Out<'_>> = vec![];
        for (name, divisors) in divisors(&config.ropes[0], family) {
            let (name, shape) = (name.to_owned(), vec![divisors.len()]);
            let content = Content::Values(divisors);
            out.push(Out { name, shape, kind: TensorType::F32, content });
        }
        let alternate = alternate(&config);
        let tensors = config.tensors();
        let parts = tensors.iter().flat_map(|tensor| match alternate {
            true => sides(&tensor.name).into_iter().map(|part| (tensor, part)).collect(),
            false => vec![(tensor, (tensor.name.clone(), None))],
        });
        for (tensor, (own, side)) in parts {
            let (name, expert) = renamed(&own, family);
            let heads = permuted_heads(&config, family, &own);
            let part = Part {
                layer: layers[&tensor.layer],
                bias: own.ends_with(".bias"),
                rows: (tensor.start, tensor.shape[0]),
                side,
                heads,
                offset: if name.ends_with("norm.weight") { family.norm_offset } else { 0.0 },
            };
            let known = out.iter_mut().find(|out| expert && out.name == name);
            if let Some(Out { shape, content: Content::Layers(parts), .. }) = known {
                shape[0] += 1;
                parts.push(part);
                continue;
            }
            let mut shape = tensor.shape.clone();
            shape[0] /= if side.is_some() { 2 } else { 1 };
            if expert {
                shape.insert(0, 1);
            }
            let kind = kind.of(&name, &shape);
            out.push(Out { name, shape, kind, content: Content::Layers(vec![part]) });
        }
        out
    }
}

/// Failure of writing: of the file, or of the model.
enum Failure {
    Io(std::io::Error),
    Model(LlamaError),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl Out<'_> {
    fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut write = |values: &[f32]| Ok(out.write_all(&quantize(self.kind, values))?);
        match &self.content {
            Content::Values(values) => write(values),
            Content::Layers(parts) => parts.iter().try_for_each(|part| {
                let device = |reason| {
                    Failure::Model(LlamaError::Device { tensor: self.name.clone(), reason })
                };
                write(&part.read().map_err(device)?)
            }),
        }
    }
}

impl Part<'_> {
    fn read(&self) -> Result<Vec<f32>, String> {
        let (start, rows) = self.rows;
        let data = if self.bias {
            let bias = self.layer.bias().expect("listed because it is there").val().inner();
            bias.cast(FloatDType::F32).try_into_data()
        } else {
            let weight = self.layer.file_layout(self.layer.weight());
            let all = weight.dims()[0];
            let weight = if rows < all { weight.narrow(0, start, rows) } else { weight };
            weight.cast(FloatDType::F32).try_into_data()
        };
        let data = data.map_err(|error| error.to_string())?;
        let mut values: Vec<f32> = data.try_into_vec().map_err(|error| format!("{error:?}"))?;
        if let Some(side) = self.side {
            let row = values.len() / rows;
            values = values.chunks(row).skip(side).step_by(2).flatten().copied().collect();
        }
        if self.offset != 0.0 {
            values.iter_mut().for_each(|value| *value += self.offset);
        }
        Ok(match self.heads {
            Some(heads) => permute(&values, rows, heads),
            None => values,
        })
    }
}

/// Tensors of which llama.cpp has two where ours has their rows in turn, and which rows they have.
fn sides(name: &str) -> Vec<(String, Option<usize>)> {
    if !name.contains(".gate_up_proj.") {
        return vec![(name.to_owned(), None)];
    }
    let side = |(side, path)| (name.replace("gate_up_proj", path), Some(side));
    [(0, "gate_proj"), (1, "up_proj")].map(side).into()
}

/// llama.cpp's name of a tensor, and whether it has those of all experts.
pub(super) fn renamed(name: &str, family: &GgufFamily) -> (String, bool) {
    let whole = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return (whole.into(), false);
    }
    let in_layer = || {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        if let Some((theirs, _)) = family.parameters.iter().find(|(_, own)| *own == rest) {
            return Some((format!("blk.{layer}.{theirs}.weight"), false));
        }
        let (module, kind) = rest.rsplit_once('.')?;
        if let Some(expert) = module.strip_prefix("mlp.experts.") {
            let (_, path) = expert.split_once('.')?;
            let (theirs, _) = EXPERTS.iter().find(|(_, own)| *own == path)?;
            return Some((format!("blk.{layer}.{theirs}.{kind}"), true));
        }
        let mut known = family.modules.iter().chain(&MODULES);
        let (theirs, _) = known.find(|(_, own)| *own == module)?;
        Some((format!("blk.{layer}.{theirs}.{kind}"), false))
    };
    in_layer().unwrap_or_else(|| (name.to_owned(), false))
}
