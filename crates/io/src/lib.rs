//! Input and output shared by the crates of `burn-lora`: files, downloads, warnings. No tensors.
//!
//! | what | where |
//! |---|---|
//! | warnings that reach the user | [`warn!`], [`collect`] |
//! | reading of regular files | [`open`], [`read`], [`read_to_string`] |
//! | atomic writing of files | [`replace`], [`replace_with`] |
//! | display of untrusted text | [`escaped`], [`pictured`], [`listed`], [`brief`] |
//! | progress of what takes long | [`progress`] |
//! | colours and bars: where they may be written | [`is_coloured`], [`is_drawn_on`] |
//! | panics of libraries, as errors | [`caught`] |
//! | models, adapters and data by their ids | [`hub`] |
//! | the base of an adapter | [`base_of`] |
//! | the weight files of a model: one, or shards with an index | [`shards`] |
//! | which tensors a weight file has | [`tensor_headers`] |
//! | tensors of PyTorch's own files | [`torch`] |
//! | GGUF, llama.cpp's files: metadata, and places of tensors | [`gguf`] |

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod base;
mod error;
mod escape;
mod file;
pub mod gguf;
mod header;
pub mod hub;
mod panic;
pub mod progress;
pub mod shards;
mod terminal;
pub mod torch;
mod warning;

pub use base::base_of;
pub use error::FileError;
pub use escape::{Escaped, brief, escaped, escaped_lines, listed, pictured};
pub use file::{open, read, read_to_string, replace, replace_with};
pub use header::{TensorHeader, tensor_headers};
pub use panic::{caught, panic_text};
pub use terminal::{is_coloured, is_drawn_on};
pub use warning::{collect, report};
