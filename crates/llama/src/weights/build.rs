//! Builder of modules from tensors: each is uploaded, and quantized on the device if asked for.

use super::{
    bytes::{is_cpu, owned},
    normal,
    source::Source,
    stored,
    values::check_values,
};
use crate::{
    config::LlamaConfig,
    error::LlamaError,
    layers::{Parameters, TensorSpec},
    llama::{Head, Llama},
};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use burn_lora_adapter::{AdaptedEmbedding, AdaptedLinear, AdaptedVector, Base};
use burn_lora_io::{progress::Work, shards::SINGLE};
use burn_lora_kernels::{persist, upload};
use burn_lora_quant::{DenseWeight, Frozen, StorageFormat};
use std::{collections::BTreeSet, path::Path};

/// Parameters of a model from the tensors of a source.
pub(super) struct Builder<'a> {
    pub source: &'a dyn Source,
    /// File or folder of the checkpoint.
    pub root: &'a Path,
    pub config: &'a LlamaConfig,
    pub quantize: Option<&'a dyn StorageFormat>,
    pub dtype: FloatDType,
    pub device: &'a Device,
    /// Device of the embeddings.
    pub embedding_device: &'a Device,
    pub head: Head,
    /// Advanced by the bytes of each finished tensor.
    pub work: &'a Work,
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const SCORE: &str = "score.weight";
const SCORE_BIAS: &str = "score.bias";

/// Returns `true` for a tensor of old checkpoints that is computed here.
fn is_computed(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

impl Builder<'_> {
    /// Builds the whole model.
    pub fn build(&self) -> Result<Llama, LlamaError> {
        check_names(self.source, self.root, self.config, self.head)?;
        Llama::build(self, self.config, self.head, self.dtype)
    }

    /// Stores a weight as is asked for: quantized, or in the dtype of the model.
    fn store(&self, weight: Tensor<2>) -> Result<Frozen, LlamaError> {
        Ok(match self.quantize {
            Some(format) => format.store(weight)?,
            None => Frozen::new(DenseWeight::new(weight.cast(self.dtype))),
        })
    }

    fn frozen(&self, path: &str, weight: Frozen, bias: bool) -> Result<AdaptedLinear, LlamaError> {
        let bias = self.bias(path, weight.shape()[0], bias)?;
        Ok(persist(AdaptedLinear::new(Base::new(weight, bias))))
    }

    fn bias(&self, path: &str, out: usize, bias: bool) -> Result<Option<Tensor<1>>, LlamaError> {
        bias.then(|| self.tensor(&format!("{path}.bias"), [out])).transpose()
    }

    /// Creates a classification head for a checkpoint that has none.
    fn random_score(&self, shape: [usize; 2], bias: bool) -> Result<AdaptedLinear, LlamaError> {
        burn_lora_io::warn!(
            "{}: it has no `{SCORE}`: the head of classes starts from random numbers, and has to be trained",
            self.root.display()
        );
        // The same at each start, so that a run with it can be resumed.
        let values = normal::normal(0, normal::deviation(self.config), shape.iter().product());
        let weight = Tensor::<2>::from_data(TensorData::new(values, shape), self.device);
        let bias = bias.then(|| Tensor::<1>::zeros([shape[0]], (self.device, self.dtype.into())));
        Ok(AdaptedLinear::dense(weight.cast(self.dtype), bias))
    }

    /// Loads a tensor onto the device, in the dtype of the model.
    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<D>, LlamaError> {
        self.place(name, shape, self.device)
    }

    /// Loads a tensor onto `device`, in the dtype of the model.
    fn place<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Tensor<D>, LlamaError> {
        let tensor = self.upload(name, shape, device)?.cast(self.dtype);
        self.done(name);
        Ok(tensor)
    }

    /// Uploads a tensor in the dtype of the file, or in float32 if the device does not support it.
    fn upload<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Tensor<D>, LlamaError> {
        // Checked before the data is read.
        let found = self.source.shape(name).unwrap_or_default();
        if found != shape {
            return Err(misshapen(self.source, name, found.to_vec(), &shape));
        }
        let data = self.source.read(name)?;
        let dtype = data.dtype();
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(not_float(self.source, name, dtype));
        }
        let some_rows = name == EMBEDDING && !self.config.tie_word_embeddings;
        check_values(self.source.path(name), name, &data, self.dtype, some_rows)?;
        let device_dtype = if device.supports_dtype(dtype) { dtype } else { DType::F32 };
        let data = to_dtype(data, device_dtype);
        // On the host, the tensor would be the mapped file, which may be written later.
        Ok(upload(if is_cpu(device) { owned(data) } else { data }, device))
    }

    fn done(&self, name: &str) {
        self.work.advance(self.source.bytes(name) as u64);
    }
}

impl Parameters for Builder<'_> {
    fn joined(
        &self,
        path: &str,
        parts: &[String],
        shape: [usize; 2],
    ) -> Result<AdaptedLinear, LlamaError> {
        let names = parts.iter().map(|part| format!("{part}.weight"));
        let weights = names.map(|name| {
            if stored::find(self.source, &name).is_some() {
                let reason = format!(
                    "`{name}` is stored quantized, and would be a part of `{path}`: load the \
                     checkpoint that is not quantized, and quantize it on loading"
                );
                return Err(LlamaError::format(self.source.path(&name), reason));
            }
            let weight = self.upload::<2>(&name, shape, self.device)?;
            self.done(&name);
            Ok(weight)
        });
        let weight = Tensor::cat(weights.collect::<Result<Vec<_>, _>>()?, 0);
        self.frozen(path, self.store(weight)?, false)
    }

    fn linear(
        &self,
        path: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<AdaptedLinear, LlamaError> {
        let name = format!("{path}.weight");
        if let Some((stored, parts)) = stored::find(self.source, &name) {
            let settings = &self.config.raw["quantization_config"];
            let weight = stored.read(self.source, &name, settings, self.device)?;
            if weight.shape() != shape {
                return Err(misshapen(self.source, &name, weight.shape().to_vec(), &shape));
            }
            parts.iter().for_each(|part| self.done(part));
            self.done(&name);
            return self.frozen(path, weight, bias);
        }
        let weight = self.store(self.upload::<2>(&name, shape, self.device)?)?;
        self.done(&name);
        self.frozen(path, weight, bias)
    }

    fn dense(
        &self,
        path: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<AdaptedLinear, LlamaError> {
        if path == "score" && self.source.shape(SCORE).is_none() {
            return self.random_score(shape, bias);
        }
        let weight = self.tensor(&format!("{path}.weight"), shape)?;
        Ok(persist(AdaptedLinear::dense(weight, self.bias(path, shape[0], bias)?)))
    }

    fn embedding(&self, path: &str, shape: [usize; 2]) -> Result<AdaptedEmbedding, LlamaError> {
        let name = match format!("{path}.weight") {
            name if name == EMBEDDING => embedding_name(self.source, self.config).to_owned(),
            name => name,
        };
        Ok(persist(AdaptedEmbedding::new(self.place(&name, shape, self.embedding_device)?)))
    }

    fn vector(&self, _path: &str, name: &str, length: usize) -> Result<AdaptedVector, LlamaError> {
        Ok(persist(AdaptedVector::new(self.tensor(name, [length])?)))
    }
}

/// Checks, before anything is loaded, that all tensors are there and no others.
fn check_names(
    source: &dyn Source,
    root: &Path,
    config: &LlamaConfig,
    head: Head,
) -> Result<(), LlamaError> {
    let mut expected: Vec<_> = config.tensors().into_iter().map(|t| t.name).collect();
    let embedding = expected.iter_mut().find(|name| *name == EMBEDDING);
    *embedding.expect("every model has embeddings") = embedding_name(source, config).to_owned();
    // A checkpoint may have either head, or none.
    let is_head = |name: &str| match head {
        Head::Output => false,
        Head::Classes { bias, .. } => name == HEAD || name == SCORE || bias && name == SCORE_BIAS,
    };
    expected.retain(|name| !is_head(name));
    // A quantized weight may be there under the names of its parts only.
    let is_missing =
        |name: &&String| source.shape(name).is_none() && stored::find(source, name).is_none();
    let missing: Vec<String> = expected.iter().filter(is_missing).cloned().collect();
    if missing == [HEAD] {
        let reason = "`lm_head.weight` is missing: if the output head is the embedding, set \
                      `tie_word_embeddings` in config.json to true";
        return Err(LlamaError::format(root, reason));
    }
    if !missing.is_empty() {
        let single = root.join(SINGLE);
        let path = if single.exists() { single } else { root.into() };
        return Err(LlamaError::MissingTensors { path, tensors: missing });
    }
    let expected: BTreeSet<_> = expected.iter().map(String::as_str).collect();
    let parts = expected.iter().filter_map(|name| stored::find(source, name));
    let parts: BTreeSet<_> = parts.flat_map(|(_, parts)| parts).collect();
    let known = |name: &str| {
        let tied = config.tie_word_embeddings && name == HEAD;
        let model = expected.contains(name) || tied || is_head(name);
        model || is_computed(name) || parts.contains(name)
    };
    let names = source.names().into_iter().filter(|name| !known(name));
    let surplus: Vec<_> = names.map(str::to_owned).collect();
    if surplus.is_empty() {
        return Ok(());
    }
    Err(LlamaError::UnexpectedTensors { path: root.into(), tensors: surplus })
}

/// Name of the embedding tensor. With tied embeddings, only the head may have been kept.
fn embedding_name(source: &dyn Source, config: &LlamaConfig) -> &'static str {
    let has = |name| source.shape(name).is_some();
    if config.tie_word_embeddings && !has(EMBEDDING) && has(HEAD) { HEAD } else { EMBEDDING }
}

/// Checks by headers that the tensors are those of a model: names, shapes of weights that are not stored
/// quantized, and dtypes. A head of classes may be there, as may the output head beside it.
pub(super) fn check(
    source: &dyn Source,
    root: &Path,
    config: &LlamaConfig,
) -> Result<(), LlamaError> {
    let head = match source.shape(SCORE) {
        Some(shape) => Head::Classes {
            count: shape.first().copied().unwrap_or(1),
            bias: source.shape(SCORE_BIAS).is_some(),
        },
        None => Head::Output,
    };
    check_names(source, root, config, head)?;
    for TensorSpec { name, shape, .. } in config.tensors() {
        let name = if name == EMBEDDING { embedding_name(source, config) } else { &name };
        let Some(found) = source.shape(name).filter(|_| stored::find(source, name).is_none())
        else {
            continue;
        };
        if found != shape {
            return Err(misshapen(source, name, found.to_vec(), &shape));
        }
        if source.dtypes(name).is_empty() {
            return Err(not_float(source, name, source.read(name)?.dtype()));
        }
    }
    Ok(())
}

fn misshapen(source: &dyn Source, name: &str, found: Vec<usize>, expected: &[usize]) -> LlamaError {
    let (path, tensor, expected) = (source.path(name).into(), name.into(), expected.to_vec());
    LlamaError::Shape { path, tensor, found, expected }
}

fn not_float(source: &dyn Source, name: &str, found: DType) -> LlamaError {
    let (path, tensor, found) = (source.path(name).into(), name.into(), format!("{found:?}"));
    LlamaError::DType { path, tensor, found, expected: "F32, F16 or BF16" }
}

/// Returns the configuration with `tie_word_embeddings` corrected by the tensors. As in
/// transformers, a head that differs from the embeddings is not tied to them.
///
/// # Errors
/// As [`Source::read`].
pub(super) fn settle_head(
    mut config: LlamaConfig,
    source: &dyn Source,
    root: &Path,
) -> Result<LlamaConfig, LlamaError> {
    let both = [EMBEDDING, HEAD].into_iter().all(|name| source.shape(name).is_some());
    if config.tie_word_embeddings && both && !same(&source.read(EMBEDDING)?, &source.read(HEAD)?) {
        burn_lora_io::warn!(
            "{}: config.json ties the output head to the embeddings (`tie_word_embeddings`), but \
             `{HEAD}` differs from them: it is loaded as it is",
            root.display()
        );
        config.tie_word_embeddings = false;
    }
    Ok(config)
}

/// Returns `true` if two tensors have the same values.
fn same(a: &TensorData, b: &TensorData) -> bool {
    if a.dtype() == b.dtype() {
        return a.shape() == b.shape() && a.as_bytes() == b.as_bytes();
    }
    let wide = |data: &TensorData| data.clone().convert_dtype(DType::F32);
    a.shape() == b.shape() && wide(a).as_bytes() == wide(b).as_bytes()
}

fn to_dtype(data: TensorData, dtype: DType) -> TensorData {
    if data.dtype() == dtype { data } else { data.convert_dtype(dtype) }
}
