//! Models in GGUF files, read and written; the container is that of [`burn_lora_io::gguf`].

mod adapter;
mod config;
mod dequantize;
mod keys;
mod metadata;
mod model;
mod quantize;
mod write;

pub(crate) use config::{LONG_DIVISORS, SHORT_DIVISORS};
pub use keys::GgufKeys;
pub(crate) use model::GgufModel;
pub use write::GgufType;
