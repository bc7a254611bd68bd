//! Fine-tuning of language models over Burn: data, loss, recomputation, optimizers, the training
//! loop.
//!
//! | what | where |
//! |---|---|
//! | whole run as a file: model, adapter, data, training | [`RunConfig`] |
//! | devices by name | [`Place`] |
//! | settings of the training | [`TrainConfig`], [`BatchConfig`], [`EarlyStopping`], [`Every`] |
//! | training run | [`Trainer`], [`Report`] |
//! | from files to batches | [`data`], [`Dataset`] |
//! | training objective, built in or your own | [`Objective`] |
//! | trainable model | [`CausalLm`], implemented for [`Llama`](burn_lora_llama::Llama) |
//! | layers recomputed to save memory | [`Recompute`] |
//! | memory estimate of a run | [`MemoryPlan`], [`plan`] |
//! | parameter updates | [`OptimizerConfig`], [`optim`] |
//! | learning rate schedule | [`Schedule`], [`Warmup`], [`schedule`] |
//! | progress, metrics, plots, a report | [`Observer`], [`Progress`], [`watch`] |
//! | loss on other data | [`evaluate`] |
//! | several runs that differ in some settings | [`sweep`] |
//! | stopping from outside | [`Interrupt`] |
//! | errors | [`TrainError`] |
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
//! let sample = Sample { ids: (1..20).collect(), loss_mask: vec![true; 19] };
//! let data = Dataset::from_samples(vec![sample; 4])?; // or `Dataset::from_files`
//!
//! let config = TrainConfig::new(1e-2).epochs(5); // 20 steps, a line of the log for each ten
//! let report = Trainer::new(config).fit(&mut model, &data, None)?;
//! assert!(report.log[1].loss < report.log[0].loss);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # Optimizer step
//!
//! An optimizer step takes one or more micro-batches. Each runs forward and backward, one segment
//! of layers after the other ([`Recompute`]), with head and loss on some tokens at a time, and adds
//! the gradients of the *sum* of its token losses to those of the others. The gradients are then
//! divided by the number of target tokens in all micro-batches, clipped by their norm, and passed
//! to the optimizer. Nothing is read from the device before a line of the log is due.
//!
//! With an output folder, a run writes checkpoints, and resumes from the last one as if it had not
//! been stopped ([`Trainer::resume`]).

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod card;
mod checkpoint;
mod config;
mod course;
pub mod data;
mod error;
mod evaluate;
mod files;
mod identity;
mod interrupt;
pub mod metric;
pub mod objective;
pub mod optim;
mod output;
mod params;
mod place;
pub mod plan;
mod push;
mod recompute;
mod reference;
mod replica;
mod run;
mod run_config;
pub mod schedule;
mod setup;
mod step;
pub mod sweep;
mod team;
mod trainer;
pub mod watch;

pub use burn_lora_llama::{CausalLm, Keep};
pub use card::model_card;
pub use config::{EarlyStopping, Every, TrainConfig};
pub use data::{BatchConfig, Dataset};
pub use error::TrainError;
pub use evaluate::{evaluate, evaluate_with};
pub use interrupt::Interrupt;
pub use metric::{Answers, Goal, Metric, Validation};
pub use objective::Objective;
pub use optim::OptimizerConfig;
pub use place::Place;
pub use plan::MemoryPlan;
#[cfg(feature = "hub")]
pub use push::{Pushed, push};
pub use recompute::Recompute;
pub use reference::{prepare, reference_log_probs};
pub use run_config::{
    ClassesConfig, Compute, DataConfig, HubConfig, LabelsConfig, MetricsConfig, ModelConfig,
    ObjectiveConfig, Precision, RewardConfig, RunConfig, RunData, RunModel, TargetsConfig,
    TeacherConfig, TokensConfig, TrainTokens,
};
pub use schedule::{Schedule, Warmup};
pub use sweep::Sweep;
pub use trainer::{Report, Trainer};
pub use watch::{Observer, Progress};
