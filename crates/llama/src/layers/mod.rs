//! Modules of a decoder, under the names of Hugging Face's checkpoints, each built from its
//! specification.

mod attention;
mod cost;
mod decoder;
mod experts;
mod mlp;
mod norm;
mod parameters;

pub use attention::Attention;
pub use cost::{LinearCosts, TokenCost};
pub use decoder::{Decoder, DecoderLayer};
pub use experts::SparseExperts;
pub use mlp::Mlp;
pub use norm::RmsNorm;
pub use parameters::TensorSpec;
pub(crate) use parameters::{Parameters, Recorder};
