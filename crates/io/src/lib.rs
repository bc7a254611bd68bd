//! What the crates of `burn-lora` share on the way in and out. Nothing here knows of tensors.
//!
//! | what | where |
//! |---|---|
//! | warnings that reach the user | [`warn!`], [`collect`] |
//! | files, read only if they are files | [`open`], [`read`], [`read_to_string`] |
//! | files, written whole or not at all | [`replace`], [`replace_with`] |
//! | text of others without its control characters | [`escaped`], [`listed`], [`brief`] |
//! | panics of libraries, as errors | [`caught`] |
//! | models by their id | [`hub`] |
//! | which safetensors a model has | [`shards`] |
//! | llama.cpp's files: metadata, and where tensors lie | [`gguf`] |

mod error;
mod escape;
mod file;
pub mod gguf;
pub mod hub;
mod panic;
pub mod shards;
mod warning;

pub use error::FileError;
pub use escape::{Escaped, brief, escaped, escaped_lines, listed};
pub use file::{open, read, read_to_string, replace, replace_with};
pub use panic::{caught, panic_text};
pub use warning::{collect, report};
