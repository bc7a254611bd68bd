//! Fine-tuning of language models over Burn: data, loss, recomputation, optimizers, the training loop.

pub mod data;
mod error;
pub mod schedule;
pub mod watch;

pub use error::TrainError;
