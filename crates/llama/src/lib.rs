//! Llama-family models over Burn: real checkpoints, exact numbers, 4-bit weights, generation.
//!
//! | what | where |
//! |---|---|
//! | a model | [`Llama`], [`LlamaConfig`] |
//! | reading a checkpoint | [`Llama::from_pretrained`], [`Loader`] |
//! | models by their id | [`hub`] |
//! | which tokens see each other | [`Segments`] |
//! | generating tokens and text | [`Llama::generate`], [`Llama::generate_text`] |
//! | text and chats as tokens | [`Tokenizer`], [`ChatTemplate`], [`Message`] |
//! | writing a checkpoint | [`Llama::save_pretrained`] |

mod cache;
mod config;
mod context;
mod error;
mod fields;
mod generate;
mod gguf;
pub mod hub;
pub mod layers;
mod llama;
mod rope;
mod text;
mod vocabulary;
mod weights;

pub use cache::KvCache;
pub use config::{Family, LlamaConfig};
pub use context::{Context, Segments};
pub use error::LlamaError;
pub use generate::{GenerateConfig, Generated, GeneratedText, Stopped};
pub use llama::Llama;
pub use rope::{RopeConfig, RopeScaling};
pub use text::{
    ChatMap, ChatOptions, ChatTemplate, ChatValue, DecodeStream, EncodedChat, Message, Tokenizer,
};
pub use weights::{Loader, SaveOptions};
