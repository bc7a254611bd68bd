//! Operations for training language models that Burn has not, or has slower: one folder each.
//!
//! | what | where |
//! |---|---|
//! | the one matrix product | [`Gemm`] |
//!
//! A folder has the operation on tensors, where shapes are checked, and a Burn backend extension for it
//! (such as [`GemmOps`]), which is implemented for the CPU (`flex.rs`), for every CubeCL runtime
//! (`cube.rs`), lazily for fusion (generated) and, where there is a gradient, differentiably (`autodiff.rs`).
//!
//! # Devices
//!
//! A `Device` value chooses the backend at run time; the features `cpu`, `wgpu`, `vulkan`, `metal`
//! and `cuda` say which are compiled in, `fusion` whether Burn fuses elementwise operations.

#[cfg(feature = "cubecl")]
pub mod cube;
#[cfg(feature = "cuda")]
pub mod cuda;
mod gemm;

pub use gemm::{Gemm, GemmOps};
