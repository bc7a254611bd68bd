//! Interface of trainable models.

use crate::TrainError;
use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use burn_lora_adapter::{Adaptable, AdaptableExt};
use burn_lora_llama::{Context, Llama, LlamaConfig, Segments, SequenceClassifier};
use serde_json::{Value, json};
use std::path::Path;

/// A trainable decoder: embedding, layers one after the other, head.
///
/// The three are separate so that the trainer can keep only the input of each layer and run the
/// layer again in the backward pass, and can run the head on a few tokens at a time. Dropout in a
/// layer has to come from Burn's generator, which the trainer sets to the same state both times.
///
/// Implemented for [`Llama`] and [`SequenceClassifier`]; `docs/your-own-model.md` shows an
/// implementation for a model of your own.
pub trait CausalLm: Module + Adaptable + 'static {
    /// Data of a batch that the layers need: positions, masks.
    type Context;

    /// Creates the context, once per batch.
    fn context(&self, segments: &Segments) -> Self::Context;

    /// Embeddings of tokens.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, hidden]`
    fn embed(&self, tokens: Tensor<2, Int>, context: &Self::Context) -> Tensor<3>;

    /// Number of layers.
    fn depth(&self) -> usize;

    /// Forward pass of one layer.
    ///
    /// # Shapes
    /// - hidden, output: `[batch, sequence, hidden]`
    fn layer(&self, index: usize, hidden: Tensor<3>, context: &Self::Context) -> Tensor<3>;

    /// Logits of tokens after the last layer: the last norm and the output head.
    ///
    /// # Shapes
    /// - hidden: `[tokens, hidden]`
    /// - output: `[tokens, vocabulary]`
    fn head(&self, hidden: Tensor<2>, context: &Self::Context) -> Tensor<2>;

    /// Size of the vocabulary: logits per token.
    fn vocabulary(&self) -> usize;

    /// Device of the model.
    fn device(&self) -> Device;

    /// Device of the embeddings, where [`embed`](Self::embed) takes tokens.
    fn embedding_device(&self) -> Device {
        self.device().inner()
    }

    /// Returns `true` if the layers draw random numbers in training: by default, if an adapter has
    /// dropout. A model with dropout of its own returns `true`.
    fn is_random(&self) -> bool {
        self.adapter_configs().values().any(|method| method.dropout() > 0.0)
    }

    /// Settings that the computation depends on beside parameters and adapters, such as an epsilon
    /// or the dtype. They must be the same when a run is resumed.
    fn settings(&self) -> Value {
        Value::Null
    }

    /// Saves the trained adapters for other programs, in PEFT's format: a single adapter into the
    /// folder itself, several into subfolders of their names. A checkpoint stores all trained
    /// parameters beside it.
    ///
    /// # Errors
    /// [`TrainError::Adapter`], as [`save_adapter`](AdaptableExt::save_adapter).
    fn save_trained(&self, folder: &Path) -> Result<(), TrainError> {
        let names = self.adapter_names();
        for name in &names {
            let folder = if names.len() == 1 { folder.to_owned() } else { folder.join(name) };
            self.save_adapter(name, folder)?;
        }
        Ok(())
    }
}

impl CausalLm for SequenceClassifier {
    type Context = Context;

    fn context(&self, segments: &Segments) -> Context {
        self.llama.context(segments)
    }

    fn embed(&self, tokens: Tensor<2, Int>, context: &Context) -> Tensor<3> {
        self.llama.embed(tokens, context)
    }

    fn depth(&self) -> usize {
        CausalLm::depth(&self.llama)
    }

    fn layer(&self, index: usize, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        CausalLm::layer(&self.llama, index, hidden, context)
    }

    fn head(&self, hidden: Tensor<2>, context: &Context) -> Tensor<2> {
        CausalLm::head(&self.llama, hidden, context)
    }

    fn vocabulary(&self) -> usize {
        CausalLm::vocabulary(&self.llama)
    }

    fn device(&self) -> Device {
        self.llama.device()
    }

    fn embedding_device(&self) -> Device {
        self.llama.embedding_device()
    }

    fn settings(&self) -> Value {
        CausalLm::settings(&self.llama)
    }
}

impl CausalLm for Llama {
    type Context = Context;

    fn context(&self, segments: &Segments) -> Context {
        Llama::context(self, segments)
    }

    fn embed(&self, tokens: Tensor<2, Int>, context: &Context) -> Tensor<3> {
        Llama::embed(self, tokens, context)
    }

    fn depth(&self) -> usize {
        self.model.layers.len()
    }

    fn layer(&self, index: usize, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        self.model.layers[index].forward(hidden, context, None)
    }

    fn head(&self, hidden: Tensor<2>, context: &Context) -> Tensor<2> {
        self.logits(self.model.norm.forward(hidden, context), context)
    }

    fn vocabulary(&self) -> usize {
        self.config.vocab_size
    }

    fn device(&self) -> Device {
        Llama::device(self)
    }

    fn embedding_device(&self) -> Device {
        Llama::embedding_device(self)
    }

    fn settings(&self) -> Value {
        // Fields of the file that this library does not read do not matter.
        let config = LlamaConfig { raw: Value::Null, ..self.config.clone() };
        json!({ "dtype": format!("{:?}", self.dtype), "config": format!("{config:?}") })
    }
}
