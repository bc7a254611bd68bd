//! Text processing for language models: tokenizers, chat templates, and the assistant's tokens of a
//! chat. It runs on the host, without Burn.
//!
//! | what | where |
//! |---|---|
//! | tokenization of text, and decoding | [`Tokenizer`] |
//! | new tokens | [`Tokenizer::add_tokens`], [`Tokenizer::add_special_tokens`] |
//! | streaming decoding | [`DecodeStream`] |
//! | a conversation | [`Message`], [`ChatValue`], [`ChatMap`] |
//! | a conversation as text | [`Tokenizer::apply_chat_template`], [`ChatTemplate`], [`ChatOptions`] |
//! | a conversation as tokens, the assistant's marked | [`Tokenizer::encode_chat`], [`EncodedChat`] |
//! | calls of tools in an answer | [`ToolStream`] |
//! | tokenizers by the id of a model | [`Tokenizer::from_pretrained`], feature `hub` |

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod added;
mod bounds;
mod chat;
mod check;
mod decode;
mod ends;
mod error;
mod files;
mod gguf;
mod jinja;
mod ollama;
mod pre_tokenizers;
mod sentencepiece;
mod sources;
mod special;
mod splice;
mod template;
mod to_gguf;
mod tokenizer;
mod tokenizer_model;
mod tool_calls;
mod turns;
mod value;

pub use chat::{ChatOptions, Message};
pub use decode::DecodeStream;
pub use error::TextError;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
pub use tool_calls::{ToolCall, ToolStream};
pub use turns::EncodedChat;
pub use value::{ChatMap, ChatValue};
