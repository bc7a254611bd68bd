//! GGUF as a source of models; the container is read by [`burn_lora_io::gguf`].

mod config;
mod dequantize;
mod keys;
mod model;

pub use keys::GgufKeys;
pub(crate) use model::GgufModel;
