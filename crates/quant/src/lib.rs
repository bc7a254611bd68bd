//! 4-bit float weights that stay packed, on a CPU, on CUDA and on every GPU that wgpu reaches.
#![warn(missing_docs)]

mod bitsandbytes;
pub mod codec;
mod config;
mod error;
mod format;
mod gemm;
mod layout;
mod linear;
mod ops;
mod packed;
mod scale;

pub use config::QuantConfig;
pub use error::QuantError;
pub use format::Format;
pub use gemm::Gemm;
pub use layout::Layout;
pub use linear::PackedLinear;
pub use packed::PackedWeight;
pub use scale::ScaleRule;
