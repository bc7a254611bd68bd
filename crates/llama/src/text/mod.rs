//! Text: tokenizers, chat templates, and which tokens of a chat are the assistant's.

mod bounds;
mod chat;
mod check;
mod decode;
mod ends;
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
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
pub use turns::EncodedChat;
pub use value::{ChatMap, ChatValue};
