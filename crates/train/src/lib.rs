//! Fine-tuning of language models over Burn: data, loss, recomputation, optimizers, the training loop.
//!
//! | what | where |
//! |---|---|
//! | the settings of a run | [`TrainConfig`], [`BatchConfig`], [`EarlyStopping`], [`Every`] |
//! | the run | [`Trainer`], [`Report`] |
//! | from files to batches | [`data`], [`Dataset`] |
//! | what is minimized, and a loss of one's own | [`Objective`] |
//! | a model that can be trained | [`CausalLm`], implemented for [`Llama`](burn_lora_llama::Llama) |
//! | which layers are run again to save memory | [`Recompute`] |
//! | what memory a run will take | [`MemoryPlan`], [`plan`] |
//! | how parameters are changed | [`Optimizer`], [`optim`] |
//! | how the learning rate moves | [`Schedule`], [`Warmup`], [`schedule`] |
//! | progress, metrics, pictures | [`Observer`], [`Progress`], [`watch`] |
//! | loss on other data | [`evaluate`] |
//! | stopping from outside | [`Interrupt`] |
//! | what can go wrong | [`TrainError`] |
//!
//! # A run
//!
//! ```
//! use burn::tensor::Device;
//! use burn_lora_adapter::{Adaptable, AdaptableExt, LoraConfig};
//! use burn_lora_llama::Llama;
//! use burn_lora_quant::QuantConfig;
//! use burn_lora_train::{Dataset, TrainConfig, Trainer, data::Sample};
//!
//! // A very small Llama with random weights, its linear layers in 4 bits.
//! let mut model = Llama::from_pretrained("../../testdata/gqa")
//!     .quantize(QuantConfig::nf4().double_quant(true))
//!     .load(&Device::default())?
//!     .with_adapter(&LoraConfig::new(4, 8).all_linear())?;
//!
//! let sample = Sample { ids: (1..20).collect(), trained: vec![true; 19] };
//! let data = Dataset::from_samples(vec![sample; 4])?; // or `Dataset::from_files`
//!
//! let config = TrainConfig::new(1e-2).epochs(5); // 20 steps, a line of the log for each ten
//! let report = Trainer::new(config).fit(&mut model, &data, None)?;
//! assert!(report.log[1].loss < report.log[0].loss);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a step is
//!
//! An optimizer step takes some micro-batches. Each runs forward and backward, one stretch of layers
//! after the other ([`Recompute`]), head and loss on some tokens at a time, and adds the gradients of
//! the *sum* of its token losses to those of the others. Then they are divided by the target tokens of
//! all, clipped by their norm, and given to the optimizer. Nothing is read from the device before a
//! line of the log is due.
//!
//! With an output folder a run writes checkpoints, and goes on from the last one as if it had not been
//! stopped ([`Trainer::resume`]).

mod checkpoint;
mod config;
pub mod data;
mod error;
mod evaluate;
mod identity;
mod interrupt;
mod model;
pub mod objective;
pub mod optim;
mod output;
mod params;
pub mod plan;
mod recompute;
mod replica;
mod run;
pub mod schedule;
mod setup;
mod step;
mod team;
mod trainer;
pub mod watch;

pub use config::{EarlyStopping, Every, TrainConfig};
pub use data::{BatchConfig, Dataset};
pub use error::TrainError;
pub use evaluate::{evaluate, evaluate_with};
pub use interrupt::Interrupt;
pub use model::CausalLm;
pub use objective::Objective;
pub use optim::Optimizer;
pub use plan::MemoryPlan;
pub use recompute::Recompute;
pub use schedule::{Schedule, Warmup};
pub use trainer::{Report, Trainer};
pub use watch::{Observer, Progress};
