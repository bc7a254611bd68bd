//! Fine-tuning of language models over Burn: data, loss, recomputation, optimizers, the training loop.

mod checkpoint;
mod config;
pub mod data;
mod error;
mod evaluate;
mod interrupt;
mod model;
pub mod optim;
mod params;
mod recompute;
mod replica;
pub mod schedule;
mod step;
mod trainer;
pub mod watch;

pub use config::{EarlyStopping, Every, TrainConfig};
pub use data::{BatchConfig, Dataset};
pub use error::TrainError;
pub use evaluate::evaluate;
pub use interrupt::Interrupt;
pub use model::CausalLm;
pub use optim::Optimizer;
pub use recompute::Recompute;
pub use schedule::{Schedule, Warmup};
pub use trainer::{Report, Trainer};
pub use watch::{Observer, Progress};
