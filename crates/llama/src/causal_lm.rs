//! Interfaces of models that can be trained, and of those that also generate.

use crate::{cache::LayerCache, context::Segments};
use burn::{
    module::Module,
    tensor::{Device, Gradients, Int, Tensor},
};
use burn_lora_adapter::{Adaptable, AdaptableExt, AdapterError};
use burn_lora_kernels::pull_back;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// How a layer that is run again for its backward pass saves memory or time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rerun {
    /// Tokens at a time of what is computed for each token alone; `None`: all.
    pub tile: Option<usize>,
    /// What is kept of the attention.
    pub keep: Keep,
}

/// What a layer that is run again keeps beside its input; the rest is computed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Nothing.
    #[default]
    Inputs,
    /// The attention's output and the log-sum-exps of its scores: the attention itself is not computed
    /// again, which is what long rows take most time for.
    Outputs,
    /// Also what the projections of queries, keys and values gave, and the sum of the layer's input
    /// and the attention: only the feed-forward block is computed again.
    Attention,
    /// Also what the projections of the feed-forward block gave: no product is computed again.
    All,
}

/// What a layer keeps beside its input until its backward pass, as vectors.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Of the attention.
    pub attention: Vec<Tensor<1>>,
    /// Of the feed-forward block.
    pub feed_forward: Vec<Tensor<1>>,
    /// Of low-rank updates, where they are known, the products of inputs with A, `[tokens · ranks]`: of the
    /// projections before and after the attention, and before and after the activation of an MLP.
    pub updates: Vec<Option<Tensor<1>>>,
}

/// A trainable decoder: embedding, layers one after the other, head.
///
/// The three are separate so that the trainer can keep only the input of each layer and run the
/// layer again in the backward pass, and can run the head on a few tokens at a time. Dropout in a
/// layer has to come from Burn's generator, which the trainer sets to the same state both times.
///
/// Implemented for [`Llama`](crate::Llama) and [`SequenceClassifier`](crate::SequenceClassifier);
/// `docs/your-own-model.md` shows an implementation for a model of your own. A model that also
/// generates implements [`Generate`].
pub trait CausalLm: Module + Adaptable + 'static {
    /// Data of a batch that the layers need: positions, masks. [`Context`](crate::Context) has
    /// these.
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

    /// Returns `true` if samples of a row may [share](Segments::sharing) their first tokens: by default they may not.
    fn shares_prompts(&self) -> bool {
        false
    }

    /// Returns `true` if a layer goes backward without a graph from its input to its output, and so can
    /// keep [all](Keep::All): by default none does.
    fn keeps(&self, index: usize, context: &Self::Context) -> bool {
        let _ = (index, context);
        false
    }

    /// [`layer`](Self::layer) without a graph, of a layer that is run again for its backward pass; and
    /// what is kept for that, as vectors. By default nothing is, and `how` makes no difference.
    fn layer_once(
        &self,
        index: usize,
        hidden: Tensor<3>,
        context: &Self::Context,
        how: Rerun,
    ) -> (Tensor<3>, Kept) {
        let _ = how;
        (self.layer(index, hidden, context), Kept::default())
    }

    /// Returns `pull_back(layer(index, hidden, context), grad)`
    /// ([`pull_back`](burn_lora_kernels::pull_back())): a zero, `[1]`, whose `backward()` starts from
    /// `grad` as the gradient of the layer's output. The trainer runs layers again so, whose output
    /// nobody needs: a model can leave out its last product, and what
    /// [`layer_once`](Self::layer_once) kept. `found` gets the gradients of parameters that are there
    /// before the zero goes backward.
    ///
    /// # Shapes
    /// - hidden, grad: `[batch, sequence, hidden]`
    #[allow(clippy::too_many_arguments, reason = "a layer, its input, how it is run again")]
    fn layer_pull_back(
        &self,
        index: usize,
        hidden: Tensor<3>,
        context: &Self::Context,
        grad: Tensor<3>,
        kept: Kept,
        how: Rerun,
        found: &mut dyn FnMut(Gradients),
    ) -> Tensor<1> {
        let _ = (kept, how, found);
        pull_back(self.layer(index, hidden, context), grad)
    }

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
    /// As [`save_adapter`](AdaptableExt::save_adapter).
    fn save_trained(&self, folder: &Path) -> Result<(), AdapterError> {
        let names = self.adapter_names();
        for name in &names {
            let folder = if names.len() == 1 { folder.to_owned() } else { folder.join(name) };
            self.save_adapter(name, folder)?;
        }
        Ok(())
    }
}

/// A decoder that generates: its layers take keys and values from a cache.
///
/// [`GenerateExt`](crate::GenerateExt) is what such a model can do: tokens, text, chats.
/// Implemented for [`Llama`](crate::Llama); `docs/your-own-model.md` shows an implementation for a
/// model of your own.
pub trait Generate: CausalLm {
    /// Creates the context of the last `count` tokens of each row, which see the tokens before
    /// them. [`Segments::context`] has their positions and the keys that they may see.
    fn context_of_last(&self, segments: &Segments, count: usize) -> Self::Context;

    /// Forward pass of one layer over new tokens, whose attention is that of the cache ([`LayerCache::attend`]): it stores
    /// their keys and values, and has those of the tokens before.
    ///
    /// # Shapes
    /// - hidden, output: `[batch, new, hidden]`
    fn cached_layer(
        &self,
        index: usize,
        hidden: Tensor<3>,
        context: &Self::Context,
        cache: &mut LayerCache,
    ) -> Tensor<3>;

    /// Ids of the end-of-text tokens, which end a generation.
    fn eos_token_ids(&self) -> Vec<u32> {
        vec![]
    }

    /// Id of the beginning-of-text token that the model was trained with, to check a tokenizer
    /// against.
    fn bos_token_id(&self) -> Option<u32> {
        None
    }

    /// Returns `true` if the cached keys of `before` tokens cannot be used for a text of `length`
    /// tokens, both of the longest row: the text is then run again as a whole. LongRoPE needs it
    /// once, where it changes its frequencies.
    fn outdates_cache(&self, before: usize, length: usize) -> bool {
        let _ = (before, length);
        false
    }

    /// Returns `true` if each step on rows of up to `length` tokens launches the same operations on the same memory, and reads
    /// nothing back: a GPU then replays a step that it has recorded. By default none does.
    fn is_recordable(&self, length: usize) -> bool {
        let _ = length;
        false
    }
}
