//! Random weights for training from scratch.

use super::{
    build::Builder,
    normal::{deviation, normal},
    source::Source,
};
use crate::{
    config::LlamaConfig,
    error::LlamaError,
    llama::{Head, Llama},
};
use burn::tensor::{DType, Device, FloatDType, TensorData};
use burn_lora_io::progress::Work;
use std::{collections::BTreeMap, path::Path};

impl Llama {
    /// Creates a model to train from scratch, in float32, initialized as in transformers: normal
    /// with a standard deviation of `initializer_range` (0.02), biases 0, norms 1. All parameters
    /// are frozen, as in any model of this crate: `set_require_grad(true)` makes them trainable.
    ///
    /// ```
    /// use burn::{module::Module, tensor::Device};
    /// use burn_lora_llama::{Llama, LlamaConfig};
    ///
    /// let config = LlamaConfig::from_json(r#"{
    ///     "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 32,
    ///     "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    ///     "num_key_value_heads": 2, "tie_word_embeddings": true
    /// }"#)?;
    /// let model = Llama::random(&config, 0, &Device::default()).set_require_grad(true);
    /// assert_eq!(model.model.layers.len(), 2);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    pub fn random(config: &LlamaConfig, seed: u64, device: &Device) -> Self {
        let builder = Builder {
            source: &Random::new(config, seed),
            root: Path::new("random"),
            config,
            quantize: None,
            dtype: FloatDType::F32,
            device,
            embedding_device: device,
            head: Head::Output,
            work: &Work::unknown("creating tensors"),
        };
        builder.build().expect("all tensors are there, of their shapes")
    }
}

/// Source of random tensors, each seeded by the seed and its index among the names.
struct Random {
    shapes: BTreeMap<String, Vec<usize>>,
    deviation: f32,
    /// Offset of the weights of norms.
    offset: f64,
    seed: u64,
}

impl Random {
    fn new(config: &LlamaConfig, seed: u64) -> Self {
        let tensors = config.tensors().into_iter();
        let shapes = tensors.map(|tensor| (tensor.name, tensor.shape)).collect();
        Self { shapes, offset: config.norm.offset, deviation: deviation(config), seed }
    }
}

impl Source for Random {
    fn names(&self) -> Vec<&str> {
        self.shapes.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    fn path(&self, _name: &str) -> &Path {
        Path::new("random")
    }

    fn bytes(&self, name: &str) -> usize {
        4 * self.shapes[name].iter().product::<usize>()
    }

    fn dtypes(&self, _name: &str) -> Vec<DType> {
        vec![DType::F32]
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        let shape = self.shapes[name].clone();
        let count = shape.iter().product();
        let values = match shape.len() {
            1 if name.ends_with(".bias") => vec![0.0; count],
            1 if name.ends_with(".weight") => vec![(1.0 - self.offset) as f32; count],
            _ => {
                let place = self.shapes.keys().position(|key| key == name);
                let seed = self.seed ^ (place.unwrap_or(0) as u64) << 32;
                normal(seed, self.deviation, count)
            }
        };
        Ok(TensorData::new(values, shape))
    }

    fn dtype(&self) -> DType {
        DType::F32
    }
}
