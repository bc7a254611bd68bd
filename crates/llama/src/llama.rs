//! The Llama model.

use crate::{
    cache::LayerCache,
    causal_lm::{CausalLm, Generate, Kept, Rerun},
    config::LlamaConfig,
    context::{Context, Segments, Tables},
    error::LlamaError,
    layers::{Decoder, Parameters, Recorder, TensorSpec},
    rope::RopeConfig,
};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Gradients, Int, Tensor},
};
use burn_lora_adapter::{AdaptedLinear, Base};
use burn_lora_kernels::upload;
use half::{bf16, f16};
use serde_json::{Value, json};

/// Causal language model: a decoder of any family, built from the specification in its
/// configuration. Every linear layer can carry adapters, under its Hugging Face path
/// (`model.layers.0.self_attn.q_proj`).
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
    /// Embedding, decoder layers and final norm.
    pub model: Decoder,
    /// Output head, `[vocabulary, hidden]`. With tied embeddings, its weight is the embedding's:
    /// the same parameter and the same memory.
    pub lm_head: AdaptedLinear,
    /// Shape and settings.
    #[module(skip)]
    pub config: LlamaConfig,
    /// Dtype of the activations.
    #[module(skip)]
    pub dtype: FloatDType,
    #[module(skip)]
    pub(crate) tables: Tables,
}

/// Head of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Head {
    /// Output head: the logits of the next token.
    Output,
    /// Classification head, `score`: of sequences without a bias, of tokens with one.
    Classes { count: usize, bias: bool },
}

impl Llama {
    /// Builds a model.
    pub(crate) fn build(
        from: &dyn Parameters,
        config: &LlamaConfig,
        head: Head,
        dtype: FloatDType,
    ) -> Result<Self, LlamaError> {
        let model = Decoder::build(from, "model", config)?;
        let hidden = config.hidden_size;
        let lm_head = match head {
            Head::Classes { count, bias } => from.dense("score", [count, hidden], bias)?,
            // The same parameter, and so the same memory.
            Head::Output if config.tie_word_embeddings => {
                AdaptedLinear::new(Base::from_params(model.embed_tokens.weight.clone(), None))
            }
            Head::Output => from.dense("lm_head", [config.vocab_size, hidden], false)?,
        };
        Ok(Self { model, lm_head, config: config.clone(), dtype, tables: Tables::default() })
    }

    /// Creates a model of which only the shapes may be used: its parameters have no memory.
    ///
    /// ```
    /// use burn_lora_adapter::Adaptable;
    /// use burn_lora_llama::{Llama, LlamaConfig};
    ///
    /// let config = LlamaConfig::from_file("../../testdata/gqa/config.json")?;
    /// let shapes = Llama::shapes(&config);
    /// let (path, layer) = &shapes.layers()[0];
    /// assert_eq!((path.as_str(), layer.shape()), ("model.embed_tokens", [64, 128]));
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    pub fn shapes(config: &LlamaConfig) -> Self {
        let recorder = Recorder::default();
        Self::build(&recorder, config, Head::Output, FloatDType::F32).expect("nothing is read")
    }

    /// Returns the logits of the next token at each position.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, vocabulary]`, in the dtype of the model
    ///
    /// # Panics
    /// If `segments` and `tokens` differ in shape; on a CPU also if a token is not in the
    /// vocabulary. A GPU returns NaN for such a token, so that nothing waits for a check.
    pub fn forward(&self, tokens: Tensor<2, Int>, segments: &Segments) -> Tensor<3> {
        let (hidden, context) = self.run(tokens, segments);
        self.head(hidden, &context)
    }

    /// Returns the hidden state of each token after the final norm: the input of
    /// [`head`](Self::head).
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, hidden]`
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn hidden(&self, tokens: Tensor<2, Int>, segments: &Segments) -> Tensor<3> {
        self.run(tokens, segments).0
    }

    /// Returns the hidden state of each token, and the context of the batch.
    fn run(&self, tokens: Tensor<2, Int>, segments: &Segments) -> (Tensor<3>, Context) {
        assert_eq!(tokens.dims(), segments.dims(), "the segments of tokens");
        let context = self.context(segments);
        let mut h = self.embed(tokens, &context);
        for layer in &self.model.layers {
            h = layer.forward(h, &context, None);
        }
        (self.model.norm.forward(h, &context), context)
    }

    /// Builds the context of a batch, which all layers share.
    ///
    /// # Panics
    /// If samples [share](Segments::sharing) tokens, and a layer has a window: it would count what lies between.
    pub fn context(&self, segments: &Segments) -> Context {
        let fits = !segments.is_shared() || self.config.shares_prompts();
        assert!(fits, "samples cannot share tokens in layers with a window");
        self.context_of_last(segments, segments.dims()[1])
    }

    /// Returns the embeddings of tokens, in the dtype of the activations.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, hidden]`
    pub fn embed(&self, tokens: Tensor<2, Int>, context: &Context) -> Tensor<3> {
        let tokens = tokens.to_device(&self.embedding_device());
        let hidden = self.model.embed_tokens.forward_with(tokens, context.adapters());
        let device = self.device().inner();
        // No autodiff graph across devices, unless the embeddings need gradients.
        let hidden = match hidden.is_tracked() {
            true => hidden.cast(self.dtype).to_device(&device),
            false if hidden.device().inner() == device => hidden.inner().cast(self.dtype),
            false => upload(hidden.inner().cast(self.dtype).into_data(), &device),
        };
        match self.config.embedding_multiplier {
            1.0 => hidden,
            // As in transformers, in the dtype of the model.
            factor => hidden * rounded(factor as f32, self.dtype),
        }
    }

    /// Returns the logits of hidden states after the final norm.
    ///
    /// # Shapes
    /// - hidden: `[.., hidden]`
    /// - output: `[.., vocabulary]`
    pub fn head<const D: usize>(&self, hidden: Tensor<D>, context: &Context) -> Tensor<D> {
        let logits = self.lm_head.forward_with(hidden, context.adapters());
        let logits = match self.config.logits_scaling {
            1.0 => logits,
            divisor => logits / divisor,
        };
        match self.config.final_logit_softcapping {
            None => logits,
            Some(cap) => (logits / cap).tanh() * cap,
        }
    }

    /// Device of the model.
    pub fn device(&self) -> Device {
        self.model.norm.weight.weight.lazy_device()
    }

    /// Device of the embeddings: the model's, or the host
    /// ([`host_embeddings`](crate::Loader::host_embeddings)).
    pub fn embedding_device(&self) -> Device {
        self.model.embed_tokens.weight.lazy_device().inner()
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

    fn shares_prompts(&self) -> bool {
        self.config.shares_prompts()
    }

    fn layer(&self, index: usize, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        self.model.layers[index].forward(hidden, context, None)
    }

    fn keeps(&self, index: usize, context: &Context) -> bool {
        self.model.layers[index].keeps(context)
    }

    fn layer_once(
        &self,
        index: usize,
        hidden: Tensor<3>,
        context: &Context,
        how: Rerun,
    ) -> (Tensor<3>, Kept) {
        self.model.layers[index].forward_once(hidden, context, how)
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
        self.model.layers[index].pull_back(hidden, context, grad, kept, how, found)
    }

    fn head(&self, hidden: Tensor<2>, context: &Context) -> Tensor<2> {
        Llama::head(self, self.model.norm.forward(hidden, context), context)
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

impl Generate for Llama {
    fn context_of_last(&self, segments: &Segments, count: usize) -> Context {
        let device = self.device();
        let tables = self.tables.get(&self.config.ropes, segments, &device);
        Context { tables, ..segments.context(count, &device) }
    }

    fn cached_layer(
        &self,
        index: usize,
        hidden: Tensor<3>,
        context: &Context,
        cache: &mut LayerCache,
    ) -> Tensor<3> {
        self.model.layers[index].forward(hidden, context, Some(cache))
    }

    fn eos_token_ids(&self) -> Vec<u32> {
        self.config.eos_token_ids()
    }

    fn bos_token_id(&self) -> Option<u32> {
        self.config.raw["bos_token_id"].as_u64().and_then(|id| id.try_into().ok())
    }

    fn is_recordable(&self, length: usize) -> bool {
        // Experts read back which of them tokens are for, and frequencies that grow with the length are new each time.
        let experts = self.model.layers.iter().any(|layer| layer.experts.is_some());
        let same = |rope: &RopeConfig| rope.length(length) == rope.length(0);
        let on_device = self.embedding_device() == self.device().inner();
        !experts && on_device && self.config.ropes.iter().all(same)
    }

    fn outdates_cache(&self, before: usize, length: usize) -> bool {
        self.config.ropes.iter().any(|rope| rope.outdates_keys(before, length))
    }
}

/// Rounds a number to a dtype.
fn rounded(number: f32, dtype: FloatDType) -> f32 {
    match dtype {
        FloatDType::BF16 => bf16::from_f32(number).to_f32(),
        FloatDType::F16 => f16::from_f32(number).to_f32(),
        _ => number,
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
    /// assert_eq!(tensors[0].name, "model.embed_tokens.weight");
    /// assert_eq!(tensors[0].shape, [config.vocab_size, config.hidden_size]);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let recorder = Recorder::default();
        Llama::build(&recorder, self, Head::Output, FloatDType::F32).expect("nothing is read");
        recorder.into_tensors()
    }
}
