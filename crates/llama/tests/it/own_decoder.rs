//! Generation with a decoder that is none of this crate's.

use crate::common::*;
use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, LinearConfig},
    tensor::{Device, Int, Tensor},
};
use burn_lora_adapter::{
    AdaptableExt, AdaptedLinear, BASE, Init, LoraConfig, Selection, adaptable,
};
use burn_lora_kernels::{AttentionSpec, attention};
use burn_lora_llama::{
    CausalLm, Context, Generate, GenerateConfig, GenerateExt, LayerCache, LlamaError, Segments,
    Stopped, Tokenizer,
};
use std::ops::ControlFlow;

const VOCABULARY: usize = 286; // as many as the tokenizer of the tests has
const LONGEST: usize = 32;
const WIDTH: usize = 32;
const HEADS: usize = 2;
const END: u32 = 7;

/// Attention with learned positions, and nothing else.
#[derive(Module, Debug)]
struct Block {
    norm: LayerNorm,
    qkv: AdaptedLinear,
    out: AdaptedLinear,
}
adaptable!(Block { qkv, out });

#[derive(Module, Debug)]
struct Own {
    words: Embedding,
    places: Embedding,
    layers: Vec<Block>,
    lm_head: AdaptedLinear,
}
adaptable!(Own { layers, lm_head });

impl Block {
    fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let [batch, length, _] = x.dims();
        let qkv = self.qkv.forward_with(self.norm.forward(x.clone()), context.adapters());
        let [q, k, v] = [0, 1, 2].map(|part| {
            let part = qkv.clone().narrow(2, part * WIDTH, WIDTH);
            part.reshape([batch, length, HEADS, WIDTH / HEADS]).swap_dims(1, 2)
        });
        let (spans, spec) = (context.spans.clone(), AttentionSpec { scale: 0.25, window: None });
        let out = match cache {
            None => attention(q, k, v, spans, spec),
            Some(cache) => cache.attend(q, k, v, spans, spec),
        };
        let out = out.swap_dims(1, 2).reshape([batch, length, WIDTH]);
        x + self.out.forward_with(out, context.adapters())
    }
}

impl Own {
    fn new(device: &Device) -> Self {
        let linear = |inputs, outputs| {
            AdaptedLinear::from(LinearConfig::new(inputs, outputs).with_bias(false).init(device))
        };
        let block = || Block {
            norm: LayerNormConfig::new(WIDTH).init(device),
            qkv: linear(WIDTH, 3 * WIDTH),
            out: linear(WIDTH, WIDTH),
        };
        Self {
            words: EmbeddingConfig::new(VOCABULARY, WIDTH).init(device),
            places: EmbeddingConfig::new(LONGEST, WIDTH).init(device),
            layers: vec![block(), block()],
            lm_head: linear(WIDTH, VOCABULARY),
        }
    }
}

impl CausalLm for Own {
    type Context = Context;

    fn context(&self, segments: &Segments) -> Context {
        self.context_of_last(segments, segments.dims()[1])
    }

    fn embed(&self, tokens: Tensor<2, Int>, context: &Context) -> Tensor<3> {
        self.words.forward(tokens) + self.places.forward(context.positions.clone())
    }

    fn depth(&self) -> usize {
        self.layers.len()
    }

    fn layer(&self, index: usize, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        self.layers[index].forward(hidden, context, None)
    }

    fn head(&self, hidden: Tensor<2>, context: &Context) -> Tensor<2> {
        self.lm_head.forward_with(hidden, context.adapters())
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn device(&self) -> Device {
        self.words.weight.lazy_device()
    }
}

impl Generate for Own {
    fn context_of_last(&self, segments: &Segments, count: usize) -> Context {
        segments.context(count, &self.device().inner())
    }

    fn cached_layer(
        &self,
        index: usize,
        hidden: Tensor<3>,
        context: &Context,
        cache: &mut LayerCache,
    ) -> Tensor<3> {
        self.layers[index].forward(hidden, context, Some(cache))
    }

    fn eos_token_ids(&self) -> Vec<u32> {
        vec![END]
    }

    // As if the frequencies changed.
    fn outdates_cache(&self, before: usize, length: usize) -> bool {
        before < 8 && length >= 8
    }
}

fn own() -> Own {
    let device = device();
    device.seed(3);
    let lora = LoraConfig::new(4, 32).all_linear().init(Init::Random);
    Own::new(&device).with_adapter(&lora).unwrap()
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![5, 9, 33, 71, 4, 18], vec![40, 7], vec![11, 60, 61, 62]]
}

/// The likeliest tokens, each from a forward pass over all before it, up to the end of text.
fn without_cache(model: &Own, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens: Vec<i32> = prompt.iter().map(|token| *token as i32).collect();
    for _ in 0..count {
        let length = tokens.len();
        let context = model.context(&Segments::whole(1, length));
        let hidden = model.embed(int(tokens.clone(), [1, length], &device()), &context);
        let hidden = (0..model.depth()).fold(hidden, |h, index| model.layer(index, h, &context));
        let last = model.head(hidden.narrow(1, length - 1, 1).squeeze_dim::<2>(1), &context);
        let best = vec(last.argmax(1).float())[0] as i32;
        if best as u32 == END {
            break;
        }
        tokens.push(best);
    }
    tokens[prompt.len()..].iter().map(|token| *token as u32).collect()
}

#[test]
fn a_decoder_of_ones_own_generates() {
    let mut model = own();
    let go_on = |_: usize, _: u32| ControlFlow::Continue(());
    let config = GenerateConfig::new(10);
    let found = model.generate(&prompts(), &config, go_on).unwrap();
    for (prompt, found) in prompts().iter().zip(&found) {
        assert_eq!(found.tokens, without_cache(&model, prompt, 10), "{prompt:?}");
    }
    // What is beyond its vocabulary is refused.
    let error = model.generate(&[vec![VOCABULARY as u32]], &config, go_on).unwrap_err();
    assert!(matches!(error, LlamaError::Generate { field: "prompt", .. }), "{error}");

    // Adapters of a request.
    let active = model.activate(Selection::rows([BASE, "default", "default"])).unwrap();
    let mixed = model.generate(&prompts(), &config.clone().adapters(active), go_on).unwrap();
    assert_eq!(mixed[1..], found[1..]);
    model.select(Selection::base()).unwrap();
    let base = model.generate(&prompts(), &config, go_on).unwrap();
    assert_eq!(mixed[0], base[0]);
    assert_ne!(found[0], base[0]);
}

#[test]
fn a_decoder_of_ones_own_writes_text() {
    let model = own();
    let tokenizer = Tokenizer::from_pretrained(golden("tokenizer")).unwrap();
    let (_, warnings) = burn_lora_io::collect(|| model.check_tokenizer(&tokenizer));
    assert!(warnings.is_empty(), "{warnings:?}");
    let mut streamed = String::new();
    let found = model.generate_text(&tokenizer, &["Once"], &GenerateConfig::new(8), |_, text| {
        streamed += text;
        ControlFlow::Continue(())
    });
    let found = &found.unwrap()[0];
    let prompt = tokenizer.encode("Once", true).unwrap();
    let expected = without_cache(&model, &prompt, 8);
    assert!(expected.starts_with(&found.tokens) && found.stopped != Stopped::Text, "{found:?}");
    assert_eq!(streamed, found.text);
}
