//! Decoder with a classification head.

use crate::{
    causal_lm::{CausalLm, Kept, Rerun},
    context::{Context, Segments},
    llama::Llama,
    resize::EMBEDDING,
};
use burn::{
    module::Module,
    tensor::{Device, Gradients, Int, Tensor},
};
use burn_lora_adapter::{Adaptable, AdaptableExt, AdapterError, Layers, LayersMut, join};
use serde_json::Value;

/// Decoder of a [`Llama`] with a classification head in place of the output head: transformers'
/// `ForSequenceClassification`, or, with a bias, `ForTokenClassification`. Its paths are `model.layers.0.self_attn.q_proj` and so on, and
/// `score`.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_lora_adapter::{AdaptableExt, LoraConfig};
/// use burn_lora_llama::{Llama, Segments};
///
/// let lora = LoraConfig::new(4, 8).targets(["q_proj", "v_proj"]).modules_to_save(["score"]);
/// let model = Llama::from_pretrained("../../testdata/gqa").load_classifier(3, &Device::default())?;
/// let model = model.with_adapter(&lora.task_type("SEQ_CLS"))?;
///
/// let tokens = Tensor::<2, Int>::from_ints([[5, 6, 7]], &Device::default());
/// let logits = model.forward(tokens, &Segments::whole(1, 3)); // of each token; the last one counts
/// assert_eq!(logits.dims(), [1, 3, 3]);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct SequenceClassifier {
    /// Decoder, whose head is `score`, `[classes, hidden]`.
    pub llama: Llama,
}

impl SequenceClassifier {
    /// Returns the class logits at each token.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, classes]`
    ///
    /// # Panics
    /// As [`Llama::forward`].
    pub fn forward(&self, tokens: Tensor<2, Int>, segments: &Segments) -> Tensor<3> {
        self.llama.forward(tokens, segments)
    }

    /// Builds the context of a batch, which all layers share.
    pub fn context(&self, segments: &Segments) -> Context {
        self.llama.context(segments)
    }

    /// Number of classes.
    pub fn num_labels(&self) -> usize {
        self.llama.lm_head.base.shape()[0]
    }
}

impl Adaptable for SequenceClassifier {
    fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>) {
        self.llama.model.collect(&join(path, "model"), layers);
        self.llama.lm_head.collect(&join(path, "score"), layers);
    }

    fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>) {
        self.llama.model.collect_mut(&join(path, "model"), layers);
        self.llama.lm_head.collect_mut(&join(path, "score"), layers);
    }

    fn output_head(&self) -> &str {
        "score"
    }

    fn resize_for_adapter(&mut self, tokens: usize) -> Result<bool, AdapterError> {
        self.resize_rows(&[EMBEDDING], tokens)?;
        self.llama.config.set_vocab_size(tokens);
        Ok(true)
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

    fn shares_prompts(&self) -> bool {
        self.llama.shares_prompts()
    }

    fn layer(&self, index: usize, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        CausalLm::layer(&self.llama, index, hidden, context)
    }

    fn keeps(&self, index: usize, context: &Context) -> bool {
        self.llama.keeps(index, context)
    }

    fn layer_once(
        &self,
        index: usize,
        hidden: Tensor<3>,
        context: &Context,
        how: Rerun,
    ) -> (Tensor<3>, Kept) {
        self.llama.layer_once(index, hidden, context, how)
    }

    fn layer_pull_back(
        &self,
        index: usize,
        hidden: Tensor<3>,
        context: &Context,
        grad: Tensor<3>,
        kept: Kept,
        how: Rerun,
        found: &mut dyn FnMut(Gradients),
    ) -> Tensor<1> {
        self.llama.layer_pull_back(index, hidden, context, grad, kept, how, found)
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
