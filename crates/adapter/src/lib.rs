//! LoRA over any linear layer of a Burn model, with PEFT's behaviour and PEFT's file format.
//!
//! | what | where |
//! |---|---|
//! | settings | [`LoraConfig`], [`Init`] |
//! | the plan for given layers, before there is a model | [`LoraConfig::plan`], [`LayerPlan`] |
//! | layers that carry adapters | [`AdaptedLinear`], [`AdaptedEmbedding`], [`AdaptedVector`] |
//! | a model with such layers, and its operations | [`Adaptable`], [`adaptable!`]; [`AdaptableExt`] |
//! | choice of the active adapters | [`Selection`], [`ActiveAdapters`] |
//! | combining adapters into one | [`Combine`] |
//! | merging updates into the weights | [`PackedMerge`], [`MergeReport`] |
//! | parameter counts and bytes | [`Summary`] |
//! | parameter groups for an optimizer | [`ParamGroups`] |
//! | PEFT's files | [`AdaptableExt::save_adapter`], [`AdaptableExt::load_adapter`] |
//!
//! # QLoRA on a custom model
//!
//! ```
//! use burn::{module::Module, nn::LinearConfig, tensor::{Device, Tensor, activation::gelu}};
//! use burn_lora_adapter::{AdaptableExt, AdaptedLinear, LoraConfig, adaptable};
//! use burn_lora_quant::QuantConfig;
//!
//! #[derive(Module, Debug)]
//! struct Mlp {
//!     fc1: AdaptedLinear,
//!     fc2: AdaptedLinear,
//! }
//! adaptable!(Mlp { fc1, fc2 });
//!
//! let device = Device::default();
//! let linear = |d_in, d_out| AdaptedLinear::from(LinearConfig::new(d_in, d_out).init(&device));
//! let mut mlp = Mlp { fc1: linear(64, 128), fc2: linear(128, 64) };
//! mlp.quantize_base(&QuantConfig::nf4().double_quant(true))?;
//! let mlp = mlp.with_adapter(&LoraConfig::new(8, 16).all_linear())?.train();
//! println!("{}", mlp.summary());
//!
//! let x = Tensor::<2>::ones([4, 64], &device);
//! let loss = mlp.fc2.forward(gelu(mlp.fc1.forward(x))).sum();
//! let grads = loss.backward(); // of A and B alone
//!
//! let folder = std::env::temp_dir().join("burn-lora-adapter-doc");
//! mlp.save_adapter("default", &folder)?; // Python's PEFT loads it
//! # std::fs::remove_dir_all(folder).ok();
//! # Ok::<_, burn_lora_adapter::AdapterError>(())
//! ```

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod active;
mod attach;
mod base;
mod cast;
mod checks;
mod combine;
mod config;
#[doc(hidden)]
pub mod doc;
mod embedding;
mod error;
mod frozen;
mod groups;
mod init;
mod layer;
mod layers;
mod linear;
mod lookup;
mod lora_fa;
mod merge;
mod method;
mod methods;
mod model;
mod parameters;
mod paths;
mod patterns;
mod peft;
mod reparameterize;
mod resize;
mod selection;
mod stacked;
mod summary;
mod target;
mod targets;
mod update;

pub use active::ActiveAdapters;
pub use base::Base;
pub use combine::Combine;
pub use config::{Alpha, LoraConfig};
pub use embedding::{AdaptedEmbedding, AdaptedVector};
pub use error::AdapterError;
pub use frozen::{FrozenLayer, LayerKind};
pub use groups::ParamGroups;
pub use init::{Init, eva::InputStats};
pub use layer::{AdaptedLayer, Adapters, LayerAdapter};
pub use layers::{Adaptable, Layers, LayersMut};
pub use linear::AdaptedLinear;
pub use merge::{LayerError, MergeReport, PackedMerge};
pub use method::{Method, Origin, Role, SharedTensor, Site, UpdateTensor};
pub use methods::{
    lora::LoraAdapter,
    tokens::{TrainableTokens, TrainableTokensConfig},
    vera::{VeraAdapter, VeraConfig},
    whole::SavedModule,
};
pub use model::AdaptableExt;
#[doc(hidden)]
pub use paths::join;
pub use peft::saved_method;
pub use reparameterize::{LoraReparameterizer, LoraWeight};
pub use selection::{BASE, Selection};
pub use summary::Summary;
pub use target::{Bias, TargetConfig, Targets};
pub use targets::{LayerPlan, MatchReport};
pub use update::{BoxedUpdate, LinearInput, LowRank, Replacement, TokenInput, Update};
