//! Text of language models: tokenizers, chat templates, and which tokens of a chat are the assistant's.
//! All of it runs on the host, without Burn.
//!
//! | what | where |
//! |---|---|
//! | text as tokens, and back | [`Tokenizer`] |
//! | tokens that come one by one | [`DecodeStream`] |
//! | a conversation | [`Message`], [`ChatValue`], [`ChatMap`] |
//! | a conversation as text | [`Tokenizer::apply_chat_template`], [`ChatTemplate`], [`ChatOptions`] |
//! | a conversation as tokens, and whose they are | [`Tokenizer::encode_chat`], [`EncodedChat`] |
//! | tokenizers by their model's id | [`Tokenizer::from_pretrained`], feature `hub` |

mod bounds;
mod chat;
mod check;
mod decode;
mod ends;
mod error;
mod files;
mod gguf;
mod jinja;
mod special;
mod template;
mod tokenizer;
mod turns;
mod value;

pub use chat::{ChatOptions, Message};
pub use decode::DecodeStream;
pub use error::TextError;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
pub use turns::EncodedChat;
pub use value::{ChatMap, ChatValue};
