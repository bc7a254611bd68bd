//! Input and output shared by the crates of `burn-lora`: files, downloads, warnings. No tensors.
//!
//! | what | where |
//! |---|---|
//! | warnings that reach the user | [`warn!`], [`collect`] |
//! | reading of regular files | [`open`], [`read`], [`read_to_string`] |
//! | atomic writing of files | [`replace`], [`replace_with`] |
//! | display of untrusted text | [`escaped`], [`pictured`], [`listed`], [`brief`] |
//! | panics of libraries, as errors | [`caught`] |
//! | models by their ids | [`hub`] |
//! | the safetensors of a model | [`shards`] |
//! | GGUF, llama.cpp's files: metadata, and places of tensors | [`gguf`] |

mod error;
mod escape;
mod file;
pub mod gguf;
pub mod hub;
mod panic;
pub mod shards;
mod warning;

pub use error::FileError;
pub use escape::{Escaped, brief, escaped, escaped_lines, listed, pictured};
pub use file::{open, read, read_to_string, replace, replace_with};
pub use panic::{caught, panic_text};
pub use warning::{collect, report};
