//! The tests of this crate, in one program.

mod added;
mod chat;
mod common;
mod gguf;
mod hostile;
mod jinja;
mod masks;
mod real;
mod sentencepiece;
mod to_gguf;
mod tokenizer;
