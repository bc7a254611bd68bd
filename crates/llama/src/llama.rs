//! The model.

use crate::{
    cache::KvCache,
    config::LlamaConfig,
    context::{Context, Segments, Tables},
    layers::Decoder,
};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Int, Tensor},
};
use burn_lora_adapter::{AdaptedLinear, adaptable};

/// A causal language model of the Llama stack, every linear layer of which can carry adapters under
/// its Hugging Face path (`model.layers.0.self_attn.q_proj`).
///
/// ```no_run
/// use burn::tensor::Device;
/// use burn_lora_adapter::{Adaptable, AdaptableExt, LoraConfig};
/// use burn_lora_llama::Llama;
/// use burn_lora_quant::QuantConfig;
///
/// let model = Llama::from_pretrained("models/Llama-3.1-8B")
///     .quantize(QuantConfig::nf4().double_quant(true))
///     .load(&Device::default())?
///     .with_adapter(&LoraConfig::new(32, 64).targets(["q_proj", "v_proj"]))?;
/// println!("{}", model.summary());
/// # Ok::<_, burn_lora_llama::LlamaError>(())
/// ```
#[derive(Module, Debug)]
pub struct Llama {
    /// Embedding, layers and the last norm.
    pub model: Decoder,
    /// The output head, `[vocabulary, hidden]`. When it is tied, its weight is the embedding's: the
    /// same parameter and the same memory.
    pub lm_head: AdaptedLinear,
    /// The shape and the settings.
    #[module(skip)]
    pub config: LlamaConfig,
    /// The dtype that activations are computed in.
    #[module(skip)]
    pub dtype: FloatDType,
    #[module(skip)]
    pub(crate) tables: Tables,
}
adaptable!(Llama { model, lm_head });

impl Llama {
    /// The logits of each token's successor.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, vocabulary]`, in the dtype of the model
    ///
    /// # Panics
    /// If `segments` is of another shape than `tokens`; on a CPU also if a token is not in the
    /// vocabulary. A GPU gives NaN for such a token, so that nothing waits for it.
    pub fn forward(&self, tokens: Tensor<2, Int>, segments: &Segments) -> Tensor<3> {
        let (hidden, context) = self.run(tokens, segments);
        self.head(hidden, &context)
    }

    /// The state of each token after the last norm, which [`head`](Self::head) makes logits of.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, hidden]`
    ///
    /// # Panics
    /// If `segments` is of another shape than `tokens`.
    pub fn hidden(&self, tokens: Tensor<2, Int>, segments: &Segments) -> Tensor<3> {
        self.run(tokens, segments).0
    }

    /// The state of each token, and what the layers needed to know.
    fn run(&self, tokens: Tensor<2, Int>, segments: &Segments) -> (Tensor<3>, Context) {
        assert_eq!(tokens.dims(), segments.dims(), "the segments of tokens");
        let context = self.context(segments);
        let mut h = self.embed(tokens, &context);
        for layer in &self.model.layers {
            h = layer.forward(h, &context, None);
        }
        (self.model.norm.forward(h, &context), context)
    }

    /// What the layers need to know of a batch.
    pub fn context(&self, segments: &Segments) -> Context {
        let device = self.device();
        let table = self.tables.get(&self.config.rope, segments, &device);
        segments.context(segments.dims()[1], table, &device)
    }

    /// The embeddings of tokens, in the dtype that the layers compute in.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, hidden]`
    pub fn embed(&self, tokens: Tensor<2, Int>, context: &Context) -> Tensor<3> {
        let tokens = tokens.to_device(&self.embedding_device());
        let hidden = self.model.embed_tokens.forward_with(tokens, context.adapters());
        // A graph does not reach over from another device for nothing.
        let hidden = if hidden.is_tracked() { hidden } else { hidden.inner() };
        hidden.cast(self.dtype).to_device(&self.device().inner())
    }

    /// The logits of states after the last norm.
    ///
    /// # Shapes
    /// - hidden: `[batch, sequence, hidden]`
    /// - output: `[batch, sequence, vocabulary]`
    pub fn head(&self, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        self.lm_head.forward_with(hidden, context.adapters())
    }

    /// The logits of each row's next token, given the keys and values of the tokens before; those of
    /// the new tokens are added to the cache.
    ///
    /// # Shapes
    /// - tokens: `[batch, new]`
    /// - segments: of all tokens so far, `[batch, before + new]`
    /// - output: `[batch, vocabulary]`
    ///
    /// # Panics
    /// If the shapes do not fit, or the cache is full.
    pub fn step(
        &self,
        tokens: Tensor<2, Int>,
        segments: &Segments,
        cache: &mut KvCache,
    ) -> Tensor<2> {
        let [batch, count] = tokens.dims();
        assert!(count > 0, "a step of no tokens");
        assert_eq!(segments.dims(), [batch, cache.length() + count], "the segments of all tokens");
        let (found, layers) = (cache.layers(), self.model.layers.len());
        assert_eq!(found, layers, "the layers of the cache and of the model");
        let device = self.device();
        let table = self.tables.get(&self.config.rope, segments, &device);
        let context = segments.context(count, table, &device);
        let mut h = self.embed(tokens, &context);
        for (index, layer) in self.model.layers.iter().enumerate() {
            h = layer.forward(h, &context, Some(cache.layer(index)));
        }
        let last = h.narrow(1, count - 1, 1);
        self.head(self.model.norm.forward(last, &context), &context).squeeze_dim::<2>(1)
    }

    /// The device that the model is on.
    pub fn device(&self) -> Device {
        self.model.norm.weight.weight.lazy_device()
    }

    /// The device of the embeddings: the model's, or the host ([`Loader::host_embeddings`]).
    pub fn embedding_device(&self) -> Device {
        self.model.embed_tokens.weight.lazy_device().inner()
    }
}
