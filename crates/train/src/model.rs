//! What the trainer asks of a model.

use crate::TrainError;
use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use burn_lora_adapter::{Adaptable, AdaptableExt};
use burn_lora_llama::{Context, Llama, LlamaConfig, Segments, SequenceClassifier};
use serde_json::{Value, json};
use std::path::Path;

/// A decoder that can be trained: embedding, layers one after the other, head.
///
/// The three are apart so that the trainer can keep only what goes into each layer and run it again
/// in the backward pass, and so that it can run the head on a few tokens at a time. Dropout in a
/// layer has to come from Burn's generator, which the trainer sets to the same state both times.
///
/// Implemented for [`Llama`]; `docs/your-own-model.md` has one of a user's own.
pub trait CausalLm: Module + Adaptable + 'static {
    /// What the layers need to know of a batch: positions, masks.
    type Context;

    /// Made once a batch.
    fn context(&self, segments: &Segments) -> Self::Context;

    /// The embeddings of tokens.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, hidden]`
    fn embed(&self, tokens: Tensor<2, Int>, context: &Self::Context) -> Tensor<3>;

    /// The number of layers.
    fn depth(&self) -> usize;

    /// One layer.
    ///
    /// # Shapes
    /// - hidden, output: `[batch, sequence, hidden]`
    fn layer(&self, index: usize, hidden: Tensor<3>, context: &Self::Context) -> Tensor<3>;

    /// The logits of tokens after the last layer: the last norm and the output head.
    ///
    /// # Shapes
    /// - hidden: `[tokens, hidden]`
    /// - output: `[tokens, vocabulary]`
    fn head(&self, hidden: Tensor<2>, context: &Self::Context) -> Tensor<2>;

    /// Logits a token.
    fn vocabulary(&self) -> usize;

    /// Where the model is.
    fn device(&self) -> Device;

    /// Where [`embed`](Self::embed) takes tokens: where the embeddings are.
    fn embedding_device(&self) -> Device {
        self.device().inner()
    }

    /// Whether the layers draw random numbers while they are trained: adapters with dropout. A model
    /// with dropout of its own says `true`.
    fn is_random(&self) -> bool {
        self.adapter_configs().values().any(|config| config.has_dropout())
    }

    /// What its computation depends on beside parameters and adapters, such as an epsilon or the
    /// dtype: a run that is resumed has to find the same.
    fn settings(&self) -> Value {
        Value::Null
    }

    /// Writes what was trained for others to load: the adapters in PEFT's files, one that is alone
    /// into the folder, several into folders of their names. A checkpoint has all trained parameters
    /// beside it.
    ///
    /// # Errors
    /// What [`save_adapter`](AdaptableExt::save_adapter) says.
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
        self.lm_head.forward_with(self.model.norm.forward(hidden, context), context.adapters())
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
        // What this library does not read of the file does not matter.
        let config = LlamaConfig { raw: Value::Null, ..self.config.clone() };
        json!({ "dtype": format!("{:?}", self.dtype), "config": format!("{config:?}") })
    }
}
