//! Operations for training language models that Burn lacks or has only in a slower form: one folder
//! each.
//!
//! | what | where |
//! |---|---|
//! | matrix product | [`Gemm`] |
//! | causal attention | [`attention()`], [`attention_with_sinks`] |
//! | keys and values of generation | [`store_cached`], [`cached_attention`] |
//! | RMSNorm, rotary positions, SwiGLU and GeGLU | [`rms_norm`], [`rotate`], [`gated`] |
//! | cross-entropy with its gradient | [`cross_entropy()`] |
//! | permutation of rows | [`permute_rows`] |
//! | low-rank updates by row | [`add_row_updates`] |
//! | the largest element of each row | [`argmax_rows`] |
//! | a backward pass from given gradients | [`pull_back()`], [`pull_back_with`] |
//! | parameter update, norm of gradients | [`optimizer`] |
//! | memory of what lives long | [`persist`] |
//! | work that is recorded and replayed | [`record()`] |
//! | tensors that wait in host memory, or come from there | [`offload()`], [`upload`] |
//! | bitsandbytes' 8-bit format | [`dynamic`] |
//!
//! A folder has the operation on tensors, which checks the shapes, and a Burn backend extension
//! (such as [`GemmOps`]) that is implemented for the CPU (`flex`), for every CubeCL runtime
//! (`cube`), lazily for fusion (generated) and differentiably for autodiff (`autodiff`).
//!
//! # Devices
//!
//! A `Device` value chooses the backend at run time. The features `cpu`, `wgpu`, `vulkan`, `metal`
//! and `cuda` select the backends to compile; `fusion` lets Burn fuse elementwise operations.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod argmax;
mod attention;
mod cached;
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
mod host_memory;
mod norm;
mod offload;
pub mod optimizer;
mod permute;
mod persist;
mod pull_back;
mod record;
mod rotary;
mod row_updates;
mod threads;

pub use argmax::{ArgmaxOps, argmax, argmax_rows};
pub use attention::{
    AttentionOps, AttentionSpec, SinkOps, add_sinks, attention, attention_forward, attention_grad,
    attention_is_fused, attention_scores, attention_with_sinks,
};
pub use cached::{CachedOps, cached_attention, overwrite, overwrite_float, store_cached};
pub use cross_entropy::{CrossEntropy, CrossEntropyOps, cross_entropy};
pub use gated::{Activation, GatedOps, gated, gated_grad};
#[cfg(feature = "cuda")]
pub use gemm::Fp8Matrix;
pub use gemm::{Gemm, GemmOps};
pub use host_memory::keep_host_memory;
pub use norm::{NormOps, NormSpec, rms_norm};
pub use offload::{OffloadOps, Offloaded, Returning, Slot, offload, settle_copies, upload};
pub use permute::{PermuteOps, permute_rows};
pub use persist::{Persist, PersistOps, persist, persistent, persistent_int};
pub use pull_back::{PullBackOps, pull_back, pull_back_with};
pub use record::{Recorded, abandon_recording, prepare_recording, record, records};
pub use rotary::{RotaryOps, rotate, rotate_grad};
pub use row_updates::{RowUpdateOps, add_row_updates};
pub use threads::compute_here;
