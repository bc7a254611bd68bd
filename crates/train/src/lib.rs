//! Fine-tuning of language models over Burn: data, loss, recomputation, optimizers, the training loop.

pub mod data;
mod error;
mod model;
pub mod optim;
mod params;
mod recompute;
mod step;
pub mod watch;

pub use error::TrainError;
pub use model::CausalLm;
pub use optim::Optimizer;
pub use recompute::Recompute;
