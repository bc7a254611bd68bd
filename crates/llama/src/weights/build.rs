//! Builder of modules from tensors: each is uploaded, and quantized on the device if asked for.

use super::{normal, source::Source, stored, values::check_values};
use crate::{
    config::{Family, LlamaConfig},
    error::LlamaError,
    layers::{Attention, Decoder, DecoderLayer, Mlp, RmsNorm},
    llama::Llama,
};
use burn::{
    module::Param,
    tensor::{DType, Device, FloatDType, Tensor, TensorData},
};
use burn_lora_adapter::{AdaptedEmbedding, AdaptedLinear, AdaptedVector, Base};
use burn_lora_io::shards::SINGLE;
use burn_lora_quant::{Frozen, StorageFormat};
use std::{collections::BTreeSet, path::Path};

/// Builder of a model from the tensors of a source.
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
    /// Classes of a classification head in place of the output head.
    pub num_labels: Option<usize>,
    /// Callback with the bytes of each finished tensor.
    pub progress: &'a dyn Fn(usize),
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const SCORE: &str = "score.weight";

/// Returns `true` for a tensor of old checkpoints that is computed here.
fn is_computed(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

impl Builder<'_> {
    /// Builds the whole model.
    pub fn build(&self) -> Result<Llama, LlamaError> {
        self.check_names()?;
        let config = self.config;
        let shape = [config.vocab_size, config.hidden_size];
        let embed = self.embedding(self.embedding_name(), shape)?;
        let layers = (0..config.num_hidden_layers).map(|layer| self.layer(layer));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = self.norm("model.norm", config.hidden_size)?;
        let lm_head = if let Some(labels) = self.num_labels {
            self.score([labels, config.hidden_size])?
        } else if config.tie_word_embeddings {
            // The same parameter, and so the same memory.
            let weight = embed.weight.clone();
            AdaptedLinear::new(Base::from_params(weight, None))
        } else {
            self.dense("lm_head", shape, false)?
        };
        Ok(Llama {
            model: Decoder { embed_tokens: embed, layers, norm },
            lm_head,
            config: config.clone(),
            dtype: self.dtype,
            tables: Default::default(),
        })
    }

    fn layer(&self, index: usize) -> Result<DecoderLayer, LlamaError> {
        let config = self.config;
        let (hidden, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
        let path = |name: &str| format!("model.layers.{index}.{name}");
        let linear = |name: &str, shape, bias| self.linear(&path(name), shape, bias);
        let norm = |name: &str, width| self.norm(&path(name), width);
        let head_norm = |name: &str| match config.family {
            Family::Qwen3 => norm(name, dim).map(Some),
            _ => Ok(None),
        };
        Ok(DecoderLayer {
            self_attn: Attention {
                q_proj: linear("self_attn.q_proj", [q, hidden], config.qkv_bias)?,
                k_proj: linear("self_attn.k_proj", [kv, hidden], config.qkv_bias)?,
                v_proj: linear("self_attn.v_proj", [kv, hidden], config.qkv_bias)?,
                o_proj: linear("self_attn.o_proj", [hidden, q], config.o_bias)?,
                q_norm: head_norm("self_attn.q_norm")?,
                k_norm: head_norm("self_attn.k_norm")?,
                head_dim: dim,
                window: config.windows[index],
            },
            mlp: Mlp {
                gate_proj: linear("mlp.gate_proj", [inner, hidden], config.mlp_bias)?,
                up_proj: linear("mlp.up_proj", [inner, hidden], config.mlp_bias)?,
                down_proj: linear("mlp.down_proj", [hidden, inner], config.mlp_bias)?,
            },
            input_layernorm: norm("input_layernorm", hidden)?,
            post_attention_layernorm: norm("post_attention_layernorm", hidden)?,
        })
    }

    /// Names of the tensors of a model, without those of quantization.
    pub fn expected(config: &LlamaConfig) -> Vec<String> {
        let mut names = vec!["model.embed_tokens.weight".to_owned(), "model.norm.weight".into()];
        if !config.tie_word_embeddings {
            names.push("lm_head.weight".into());
        }
        for layer in 0..config.num_hidden_layers {
            let mut push = |name: &str, bias: bool| {
                names.push(format!("model.layers.{layer}.{name}.weight"));
                if bias {
                    names.push(format!("model.layers.{layer}.{name}.bias"));
                }
            };
            push("input_layernorm", false);
            push("post_attention_layernorm", false);
            for name in ["q_proj", "k_proj", "v_proj"] {
                push(&format!("self_attn.{name}"), config.qkv_bias);
            }
            push("self_attn.o_proj", config.o_bias);
            for name in ["gate_proj", "up_proj", "down_proj"] {
                push(&format!("mlp.{name}"), config.mlp_bias);
            }
            if config.family == Family::Qwen3 {
                push("self_attn.q_norm", false);
                push("self_attn.k_norm", false);
            }
        }
        names
    }

    /// Checks, before anything is loaded, that all tensors are there and no others.
    fn check_names(&self) -> Result<(), LlamaError> {
        let mut expected = Self::expected(self.config);
        expected[0] = self.embedding_name().to_owned();
        // A checkpoint may have either head, or none.
        let is_head = |name: &str| self.num_labels.is_some() && (name == HEAD || name == SCORE);
        expected.retain(|name| !is_head(name));
        let missing: Vec<String> =
            expected.iter().filter(|name| self.source.shape(name).is_none()).cloned().collect();
        if missing == [HEAD] {
            let reason = "`lm_head.weight` is missing: if the output head is the embedding, set \
                          `tie_word_embeddings` in config.json to true";
            return Err(LlamaError::format(self.root, reason));
        }
        if !missing.is_empty() {
            let single = self.root.join(SINGLE);
            let path = if single.exists() { single } else { self.root.into() };
            return Err(LlamaError::MissingTensors { path, tensors: missing });
        }
        let expected: BTreeSet<_> = expected.iter().map(String::as_str).collect();
        let parts = expected.iter().filter_map(|name| stored::find(self.source, name));
        let parts: BTreeSet<_> = parts.flat_map(|(_, parts)| parts).collect();
        let known = |name: &str| {
            let tied = self.config.tie_word_embeddings && name == HEAD;
            let model = expected.contains(name) || tied || is_head(name);
            model || is_computed(name) || parts.contains(name)
        };
        let names = self.source.names().into_iter().filter(|name| !known(name));
        let surplus: Vec<_> = names.map(str::to_owned).collect();
        if surplus.is_empty() {
            return Ok(());
        }
        Err(LlamaError::UnexpectedTensors { path: self.root.into(), tensors: surplus })
    }

    /// Name of the embedding tensor. With tied embeddings, only the head may have been kept.
    fn embedding_name(&self) -> &'static str {
        let has = |name| self.source.shape(name).is_some();
        if self.config.tie_word_embeddings && !has(EMBEDDING) && has(HEAD) {
            HEAD
        } else {
            EMBEDDING
        }
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
                return Err(self.misshapen(&name, weight.shape().to_vec(), &shape));
            }
            parts.iter().for_each(|part| self.done(part));
            self.done(&name);
            return self.frozen(path, weight, bias);
        }
        let Some(format) = &self.quantize else { return self.dense(path, shape, bias) };
        let weight = format.store(self.upload::<2>(&name, shape, self.device)?)?;
        self.done(&name);
        self.frozen(path, weight, bias)
    }

    fn frozen(&self, path: &str, weight: Frozen, bias: bool) -> Result<AdaptedLinear, LlamaError> {
        let bias = self.bias(path, weight.shape()[0], bias)?;
        Ok(AdaptedLinear::new(Base::new(weight, bias)))
    }

    fn bias(&self, path: &str, out: usize, bias: bool) -> Result<Option<Tensor<1>>, LlamaError> {
        bias.then(|| self.tensor(&format!("{path}.bias"), [out])).transpose()
    }

    fn dense(
        &self,
        path: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<AdaptedLinear, LlamaError> {
        let weight = self.tensor(&format!("{path}.weight"), shape)?;
        Ok(AdaptedLinear::dense(weight, self.bias(path, shape[0], bias)?))
    }

    /// Loads the classification head, or creates one if the checkpoint has none.
    fn score(&self, shape: [usize; 2]) -> Result<AdaptedLinear, LlamaError> {
        if self.source.shape(SCORE).is_some() {
            return self.dense("score", shape, false);
        }
        burn_lora_io::warn!(
            "{}: it has no `{SCORE}`: the head of classes starts from random numbers, and has to be trained",
            self.root.display()
        );
        // The same at each start, so that a run with it can be resumed.
        let values = normal::normal(0, normal::deviation(self.config), shape.iter().product());
        let weight = Tensor::<2>::from_data(TensorData::new(values, shape), self.device);
        Ok(AdaptedLinear::dense(weight.cast(self.dtype), None))
    }

    fn embedding(&self, name: &str, shape: [usize; 2]) -> Result<AdaptedEmbedding, LlamaError> {
        let weight = self.place(name, shape, self.embedding_device)?;
        Ok(AdaptedEmbedding::new(weight))
    }

    fn norm(&self, path: &str, width: usize) -> Result<RmsNorm, LlamaError> {
        let weight = self.tensor(&format!("{path}.weight"), [width])?;
        Ok(RmsNorm {
            weight: AdaptedVector::from_param(Param::from_tensor(weight)),
            eps: self.config.rms_norm_eps,
        })
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
            return Err(self.misshapen(name, found.to_vec(), &shape));
        }
        let data = self.source.read(name)?;
        let dtype = data.dtype();
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(LlamaError::DType {
                path: self.source.path(name).into(),
                tensor: name.into(),
                found: format!("{dtype:?}"),
                expected: "F32, F16 or BF16",
            });
        }
        let some_rows = name == EMBEDDING && !self.config.tie_word_embeddings;
        check_values(self.source.path(name), name, &data, self.dtype, some_rows)?;
        let device_dtype = if device.supports_dtype(dtype) { dtype } else { DType::F32 };
        Ok(Tensor::from_data(to_dtype(data, device_dtype), (device, device_dtype)))
    }

    fn misshapen(&self, name: &str, found: Vec<usize>, expected: &[usize]) -> LlamaError {
        LlamaError::Shape {
            path: self.source.path(name).into(),
            tensor: name.into(),
            found,
            expected: expected.to_vec(),
        }
    }

    fn done(&self, name: &str) {
        (self.progress)(self.source.bytes(name));
    }
}

impl LlamaConfig {
    /// Names and shapes of the tensors of a checkpoint that is not quantized.
    ///
    /// ```
    /// use burn_lora_llama::LlamaConfig;
    ///
    /// let config = LlamaConfig::from_file("../../testdata/gqa/config.json")?;
    /// let tensors = config.tensors();
    /// assert_eq!(tensors[0].0, "model.embed_tokens.weight");
    /// assert_eq!(tensors[0].1, [config.vocab_size, config.hidden_size]);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let names = Builder::expected(self).into_iter();
        names.map(|name| (name.clone(), shape(self, &name))).collect()
    }
}

/// Shape of a tensor, by its name.
fn shape(config: &LlamaConfig, name: &str) -> Vec<usize> {
    let (hidden, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
    let mut parts = name.rsplit('.');
    let (is_bias, layer) = (parts.next() == Some("bias"), parts.next());
    let [out, width] = match layer {
        Some("embed_tokens" | "lm_head") => [config.vocab_size, hidden],
        Some("q_proj") => [q, hidden],
        Some("k_proj" | "v_proj") => [kv, hidden],
        Some("o_proj") => [hidden, q],
        Some("gate_proj" | "up_proj") => [inner, hidden],
        Some("down_proj") => [hidden, inner],
        Some("q_norm" | "k_norm") => return vec![dim],
        _ => return vec![hidden],
    };
    if is_bias { vec![out] } else { vec![out, width] }
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
