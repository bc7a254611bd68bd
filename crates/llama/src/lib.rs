//! Llama-family models over Burn: real checkpoints, exact numbers, 4-bit weights, generation.
//!
//! | what | where |
//! |---|---|
//! | a model | [`Llama`], [`LlamaConfig`] |
//! | a family of models of one's own | [`ModelFamily`], [`spec`] |
//! | another container of checkpoints | [`Source`] |
//! | a model with a classification head | [`SequenceClassifier`] |
//! | reading a checkpoint | [`Llama::from_pretrained`], [`Loader`] |
//! | models by id | [`hub`] |
//! | samples and padding in a batch | [`Segments`] |
//! | generating tokens and text | [`GenerateExt::generate`], [`GenerateExt::generate_text`] |
//! | a decoder of one's own that trains, and one that generates | [`CausalLm`], [`Generate`] |
//! | tokenizing text and chats | [`Tokenizer`], [`ChatTemplate`], [`Message`] |
//! | writing a checkpoint | [`Llama::save_pretrained`] |

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod cache;
mod causal_lm;
mod classifier;
mod config;
mod context;
mod error;
mod families;
mod fields;
mod generate;
mod gguf;
pub mod layers;
mod llama;
mod resize;
mod rope;
pub mod spec;
mod vllm;
mod vocabulary;
mod weights;

pub use burn_lora_io::{FileError, hub};
pub use burn_lora_text::{
    ChatMap, ChatOptions, ChatTemplate, ChatValue, DecodeStream, EncodedChat, Message, TextError,
    Tokenizer,
};
pub use cache::LayerCache;
pub use causal_lm::{CausalLm, Generate, Keep, Kept, Rerun};
pub use classifier::SequenceClassifier;
pub use config::{GgufFamily, LlamaConfig, ModelFamily};
pub use context::{Context, Segments};
pub use error::LlamaError;
pub use families::ConfigDefaults;
pub use fields::ConfigFields;
pub use generate::{
    GenerateConfig, GenerateExt, Generated, GeneratedText, Generation, LogProbs, NextToken,
    Stopped, TextStream,
};
pub use gguf::{GgufKeys, GgufType};
pub use llama::Llama;
pub use rope::{RopeConfig, RopeScaling};
pub use weights::{Loader, SaveOptions, Source};
