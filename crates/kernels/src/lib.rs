//! Operations for training language models that Burn has not, or has slower: one folder each.
//!
//! | what | where |
//! |---|---|
//! | the one matrix product | [`Gemm`] |
//! | causal attention | [`attention()`] |
//! | RMSNorm, rotary positions, SwiGLU | [`rms_norm`], [`rotate`], [`swiglu`] |
//! | cross-entropy with its gradient | [`cross_entropy()`] |
//! | a backward pass from a given gradient | [`pull_back()`] |
//! | the update of a parameter, the norm of gradients | [`optimizer`] |
//! | bitsandbytes' 8-bit numbers | [`dynamic`] |
//!
//! A folder has the operation on tensors, where shapes are checked, and a Burn backend extension for it
//! (such as [`GemmOps`]), which is implemented for the CPU (`flex`), for every CubeCL runtime (`cube`), lazily
//! for fusion (generated) and differentiably for autodiff (`autodiff`).
//!
//! # Devices
//!
//! A `Device` value chooses the backend at run time; the features `cpu`, `wgpu`, `vulkan`, `metal`
//! and `cuda` say which are compiled in, `fusion` whether Burn fuses elementwise operations.

mod attention;
mod cross_entropy;
#[cfg(feature = "cubecl")]
pub mod cube;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dynamic;
#[cfg(feature = "cpu")]
pub mod flex;
mod gated;
mod gemm;
mod norm;
pub mod optimizer;
mod pull_back;
mod rotary;

pub use attention::{AttentionOps, AttentionSpec, attention, attention_is_fused, attention_scores};
pub use cross_entropy::{CrossEntropy, CrossEntropyOps, cross_entropy};
pub use gated::{GatedOps, swiglu};
pub use gemm::{Gemm, GemmOps};
pub use norm::{NormOps, rms_norm};
pub use pull_back::{PullBackOps, pull_back};
pub use rotary::{RotaryOps, rotate};
